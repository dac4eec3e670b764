"""Progress bars of things that take long: conversion, its report, and start-up."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

if TYPE_CHECKING:  # converting needs nothing of what launching needs
    from .launch import Progress as ActorProgress


@contextlib.contextmanager
def conversion_bar(name: str) -> Iterator[Callable[[int, int], None]]:
    """A bar in bytes with throughput; appears with the first report, so that nothing shows where nothing is done.

    What an earlier conversion had done already is counted as it is read back, at the speed of that.
    """
    columns = (
        TextColumn("converting [bold]{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
    )
    with _single_bar(name, columns) as report:
        yield report


@contextlib.contextmanager
def measuring_bar(name: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """A bar of running a model, in `unit`, such as tokens."""
    columns = (
        TextColumn("measuring [bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
    )
    with _single_bar(name, columns) as report:
        yield report


@contextlib.contextmanager
def _single_bar(name: str, columns: Sequence[ProgressColumn]) -> Iterator[Callable[[int, int], None]]:
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks = []

        def report(done: int, total: int) -> None:
            if not tasks:
                tasks.append(bars.add_task(name, total=total))
            bars.update(tasks[0], completed=done)

        yield report


@contextlib.contextmanager
def start_bars() -> Iterator[Callable[[ActorProgress], None]]:
    """One line an actor: what it does now and how far it is."""
    columns = (
        SpinnerColumn(finished_text="✓"),
        TextColumn("{task.description:<12}"),
        TextColumn("{task.fields[stage]:<20}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, int] = {}

        def report(progress: ActorProgress) -> None:
            total = max(progress.total, 1)
            if progress.actor not in tasks:
                tasks[progress.actor] = bars.add_task(progress.actor, total=total, stage="")
            bars.update(
                tasks[progress.actor],
                stage="ready" if progress.ready else progress.stage,
                total=total,
                completed=total if progress.ready else min(progress.done, total - (progress.done >= total)),
            )

        yield report
