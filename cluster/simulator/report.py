"""Results of a sweep as a table and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

from .run import Case
from .tally import Tally

Results = Sequence[tuple[Case, Tally]]

COLUMNS = {
    "tok/s": ("tokens_per_s", "{:.1f}"),
    "tok": ("tokens_per_step", "{:.2f}"),
    "ms": ("step_ms", "{:.1f}"),
    "draft": ("draft_ms", "{:.1f}"),
    "trunk": ("trunk_ms", "{:.1f}"),
    "device": ("device_ms", "{:.1f}"),
    "CPU": ("cpu_wait_ms", "{:.1f}"),
    "link": ("link_wait_ms", "{:.1f}"),
    "remote": ("remote_ms", "{:.1f}"),
    "hits": ("hit_rate", "{:.0%}"),
    "GB": ("gbytes_moved", "{:.0f}"),
    "useful": ("useful_share", "{:.0%}"),
    "hidden": ("hidden_transfer_share", "{:.0%}"),
}
"""Heading → key of `Tally.summary` and its format."""

CAPTION = (
    "tok, ms: tokens and milliseconds of a step, of which draft, trunk, experts on the device, waiting for CPU and "
    "link, remote calls; hits: of uses; GB moved; useful: of transfers; hidden: of transfer time"
)


def results_tables(results: Results) -> list[Table]:
    """A table for each trace and cache ratio, one line a policy."""
    tables: dict[tuple[str, float], Table] = {}
    for case, tally in results:
        key = case.trace.stem, case.cache_ratio
        if key not in tables:
            title = f"{key[0]}, cache {key[1]:.0%}, simulated"
            tables[key] = Table(title=title, box=SIMPLE, padding=(0, 1, 0, 0), show_edge=False)
            tables[key].add_column("policy", no_wrap=True)
            for heading in COLUMNS:
                tables[key].add_column(heading, justify="right", no_wrap=True)
        summary = tally.summary()
        tables[key].add_row(case.policy, *(text.format(summary[name]) for name, text in COLUMNS.values()))
    return list(tables.values())


def results_json(results: Results) -> dict[str, Any]:
    """`runs`: what each run was of and its `Tally.summary`."""
    return {
        "runs": [
            {
                "trace": case.trace.stem,
                "policy": case.policy,
                "hardware": case.hardware.name,
                "cache_ratio": case.cache_ratio,
                "gamma": case.gamma,
                "drafts": "ngram" if case.ngram else "rate",
                **tally.summary(),
            }
            for case, tally in results
        ]
    }
