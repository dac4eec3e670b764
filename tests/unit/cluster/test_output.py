"""Where a generation's text ends, with real tokenizers: the bundled models' and a byte-level one of tiny merges."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from tiny_models import make_qwen3_moe
from tokenizers import Tokenizer

import moespac
from moespac.cluster.gateway.output import Output
from moespac.cluster.gateway.text import TextCodec

ROOT = Path(moespac.__file__).parent
PROMPTS = json.loads((Path(__file__).parents[2] / "data" / "prompts.json").read_text(encoding="utf-8"))
MIXED = "the expert, été: 東京 🙂🙂 naïve – “ok” 👩‍👩‍👧 عربي"
TORN = "\N{REPLACEMENT CHARACTER}"


@pytest.fixture(scope="module", params=["target", "draft", "tiny"])
def directory(request, tmp_path_factory) -> Path:
    if request.param == "tiny":
        return make_qwen3_moe(tmp_path_factory.mktemp("models") / "tiny")
    return ROOT / "configs" / "quickstart" / request.param


def _run(codec: TextCodec, ids: list[int], stops: list[str], chunk: int) -> tuple[str, Output]:
    output, text = Output(codec.stream(), stops), ""
    for start in range(0, len(ids), chunk):
        text += output.push(ids[start : start + chunk])[0]
    return text + output.finish(), output


def test_stop_strings_across_token_boundaries(directory):
    codec, generator = TextCodec.open(directory), random.Random(7)
    for text in [*PROMPTS[:6], MIXED]:
        ids = codec.encode(text)
        whole = codec.decode(ids)
        for _ in range(8):
            start = generator.randrange(len(whole) - 1)
            stop = whole[start : start + generator.randrange(1, 9)]
            results = [_run(codec, ids, [stop, "never said"], chunk) for chunk in (1, 3, len(ids))]
            for said, output in results:
                assert said == whole[: whole.index(stop)] and output.stop == stop
            # The tokens that count are the fewest whose text has the stop string, however they arrive.
            assert len({output.tokens for _, output in results}) == 1
            count = results[0][1].tokens
            assert stop in codec.decode(ids[:count]) and stop not in codec.decode(ids[: count - 1])


def test_pieces_are_whole_characters_and_make_up_the_text(directory):
    codec = TextCodec.open(directory)
    ids = codec.encode(MIXED)
    output = Output(codec.stream(), ["never", TORN])
    pieces = [output.push([token])[0] for token in ids]
    assert "".join(pieces) + output.finish() == codec.decode(ids) == MIXED
    assert not any(TORN in piece for piece in pieces) and output.tokens == len(ids)


def test_a_generation_cut_inside_a_character(directory):
    codec = TextCodec.open(directory)
    ids = codec.encode(MIXED)
    cuts = [n for n in range(1, len(ids)) if codec.decode(ids[:n]).endswith(TORN)]
    assert cuts, "the tokenizer must split a character into tokens"
    for cut in cuts:
        whole = codec.decode(ids[:cut])
        assert _run(codec, ids[:cut], [], 1)[0] == whole
        # Only the end of the stream makes the bytes a replacement character; a stop string of it then counts.
        said, output = _run(codec, ids[:cut], [TORN], 1)
        assert said == whole[: whole.index(TORN)] and output.stop == TORN and output.tokens == cut


def test_text_of_special_tokens_is_no_stop_string(directory):
    codec = TextCodec.open(directory)
    (special, *_), ids = Tokenizer.from_file(str(directory / "tokenizer.json")).get_added_tokens_decoder().items(), []
    ids = [*codec.encode("one "), special[0], *codec.encode("two")]
    said, output = _run(codec, ids, [special[1].content], 1)
    assert output.stop is None and special[1].content not in said and output.tokens == len(ids)


def test_nothing_counts_behind_a_stop_string(directory):
    codec = TextCodec.open(directory)
    ids = codec.encode("one two three")
    output = Output(codec.stream(), ["two"])
    text, counted = output.push(ids)
    assert counted < len(ids) and output.push(ids) == ("", 0) and output.finish() == ""
    assert text == "one " and output.tokens == counted
