"""Which of several ways is the fastest, when what they are told to take is not to be relied on."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping
from statistics import median

FEW, MEMORY = 4, 16
"""Outcomes of a way before its record counts, as the first may be of a cold start; and those looked back on."""
SILENT = 256
"""Choices in which a way not taken comes to be thought half as slow: it is tried again, at a cost of 1/SILENT."""


class TrackRecord:
    """For each way the median of what it took over what it was told to take. Deterministic, no clock.

    Ways that share resources make each other look slow: processors that copy compute less. A prediction made of parts
    cannot know; a record of the whole does.
    """

    def __init__(self) -> None:
        self._ratios: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=MEMORY))
        self._chosen_at: dict[str, int] = {}
        self._choices = 0

    def choose(self, told_s: Mapping[str, float]) -> str:
        """The way that promises to take least, by its record; of equals the first. `told_s`: way → seconds."""
        self._choices += 1
        return min(told_s, key=lambda way: told_s[way] * self._expected(way))

    def note(self, way: str, told_s: float, took_s: float) -> None:
        """`way` was taken, and took `took_s` seconds instead of `told_s`."""
        self._chosen_at[way] = self._choices
        if told_s > 0:
            self._ratios[way].append(took_s / told_s)

    def _expected(self, way: str) -> float:
        ratios = self._ratios[way]
        silent = self._choices - self._chosen_at.get(way, 0)
        return (median(ratios) if len(ratios) >= FEW else 1.0) / (1.0 + silent / SILENT)
