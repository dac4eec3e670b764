"""Figures of quantised stores: right where they can be computed otherwise, and small enough on the bundled target."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import pytest
import torch
from rich.console import Console
from tiny_models import make_gpt_oss, make_qwen3_moe
from transformers import AutoModelForCausalLM, AutoTokenizer

import moespac
from moespac.actors.prefetcher.convert import convert
from moespac.actors.prefetcher.store import ExpertStore
from moespac.cluster.quality import QualityReport, QualityUnmeasurable, quality_report, report_table

TARGET = Path(moespac.__file__).parent / "configs" / "quickstart" / "target"
TEXT = (Path(__file__).parents[2] / "data" / "held_out.txt").read_text()
SHORT = "The expert that is wanted most is kept near; the others wait — été, 東京 🙂. " * 30


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return make_qwen3_moe(tmp_path_factory.mktemp("model") / "tiny")


def store_of(checkpoint: Path, path: Path, format: str | None) -> Path:
    convert(checkpoint, path, None, format)
    return path


def with_stored_experts(checkpoint: Path, store: Path):
    """transformers' own model, its experts replaced by what the store holds."""
    model = AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
    ).eval()
    opened = ExpertStore.open(store)
    block = bytearray(opened.layout.expert_bytes)
    for key in opened.shape.keys():  # noqa: SIM118
        opened.read_into(key, memoryview(block))
        weights = opened.layout.weights(torch.frombuffer(block, dtype=torch.uint8))
        experts = model.model.layers[key.layer].mlp.experts
        with torch.no_grad():
            experts.gate_up_proj[key.expert] = weights.gate_up.float()
            experts.down_proj[key.expert] = weights.down.float()
    opened.close()
    return model


def bits_per_byte(model, checkpoint: Path, text: str, window: int) -> float:
    """Windows one after the other, each begun with the last token of the one before."""
    ids = AutoTokenizer.from_pretrained(checkpoint)(text, return_tensors="pt").input_ids
    nats = 0.0
    with torch.inference_mode():
        for at in range(0, ids.shape[1] - 1, window - 1):
            piece = ids[:, at : at + window]
            chances = model(piece).logits[0, :-1].log_softmax(-1)
            nats -= float(chances.gather(1, piece[0, 1:, None]).sum(dtype=torch.float64))
    first = AutoTokenizer.from_pretrained(checkpoint).decode(ids[0, :1])
    return nats / math.log(2) / (len(text.encode()) - len(first.encode()))


@pytest.mark.parametrize("format", ["int8", "int4-g32"])
def test_figures_are_those_of_the_model_with_those_weights(checkpoint, tmp_path, format) -> None:
    store = store_of(checkpoint, tmp_path / "store", format)
    calls = []
    report = quality_report(checkpoint, store, SHORT, lambda *counts: calls.append(counts))
    plain = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="eager").eval()
    window = 256
    assert report.bits_per_byte == pytest.approx(bits_per_byte(plain, checkpoint, SHORT, window), rel=1e-5)
    stored = with_stored_experts(checkpoint, store)
    assert report.stored_bits_per_byte == pytest.approx(bits_per_byte(stored, checkpoint, SHORT, window), rel=1e-5)
    assert report.bits_per_byte != report.stored_bits_per_byte
    assert (report.format, report.source_format) == (format, "bfloat16")
    assert report.change == pytest.approx(report.stored_bits_per_byte / report.bits_per_byte - 1)
    assert calls[-1] == (report.tokens, report.tokens)


def test_layer_errors_are_of_rows_on_the_original_activations(checkpoint, tmp_path) -> None:
    """Of the first layer, whose input no expert has touched, from transformers' own modules."""
    store = store_of(checkpoint, tmp_path / "store", "int4-g32")
    text = SHORT[:200]
    report = quality_report(checkpoint, store, text)
    plain = AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
    ).eval()
    stored = with_stored_experts(checkpoint, store)
    seen = {}
    plain.model.layers[0].mlp.experts.register_forward_pre_hook(lambda _, inputs: seen.update(inputs=inputs))
    error = total = 0.0
    with torch.inference_mode():
        plain(AutoTokenizer.from_pretrained(checkpoint)(text, return_tensors="pt").input_ids)
        hidden, index, weights = seen["inputs"]
        for slot in range(index.shape[1]):
            chosen = (hidden, index[:, slot : slot + 1], weights[:, slot : slot + 1])
            ours = plain.model.layers[0].mlp.experts(*chosen)
            error += float((stored.model.layers[0].mlp.experts(*chosen) - ours).square().sum())
            total += float(ours.square().sum())
    assert report.layer_errors[0] == pytest.approx(math.sqrt(error / total), rel=1e-4)
    assert set(report.layer_errors) == {0, 1, 2}


def test_a_store_in_the_checkpoints_own_format_changes_nothing(checkpoint, tmp_path) -> None:
    report = quality_report(checkpoint, store_of(checkpoint, tmp_path / "store", None), SHORT)
    assert report.change == 0
    assert set(report.layer_errors.values()) == {0.0}


def test_experts_with_biases_and_a_gate_of_their_own(tmp_path) -> None:
    checkpoint = make_gpt_oss(tmp_path / "model")
    text = SHORT[:300]
    report = quality_report(checkpoint, store_of(checkpoint, tmp_path / "store", "int8"), text)
    plain = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="eager").eval()
    assert report.bits_per_byte == pytest.approx(bits_per_byte(plain, checkpoint, text, 256), rel=1e-5)
    assert all(0 < error < 0.02 for error in report.layer_errors.values())


def test_a_store_of_another_model_is_refused(checkpoint, tmp_path) -> None:
    other = make_qwen3_moe(tmp_path / "other", seed=9)
    with pytest.raises(QualityUnmeasurable, match="was not made from"):
        quality_report(checkpoint, store_of(other, tmp_path / "store", "int8"), SHORT)


@pytest.mark.parametrize("text", ["", "e"])
def test_a_text_too_short_is_refused(checkpoint, tmp_path, text) -> None:
    with pytest.raises(QualityUnmeasurable, match="too short"):
        quality_report(checkpoint, store_of(checkpoint, tmp_path / "store", "int8"), text)


def test_reports_are_shown_and_written() -> None:
    report = QualityReport("int8", "bfloat16", 1000, 4000, {0: 0.0125, 3: 0.02}, 2.0, 2.01)
    out = io.StringIO()
    Console(file=out, width=100).print(report_table(report))
    for shown in ("layer 0", "1.250%", "layer 3", "2.000%", "2.0000", "2.0100", "+0.500%", "1,000 tokens"):
        assert shown in out.getvalue()
    read = json.loads(json.dumps(report.to_json()))
    assert read["change"] == pytest.approx(0.005)
    assert read["layer_errors"] == {"0": 0.0125, "3": 0.02}


@pytest.mark.slow
@pytest.mark.parametrize("format, most_change, most_error", [("int8", 0.005, 0.02), ("int4-g32", 0.03, 0.2)])
def test_the_bundled_target_keeps_its_predictions(tmp_path, format, most_change, most_error) -> None:
    report = quality_report(TARGET, store_of(TARGET, tmp_path / "store", format), TEXT)
    assert report.bits_per_byte < 3, "the text is no text to this model"
    assert abs(report.change) < most_change
    assert all(0 < error < most_error for error in report.layer_errors.values())
