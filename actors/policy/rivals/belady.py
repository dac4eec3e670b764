"""Belady's cache: the future is known, who is wanted farthest ahead leaves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...core import ExpertKey, RoutingWindow
from .interface import Decision, Layer, OffloadPolicy, Setting, Step, Wish
from .two_ended import shares, two_ended

MOST_WISHES = 32
"""Prefetches queued at a time; every layer asks anew."""


class BeladyDemand(OffloadPolicy):
    """Demand paging with bypass: a fetched expert takes a slot only from one that is wanted later than itself.

    The most hits that loading on demand can reach. The slots are settled when a layer is done, with its own
    experts evictable too.
    """

    wants_future = True
    forces_fetch = False
    admits_late = True

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._next = np.zeros((0, 0, 0), dtype=np.int32)
        self._index = 0
        self._row = -1

    def foresee(self, windows: Sequence[np.ndarray]) -> None:
        used = np.array([window > 0 for window in windows])
        never = len(used)
        self._next = np.empty((never + 2, *used.shape[1:]), dtype=np.int32)
        self._next[never:] = never
        for index in range(never - 1, -1, -1):
            self._next[index] = np.where(used[index], index, self._next[index + 1])

    def begin(self, step: Step) -> Sequence[Wish] | None:
        self._row = -1
        return None

    def layer(self, at: Layer) -> Decision:
        self._row = at.row
        self._changed.add(at.row)
        return Decision(fetch=at.misses)

    def worth(self, key: ExpertKey) -> float:
        row = self._rows[key.layer]
        window = int(self._next[self._index + (row <= self._row), row, key.expert])
        return -(window * len(self._rows) + row)

    def worths(self) -> np.ndarray | None:
        rows = np.arange(len(self._rows))[:, None]
        following = np.where(rows <= self._row, self._next[self._index + 1], self._next[self._index])
        return -(following * len(self._rows) + rows)

    def end(self, window: RoutingWindow, accepted: int, seconds: float) -> None:
        self._index += 1


class Belady(BeladyDemand):
    """Also prefetches what is wanted next, and shares misses between CPU and link by a two-ended greedy rule."""

    admits_late = False

    def begin(self, step: Step) -> Sequence[Wish] | None:
        super().begin(step)
        return self._wishes(step.cached)

    def layer(self, at: Layer) -> Decision:
        super().layer(at)
        fetch, cpu, _ = shares(two_ended(self.setting, at.pairs, at.residents, at.link_free_s), at.residents)
        cpu += [e for e in at.misses if e not in fetch and e not in cpu]
        return Decision(fetch=fetch, cpu=cpu, wishes=self._wishes(at.cached))

    def _wishes(self, cached) -> list[Wish]:
        layers = self.setting.shape.layer_ids
        passed = np.arange(len(layers)) <= self._row
        following = np.where(passed[:, None], self._next[self._index + 1], self._next[self._index])
        due = following * len(layers) + np.arange(len(layers))[:, None]
        wishes: list[Wish] = []
        for flat in np.argsort(due, axis=None, kind="stable").tolist():
            row, expert = divmod(flat, due.shape[1])
            if len(wishes) == MOST_WISHES or following[row, expert] >= len(self._next) - 2:
                break
            if not cached(key := ExpertKey(layers[row], expert)):
                wishes.append((key, -int(due[row, expert])))
        return wishes
