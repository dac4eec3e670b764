"""One resident set for all layers, exchanged before each window; and Belady's cache on the same uses."""

from __future__ import annotations

import heapq

import numpy as np


def resident_share(worth: np.ndarray, used: np.ndarray, slots: int, budget: int) -> float:
    """Share of uses found resident. `worth` [windows, experts], `used` bool of the same shape.

    The set starts as the first `slots` experts. Before each window the most worthy of the others take the places of the
    least worthy residents, in pairs, while that gains and at most `budget` times.
    """
    resident = np.arange(used.shape[1]) < slots
    hits = 0
    for value, wanted in zip(worth, used, strict=True):
        inside, outside = np.flatnonzero(resident), np.flatnonzero(~resident)
        leaving = inside[np.argsort(value[inside], kind="stable")]
        coming = outside[np.argsort(-value[outside], kind="stable")]
        pairs = min(budget, len(leaving), len(coming))
        gains = value[coming[:pairs]] > value[leaving[:pairs]]
        resident[leaving[:pairs][gains]], resident[coming[:pairs][gains]] = False, True
        hits += np.count_nonzero(resident & wanted)
    return hits / np.count_nonzero(used)


def oracle_worth(used: np.ndarray, decayed: np.ndarray) -> np.ndarray:
    """The coming window's true uses, ties by decayed counts."""
    return used + decayed / (1.0 + decayed.max())


def belady_share(used: np.ndarray, slots: int) -> float:
    """Demand paging with bypass: a miss enters only where it is wanted again before some resident is.

    Uses come window by window, in each by layer and expert. The set starts empty.
    """
    windows, experts = used.shape
    never = windows * experts
    following = np.full(experts, never)
    next_use = np.empty(used.shape, dtype=np.int64)
    for window in range(windows - 1, -1, -1):
        next_use[window] = following
        following = np.where(used[window], window * experts + np.arange(experts), following)
    due: dict[int, int] = {}
    farthest: list[tuple[int, int]] = []
    hits = 0
    for window in range(windows):
        for expert in np.flatnonzero(used[window]).tolist():
            when = int(next_use[window, expert])
            if expert in due:
                hits += 1
            elif len(due) >= slots:
                while due.get(farthest[0][1]) != -farthest[0][0]:
                    heapq.heappop(farthest)
                if -farthest[0][0] <= when:
                    continue
                del due[heapq.heappop(farthest)[1]]
            due[expert] = when
            heapq.heappush(farthest, (-when, expert))
    return hits / np.count_nonzero(used)
