"""What actors cost, as a table and as plain values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from ..actors.core import ModelShape
from ..actors.policy.cost import LINK, CostModel
from .report import NOTHING, human_bytes, human_seconds

NO_TIME_S = 1e-12
"""An expert fitted as less has no measurable share of a call."""


@dataclass(frozen=True)
class CostRow:
    """One actor's fitted costs; seconds."""

    actor: str
    call_s: float
    expert_s: float
    pair_s: float
    error: float
    """Median |predicted − measured| / measured."""
    samples: int
    bytes_per_s: float | None
    """Of weights: by the time of one further expert, by that of a whole transfer; None where an expert takes none."""


def cost_row(model: CostModel, actor: str, samples: int, shape: ModelShape) -> CostRow:
    """What `model` has fitted to `samples` samples of `actor`."""
    (cost,) = model.worker_costs([actor])
    # Transfers are alike: nothing tells how much of one is its beginning.
    one_s = model.predict(LINK, 1, 0) if actor == LINK else cost.expert_s
    rate = shape.expert_bytes / one_s if one_s > NO_TIME_S else None
    return CostRow(actor, cost.call_s, cost.expert_s, cost.pair_s, model.error()[actor], samples, rate)


def cost_table(rows: Sequence[CostRow], shape: ModelShape) -> Table:
    """For people."""
    table = Table(title=f"an expert is {human_bytes(shape.expert_bytes)}", title_justify="left")
    table.add_column("actor", style="bold")
    for heading in ("a call", "an expert", "a pair", "error", "samples", "weights"):
        table.add_column(heading, justify="right")
    for row in rows:
        rate = NOTHING if row.bytes_per_s is None else f"{row.bytes_per_s / 1e9:.2f} GB/s"
        times = (_micro(seconds) for seconds in (row.call_s, row.expert_s, row.pair_s))
        table.add_row(row.actor, *times, f"{100 * row.error:.0f} %", str(row.samples), rate)
    return table


def _micro(seconds: float) -> str:
    return f"{seconds * 1e6:.1f} µs" if seconds < 1e-3 else human_seconds(seconds)
