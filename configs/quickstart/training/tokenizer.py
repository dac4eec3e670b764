"""The pair's tokenizer: byte-level BPE, so every text has tokens and decoding gives the text back exactly."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

VOCABULARY = 4096
END = "<|endoftext|>"
CONTEXT = 1024


def train_tokenizer(texts: Iterable[str], vocabulary: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE of exactly ``vocabulary`` entries (``<|endoftext|>`` is id 0) on ``texts``."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator((t.replace(END, "") for t in texts), trainer=trainer)
    if tokenizer.get_vocab_size() != vocabulary:
        raise ValueError(
            f"--text: too little text for a vocabulary of {vocabulary} (got {tokenizer.get_vocab_size()}); add text"
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=END,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def load_tokenizer(directory: Path) -> PreTrainedTokenizerFast:
    """The tokenizer saved in a model directory; reads no network."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(directory), local_files_only=True)
    for how_loaded in ("is_local", "local_files_only"):  # would be saved again as if the tokenizer's own
        tokenizer.init_kwargs.pop(how_loaded, None)
    return tokenizer


def encode(tokenizer: PreTrainedTokenizerFast, pieces: Iterable[str]) -> np.ndarray:
    """Token ids (uint16 [n]) of ``pieces`` one after the other, an end token behind each."""
    end = tokenizer.eos_token_id
    encodings = tokenizer.backend_tokenizer.encode_batch_fast(list(pieces), add_special_tokens=False)
    return np.concatenate([np.asarray([*encoding.ids, end], dtype=np.uint16) for encoding in encodings])
