"""`moespac simulate`: policies compared on recorded routing and a described machine."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ...actors.policy.rivals.registry import policy_class
from ...errors import UserError
from .hardware import load_hardware
from .paper import compare, paper_tables, paper_traces
from .picture import write_picture
from .report import CAPTION, results_json, results_tables
from .run import Case, sweep

HARDWARE = Path(__file__).resolve().parents[2] / "configs" / "hardware"
TRACES = Path(__file__).resolve().parents[3] / "shared" / "data" / "traces"
"""Where traces are looked for when none is named: beside the checkout."""
TABLE_WIDTH = 110
PAPER_TOKENS = 1000
"""Replayed of each trace unless the user says otherwise."""
PAPER_HARDWARE = HARDWARE / "rtx4090-qwen3-30b-a3b.yaml"


class BadRequest(UserError, ValueError):
    """Options of the command that cannot be used."""


def run_simulate(
    traces: Sequence[Path],
    policies: str,
    hardware: Path | None,
    window: int,
    ratios: Sequence[float],
    tokens: int,
    drafts: str,
    as_json: bool,
    picture: Path | None,
) -> None:
    """Runs every policy on every trace at every cache ratio and prints what came of it."""
    names = checked_policies(policies)
    if window < 1:
        raise BadRequest(f"--window is {window}; give 1 (no drafts) or more")
    if tokens < 0:
        raise BadRequest(f"--tokens is {tokens}; give 0 for all, or how many to replay of each trace")
    if not traces:
        raise BadRequest("no trace is named; give --trace FILE.npz, or --paper for the comparison of the paper")
    for ratio in ratios:
        if not 0.0 <= ratio <= 1.0:
            raise BadRequest(f"--cache-ratio is {ratio}; give a share of all experts, from 0 to 1")
    if drafts not in ("rate", "ngram"):
        raise BadRequest(f"--drafts is {drafts!r}; give rate or ngram")
    machine = load_hardware(hardware or PAPER_HARDWARE)
    cases = [
        Case(trace, name, machine, ratio, window - 1, tokens, drafts == "ngram")
        for trace in traces
        for ratio in ratios
        for name in names
    ]
    with progress(len(cases)) as done:
        results = list(zip(cases, sweep(cases, done), strict=True))
    if picture is not None:
        write_picture(picture, results)
    if as_json:
        print(json.dumps(results_json(results)))
    else:
        # A narrower terminal breaks lines; a table squeezed to its width would lose digits.
        console = Console(width=max(Console().width, TABLE_WIDTH))
        for table in results_tables(results):
            console.print(table)
        console.print(CAPTION)


def run_paper(traces: Sequence[Path], tokens: int, as_json: bool) -> None:
    """Prints the paper's comparison on `traces`, by default all in the traces folder."""
    files = list(traces) or sorted(TRACES.glob("*.npz"))
    if not files:
        raise BadRequest(f"{TRACES}: holds no traces; name some with --trace")
    result = compare(paper_traces(files), load_hardware(PAPER_HARDWARE), tokens or PAPER_TOKENS, progress)
    if as_json:
        print(json.dumps(result))
        return
    for table in paper_tables(result):
        Console().print(table)


def checked_policies(text: str) -> list[str]:
    """Names out of a comma-separated list. Raises BadRequest for none and for unknown ones."""
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise BadRequest("--policy names no policy; give some, separated by commas")
    for name in names:
        try:
            policy_class(name)
        except ValueError as error:
            raise BadRequest(f"--policy: {error}") from None
    return names


@contextmanager
def progress(total: int) -> Iterator[Callable[[int], None]]:
    """A bar of runs on standard error."""
    columns = (TextColumn("simulating"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task("", total=total)
        yield lambda done: bars.update(task, completed=done)
