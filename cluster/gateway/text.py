"""Text to tokens and back, with the model's own tokenizer and without loading a model library.

The tokens of a prompt are those `AutoTokenizer.from_pretrained(directory)(prompt)` gives, and the text of a stream is
what its `decode(token_ids, skip_special_tokens=True)` gives, in pieces that never tear a character.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream


class TokenizerError(ValueError):
    """The model directory holds no usable tokenizer."""

    def __init__(self, file: Path, problem: str, remedy: str):
        super().__init__(f"{file}: {problem}: {remedy}")
        self.file = file


class TextCodec:
    """One model's tokenizer. Its methods may be called from several threads at once."""

    def __init__(self, tokenizer: Tokenizer):
        # A length limit or padding saved with the tokenizer is for training batches, not for prompts.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer

    @classmethod
    def open(cls, directory: Path) -> TextCodec:
        """Reads `tokenizer.json` of a model directory. Raises TokenizerError."""
        file = directory / "tokenizer.json"
        if not file.is_file():
            raise TokenizerError(file, "no such file", "save the model's fast tokenizer into its directory")
        try:
            tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises nothing more specific
            raise TokenizerError(file, f"cannot be read ({error})", "restore it from the model's source") from error
        return cls(tokenizer)

    def encode(self, text: str) -> list[int]:
        """Token ids, with the special tokens that the file's post-processor puts around a text."""
        return self._tokenizer.encode(text).ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of `token_ids` without special tokens."""
        return self._tokenizer.decode(list(token_ids), skip_special_tokens=True)

    def stream(self) -> TextStream:
        return TextStream(self._tokenizer)


class TextStream:
    """Decodes one generation as it grows; the pieces put together are the whole decoded text."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._decoder = DecodeStream(skip_special_tokens=True)
        self._token_ids: list[int] = []
        self._sent = 0  # characters

    def push(self, token_ids: Sequence[int]) -> str:
        """The text that became certain with `token_ids`; "" while a character is incomplete."""
        piece = "".join(self._decoder.step(self._tokenizer, token) or "" for token in token_ids)
        self._token_ids.extend(token_ids)
        self._sent += len(piece)
        return piece

    def finish(self) -> str:
        """What was held back: bytes that never became a whole character, as U+FFFD."""
        whole = self._tokenizer.decode(self._token_ids, skip_special_tokens=True)
        rest = whole[self._sent :]
        self._sent = len(whole)
        return rest
