"""The gateway's tokenizer against transformers' own."""

from __future__ import annotations

import random

import pytest
from tiny_models import make_qwen3_moe
from tokenizers import Tokenizer, processors
from transformers import AutoTokenizer

from moespac.cluster.gateway.text import TextCodec, TokenizerError

TEXTS = ["hello été 🙂 東京", " ", "a<|endoftext|>b", "x" * 50, "\n\n", "naïve, the expert"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return make_qwen3_moe(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def with_ends(directory, tmp_path):
    """The same tokenizer whose post-processor puts a token before every text, and with a length limit saved."""
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        (tmp_path / name).write_bytes((directory / name).read_bytes())
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", pair=None, special_tokens=[("<|endoftext|>", 0)]
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


@pytest.mark.parametrize("text", TEXTS)
def test_encodes_as_auto_tokenizer(directory, with_ends, text):
    for path in (directory, with_ends):
        assert TextCodec.open(path).encode(text) == AutoTokenizer.from_pretrained(path)(text).input_ids
    assert TextCodec.open(with_ends).encode(text)[0] == 0


def test_saved_limits_are_for_training_not_for_prompts(with_ends):
    file = with_ends / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=100)
    tokenizer.save(str(file))
    assert len(TextCodec.open(with_ends).encode("x" * 50)) == 51


@pytest.mark.parametrize("chunk", [1, 3])
def test_stream_of_any_tokens_is_the_decoded_text(directory, chunk):
    codec, reference = TextCodec.open(directory), AutoTokenizer.from_pretrained(directory)
    generator = random.Random(chunk)
    for _ in range(200):
        ids = [generator.randrange(320) for _ in range(generator.randrange(1, 60))]
        stream = codec.stream()
        pieces = [stream.push(ids[i : i + chunk]) for i in range(0, len(ids), chunk)]
        assert "".join(pieces) + stream.finish() == reference.decode(ids, skip_special_tokens=True)


def test_no_piece_ends_within_a_character(directory):
    codec = TextCodec.open(directory)
    stream, text = codec.stream(), "🙂東京é" * 5
    pieces = [stream.push([token]) for token in codec.encode(text)]
    assert "".join(pieces) == text and stream.finish() == ""
    assert "" in pieces, "the test needs characters that lie across tokens"


def test_missing_and_broken_tokenizers_are_named(tmp_path):
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: no such file"):
        TextCodec.open(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: cannot be read .*restore it"):
        TextCodec.open(tmp_path)
