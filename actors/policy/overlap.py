"""How much of one kind of work was hidden behind another."""

from __future__ import annotations

from collections.abc import Iterable

Interval = tuple[int, int]
"""Start and end in nanoseconds of one clock; end >= start."""


def overlap_seconds(a: Iterable[Interval], b: Iterable[Interval]) -> float:
    """Seconds during which at least one interval of `a` and at least one of `b` were under way.

    Intervals may come in any order and overlap within `a` or within `b`; no moment counts twice.
    Raises ValueError for an interval that ends before it starts.
    """
    first, second = _union(a), _union(b)
    total = i = j = 0
    while i < len(first) and j < len(second):
        start = max(first[i][0], second[j][0])
        end = min(first[i][1], second[j][1])
        total += max(0, end - start)
        if first[i][1] <= second[j][1]:
            i += 1
        else:
            j += 1
    return total * 1e-9


def busy_seconds(intervals: Iterable[Interval]) -> float:
    """Seconds during which at least one of `intervals` was under way."""
    return sum(end - start for start, end in _union(intervals)) * 1e-9


def _union(intervals: Iterable[Interval]) -> list[Interval]:
    merged: list[Interval] = []
    for start, end in sorted(intervals):
        if end < start:
            raise ValueError(f"interval ends at {end} ns, before it starts at {start} ns")
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged
