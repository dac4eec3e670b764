"""`moespac convert`: what it prints of the weights, and with --report of the model's predictions."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_models import make_qwen3_moe
from typer.testing import CliRunner

from moespac.actors.prefetcher.store import ExpertStore
from moespac.cluster.cli import app
from moespac.cluster.conversion import UnreadableText
from moespac.cluster.quality import quality_report

TEXT = "The expert that is wanted most is kept near; the others wait — été, 東京 🙂. " * 8


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return make_qwen3_moe(tmp_path_factory.mktemp("model") / "tiny")


def convert(*arguments: object):
    return CliRunner().invoke(app, ["convert", *map(str, arguments)], env={"COLUMNS": "120"})


def test_a_report_shows_errors_of_weights_and_outputs_and_the_change_of_predictions(checkpoint, tmp_path):
    text, store = tmp_path / "text.txt", tmp_path / "store"
    text.write_text(TEXT)
    ran = convert(checkpoint, store, "--experts", "int4-g32", "--report", text)
    assert ran.exit_code == 0, ran.output
    figures = quality_report(checkpoint, store, TEXT)
    first, *lines = ran.stdout.splitlines()
    opened = ExpertStore.open(store)
    opened.close()
    assert first.startswith(f"{opened.shape.n_layers * opened.shape.n_experts} experts of ") and "int4-g32" in first
    assert lines[0].startswith("relative RMS error of the weights against bfloat16: ")
    assert lines[1].startswith("by layer: 0: ") and all(f"  {layer}: " in lines[1] for layer in (1, 2))
    rows = {line.split("│")[1].strip(): line.split("│")[2].strip() for line in lines if line.startswith("│")}
    assert rows == {
        **{f"expert outputs, layer {layer}": f"{error:.3%}" for layer, error in figures.layer_errors.items()},
        "bits per byte, bfloat16": f"{figures.bits_per_byte:.4f}",
        "bits per byte, int4-g32": f"{figures.stored_bits_per_byte:.4f}",
        "change": f"{figures.change:+.3%}",
    }
    assert lines[-1] == f"expert store: {store}"
    assert "converting tiny" in ran.stderr
    assert "measuring tiny" in ran.stderr and f"{figures.tokens}/{figures.tokens}" in ran.stderr


def test_without_a_report_no_model_is_run(checkpoint, tmp_path):
    ran = convert(checkpoint, tmp_path / "store")
    assert ran.exit_code == 0 and "measuring" not in ran.stderr and "bits per byte" not in ran.stdout
    assert "error" not in ran.stdout  # in the checkpoint's own format there is none to tell


@pytest.mark.parametrize(
    ("content", "problem"),
    [(None, "cannot be read as text"), (b"\xff\xfe", "cannot be read as text"), (b" \n", "empty")],
)
def test_a_text_that_cannot_be_used_is_refused_before_anything_is_converted(checkpoint, tmp_path, content, problem):
    text = tmp_path / "text.txt"
    if content is not None:
        text.write_bytes(content)
    ran = convert(checkpoint, tmp_path / "store", "--report", text)
    assert (
        isinstance(ran.exception, UnreadableText) and problem in str(ran.exception) and str(text) in str(ran.exception)
    )
    assert not (tmp_path / "store").exists()
