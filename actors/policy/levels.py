"""Worth as one of few levels, where a cache or a plan needs integers."""

from __future__ import annotations

import numpy as np

TOP_LEVEL = 7
"""The highest level; 0 is worth nothing."""


def to_levels(worth: np.ndarray, most: float) -> np.ndarray:
    """int64 in 0..TOP_LEVEL: equal steps of the square root of `worth`, which lies in 0..`most`.

    The root gives more levels to the many experts that are rarely used, between which a cache has to choose too.
    """
    share = np.sqrt(np.clip(worth / most, 0.0, 1.0))
    return np.minimum((share * (TOP_LEVEL + 1)).astype(np.int64), TOP_LEVEL)
