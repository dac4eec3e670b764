"""Worth as one of few levels, where a cache or a plan needs integers."""

from __future__ import annotations

import numpy as np

TOP_LEVEL = 7
"""The highest level; 0 is worth nothing."""

SHARES = (0.25, 0.5, 0.7, 0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.2, 1.5, 2.0, 3.0, 4.0)
"""Of the slots: ranks at which a threshold may lie; closest where the border between hot and cold is likely."""


def to_levels(worth: np.ndarray, most: float) -> np.ndarray:
    """int64 in 0..TOP_LEVEL: equal steps of the square root of `worth`, which lies in 0..`most`.

    The root gives more levels to the many experts that are rarely used, between which a cache has to choose too.
    """
    share = np.sqrt(np.clip(worth / most, 0.0, 1.0))
    return np.minimum((share * (TOP_LEVEL + 1)).astype(np.int64), TOP_LEVEL)


def borders(utilities: np.ndarray, slots: int) -> np.ndarray:
    """Utilities at which a threshold may lie: int64, ascending, above 0, at most one for each of SHARES.

    An expert's level is the number of borders that its utility reaches (`np.searchsorted` from the right).
    """
    ranked = np.sort(utilities, axis=None)[::-1]
    ranks = (np.asarray(SHARES) * slots).astype(np.int64) - 1
    at = ranked[ranks[(ranks >= 0) & (ranks < ranked.size)]]
    return np.unique(at[at > 0])
