"""What storing the experts in another format does to a model: error of their outputs, and of its predictions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.table import Table
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer

from ..actors.core import ExpertKey
from ..actors.gpu_device.hook import experts_computed_by
from ..actors.gpu_device.routing import join, route
from ..actors.gpu_device.trunk import LoadedModel, load_trunk
from ..actors.prefetcher.checkpoint import Checkpoint, open_checkpoint
from ..actors.prefetcher.store import ExpertStore
from ..errors import UserError
from ..kernels.layout import ExpertWeights
from ..kernels.reference import expert_rows

WINDOW = 256
"""Tokens that see one another; more would cost time and hardly change the difference between two formats."""
_PASS_TOKENS = 4096
_LOGIT_BYTES = 256 << 20
"""Of a pass's float32 logits, at most: vocabularies of 200,000 tokens are common."""
_CPU = torch.device("cpu")

Progress = Callable[[int, int], None]
"""Told tokens done and tokens in all."""


class QualityUnmeasurable(UserError, ValueError):
    """Checkpoint, store and text give no figures; says why and what to do."""


@dataclass(frozen=True)
class QualityReport:
    """Figures of one store on one text, all computed in float32."""

    format: str
    source_format: str
    tokens: int
    """Predicted."""
    bytes: int
    """UTF-8 length of the predicted text."""
    layer_errors: dict[int, float]
    """By layer ||stored - original|| / ||original|| of what its experts give, both fed what the original model gives
    them."""
    bits_per_byte: float
    """Of the model with the checkpoint's experts."""
    stored_bits_per_byte: float
    """Of the model with the store's in every layer."""

    @property
    def change(self) -> float:
        """Of bits per byte, as a fraction: positive is worse."""
        return self.stored_bits_per_byte / self.bits_per_byte - 1

    def to_json(self) -> dict:
        """For json.dumps."""
        return asdict(self) | {"change": self.change}


def quality_report(checkpoint: Path, store: Path, text: str, progress: Progress | None = None) -> QualityReport:
    """Runs the model over `text` with the checkpoint's experts and with the store's, on the CPU.

    Holds the trunk, a pass's activations and rows, and one expert at a time: each pass over some thousand tokens reads
    all experts that its tokens choose, twice from the store. Raises QualityUnmeasurable, and what opening and loading
    the checkpoint and the store raise.
    """
    source = open_checkpoint(checkpoint)
    opened = ExpertStore.open(store)
    try:
        if opened.manifest.source_fingerprint != source.fingerprint:
            raise QualityUnmeasurable(
                f"{store}: was not made from {checkpoint}; give the checkpoint it was made from, or convert again"
            )
        target = load_trunk(checkpoint, torch.float32, _CPU)
        windows, text_bytes = _windows(checkpoint, text, min(WINDOW, target.context_length))
        return _measure(target, source, opened, windows, text_bytes, progress)
    finally:
        opened.close()


def report_table(report: QualityReport) -> Table:
    """The report for people."""
    table = Table("", "relative error", title=f"{report.format} experts against {report.source_format}")
    for layer, error in report.layer_errors.items():
        table.add_row(f"expert outputs, layer {layer}", f"{error:.3%}")
    table.add_section()
    table.add_row(f"bits per byte, {report.source_format}", f"{report.bits_per_byte:.4f}")
    table.add_row(f"bits per byte, {report.format}", f"{report.stored_bits_per_byte:.4f}")
    table.add_row("change", f"{report.change:+.3%}")
    table.caption = f"{report.tokens:,} tokens, {report.bytes:,} bytes of text, computed in float32"
    return table


@dataclass
class _LayerSums:
    squared_error: float = 0.0
    squared: float = 0.0

    @property
    def relative(self) -> float:
        return math.sqrt(self.squared_error / self.squared) if self.squared else math.nan


@torch.inference_mode()
def _measure(
    target: LoadedModel,
    source: Checkpoint,
    store: ExpertStore,
    windows: list[torch.Tensor],
    text_bytes: int,
    progress: Progress | None,
) -> QualityReport:
    sums = {layer: _LayerSums() for layer in source.shape.layer_ids}
    block = np.empty(store.layout.expert_bytes, dtype=np.uint8)
    original, stored = partial(_original, source), partial(_stored, store, block)
    total, done, nats, stored_nats = sum(w.numel() - len(w) for w in windows), 0, 0.0, 0.0
    for ids in windows:
        with experts_computed_by(partial(_compare, source, original, stored, sums)):
            nats += _nats(target, ids)
        with experts_computed_by(partial(_compute, store, stored)):
            stored_nats += _nats(target, ids)
        done += ids.numel() - len(ids)
        if progress is not None:
            progress(done, total)
    return QualityReport(
        store.layout.format,
        source.layout.format,
        total,
        text_bytes,
        {layer: one.relative for layer, one in sums.items()},
        nats / math.log(2) / text_bytes,
        stored_nats / math.log(2) / text_bytes,
    )


def _nats(target: LoadedModel, ids: torch.Tensor) -> float:
    """Of all tokens but the first of every row of `ids` [windows, tokens]."""
    logits = target.model(input_ids=ids, use_cache=False).logits[:, :-1]
    # A row at a time: the logarithms of all rows would take as much again as the logits.
    return sum(
        float(cross_entropy(row, wanted, reduction="none").sum(dtype=torch.float64))
        for row, wanted in zip(logits, ids[:, 1:], strict=True)
    )


Weights = Callable[[ExpertKey], ExpertWeights]


def _original(source: Checkpoint, key: ExpertKey) -> ExpertWeights:
    return ExpertWeights(**source.expert(key))


def _stored(store: ExpertStore, block: np.ndarray, key: ExpertKey) -> ExpertWeights:
    """Reads into `block`, which the next call overwrites."""
    store.read_into(key, memoryview(block))
    return store.layout.weights(block)


def _compute(
    opened: Checkpoint | ExpertStore,
    weights: Weights,
    layer: int,
    hidden: torch.Tensor,
    top_k_index: torch.Tensor,
    top_k_weights: torch.Tensor,
) -> torch.Tensor:
    """What a layer's experts module gives, with the experts of `opened`."""
    routing = route(top_k_index, top_k_weights, opened.shape.n_experts)
    rows = {
        expert: expert_rows(opened.layout, weights(ExpertKey(layer, expert)), hidden[tokens], router_weights)
        for expert, tokens, router_weights in routing.pairs.values()
    }
    return join(hidden, routing, rows)


def _compare(
    source: Checkpoint,
    original: Weights,
    stored: Weights,
    sums: dict[int, _LayerSums],
    layer: int,
    hidden: torch.Tensor,
    top_k_index: torch.Tensor,
    top_k_weights: torch.Tensor,
) -> torch.Tensor:
    """As `_compute` of `source`; adds to `sums` how far the stored experts' weighted rows are from the original's."""
    routing, rows = route(top_k_index, top_k_weights, source.shape.n_experts), {}
    for expert, tokens, router_weights in routing.pairs.values():
        key = ExpertKey(layer, expert)
        rows[expert] = expert_rows(source.layout, original(key), hidden[tokens], router_weights)
        theirs = expert_rows(source.layout, stored(key), hidden[tokens], router_weights)
        sums[layer].squared_error += float((theirs - rows[expert]).square().sum(dtype=torch.float64))
        sums[layer].squared += float(rows[expert].square().sum(dtype=torch.float64))
    return join(hidden, routing, rows)


def _windows(checkpoint: Path, text: str, length: int) -> tuple[list[torch.Tensor], int]:
    """Token ids, int64 [windows, tokens] a pass, and the UTF-8 length of what they predict.

    Each window begins with one token that is only read: the model's begin-of-text token where its tokenizer sets one,
    else the last token of the window before.
    """
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    begin = tokenizer.bos_token_id
    if begin is None or tokenizer("a").input_ids[:1] != [begin]:
        begin = None
        # Nothing comes before the first token: it is read, not predicted.
        unpredicted, ids, first = len(tokenizer.decode(ids[:1]).encode()), ids[1:], ids[:1]
    else:
        unpredicted, first = 0, [begin]
    if not ids:
        raise QualityUnmeasurable(f"text of {len(text)} characters: too short to predict anything; give a longer one")
    rows, before = [], first
    for at in range(0, len(ids), length - 1):
        piece = ids[at : at + length - 1]
        rows.append(torch.tensor(before + piece))
        before = piece[-1:] if begin is None else [begin]
    vocabulary = len(tokenizer)
    together = max(1, min(_PASS_TOKENS, _LOGIT_BYTES // (4 * vocabulary)) // length)
    return list(_batches(rows, together)), len(text.encode()) - unpredicted


def _batches(rows: list[torch.Tensor], together: int) -> Iterator[torch.Tensor]:
    """Rows of equal length stacked, the shorter last one alone."""
    whole = [row for row in rows if len(row) == len(rows[0])]
    for at in range(0, len(whole), together):
        yield torch.stack(whole[at : at + together])
    if len(whole) < len(rows):
        yield rows[-1][None]
