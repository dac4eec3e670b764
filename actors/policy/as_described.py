"""The utility estimator with boundaries that follow the window, as the paper describes.

For a window of W tokens:

    P(W) = ceil(5·W / 9)     promote boundary; rounded up: promotion never takes less than 5/9 of the window
    K(W) = W − P(W) + 1      highest utility reachable: used by all W tokens, s climbs while W − s >= P(W)

    W      1  2  3  4  5  6  7  8  9 10 13 17 31
    P(W)   1  2  2  3  3  4  4  5  5  6  8 10 18
    K(W)   0  1  2  2  3  3  4  4  5  5  6  8 14

W = 9 gives the released constants (P = 5, K = 5). P and K never fall as W grows. K(1) is 0 by decision, not
by the formula: a single token's routing is a bit, not a count, so one-token windows only let utilities decay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..core import ModelShape, RoutingWindow
from .demand import DecayedDemand, bypasses_utilities, check_window


def promote_boundary(tokens: int) -> int:
    """P(W): a − s at which an expert is promoted, for a window of W = `tokens` >= 1 tokens."""
    return -(-5 * tokens // 9)


def reachable_level(tokens: int) -> int:
    """K(W): the highest utility that windows of W = `tokens` >= 1 tokens can raise an expert to."""
    return 0 if tokens == 1 else tokens - promote_boundary(tokens) + 1


def transition(utilities: np.ndarray, counts: np.ndarray, tokens: int) -> np.ndarray:
    """One step of the inertial transition, element by element, for a window of `tokens` tokens.

    `utilities` s and `counts` a are int arrays of one shape, a <= tokens. a − s >= P(W) → s + 1; a < s → s −
    1. No cap is needed: a <= W keeps promotion below K(W). Utilities earned in longer windows stay above K(W)
    until they decay by this same rule.
    """
    demoted = utilities - (counts < utilities)
    if tokens == 1:
        return demoted
    return np.where(counts - utilities >= promote_boundary(tokens), utilities + 1, demoted)


class AsDescribed:
    """Boundaries scaled to each window's own W. Every expert of every layer moves with every window."""

    by_level = True

    def __init__(self, shape: ModelShape) -> None:
        self._shape = shape
        self._utilities = np.zeros((shape.n_layers, shape.n_experts), dtype=np.int64)
        self._demand = DecayedDemand(shape)
        self._reachable = 0

    @property
    def top_level(self) -> int:
        """K(W) of the last window, or the highest utility left from longer windows if that is more."""
        return max(self._reachable, int(self._utilities.max()))

    def observe(self, window: RoutingWindow) -> None:
        """Takes the routing of one pass; a prefill window of 32 tokens or more leaves utilities alone."""
        check_window(window, self._shape)
        self._demand.observe(window)
        if not bypasses_utilities(window):
            counts = np.asarray(window.counts, dtype=np.int64)
            self._utilities = transition(self._utilities, counts, window.tokens)
            self._reachable = reachable_level(window.tokens)

    def utilities(self) -> np.ndarray:
        """int64 [n_layers, n_experts], 0 or more; a copy."""
        return self._utilities.copy()

    def worth(self, tokens: int, draft: Sequence[int] | None = None, request: str = "") -> np.ndarray:
        """The utilities, whatever comes; float64 [n_layers, n_experts]."""
        return self._utilities.astype(np.float64)

    def expected_counts(self, tokens: int, draft: Sequence[int] | None = None, request: str = "") -> np.ndarray:
        """See `DecayedDemand.expected_counts`; the draft and the request are ignored."""
        return self._demand.expected_counts(tokens)

    def state(self) -> dict[str, np.ndarray]:
        """Empty: nothing here is worth keeping over a restart."""
        return {}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Takes up nothing. Raises ValueError when `state` holds anything."""
        if state:
            raise ValueError(f"estimator state holds {sorted(state)}; this estimator keeps none: discard it")
