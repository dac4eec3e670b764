"""The utility estimator exactly as in the authors' released code (github.com/lshAlgorithm/MoE-SpAc, 77bb9cf)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..core import ModelShape, RoutingWindow
from .demand import DecayedDemand, bypasses_utilities, check_window

TOP_LEVEL = 5
PROMOTE_BOUNDARY = 5
DEMOTE_BOUNDARY = -1


def transition(utilities: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """One step of the inertial transition, element by element.

    `utilities` s and `counts` a are int arrays of one shape. a − s >= 5 → min(5, s + 1); a − s <= −1 → max(0,
    s − 1). The constants do not follow the window: with W tokens a <= W, so the highest utility reachable is
    W − 4, and W <= 4 never promotes.
    """
    surplus = counts - utilities
    promoted = np.minimum(TOP_LEVEL, utilities + 1)
    demoted = np.maximum(0, utilities - 1)
    return np.where(surplus >= PROMOTE_BOUNDARY, promoted, np.where(surplus <= DEMOTE_BOUNDARY, demoted, utilities))


class AsReleased:
    """Fixed boundaries 5 and −1, five levels. Every expert of every layer moves with every window."""

    by_level = True

    top_level = TOP_LEVEL

    def __init__(self, shape: ModelShape) -> None:
        self._shape = shape
        self._utilities = np.zeros((shape.n_layers, shape.n_experts), dtype=np.int64)
        self._demand = DecayedDemand(shape)

    def observe(self, window: RoutingWindow) -> None:
        """Takes the routing of one pass; a prefill window of 32 tokens or more leaves utilities alone."""
        check_window(window, self._shape)
        self._demand.observe(window)
        if not bypasses_utilities(window):
            self._utilities = transition(self._utilities, np.asarray(window.counts, dtype=np.int64))

    def utilities(self) -> np.ndarray:
        """int64 [n_layers, n_experts] in 0..5; a copy."""
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
