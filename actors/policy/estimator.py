"""What turns routing windows into a utility for each expert, and the names it can be asked for by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from ..core import ModelShape, RoutingWindow
from .as_described import AsDescribed
from .as_released import AsReleased


class UtilityEstimator(Protocol):
    """Learns from every pass of the target which experts deserve residency."""

    @property
    def top_level(self) -> int:
        """K: the highest utility an expert can have now."""

    def observe(self, window: RoutingWindow) -> None:
        """Takes the routing of one pass. Raises ValueError when the counts cannot be this model's."""

    def utilities(self) -> np.ndarray:
        """int64 [n_layers, n_experts], a copy; 0 = not wanted, higher is worth more."""

    def expected_counts(self, tokens: int) -> np.ndarray:
        """Expected (token, slot) pairs in a coming window of `tokens` tokens.

        float64 [n_layers, n_experts]; each row sums to tokens · top_k.
        """


_CLASSES: dict[str, Callable[[ModelShape], UtilityEstimator]] = {"as_described": AsDescribed, "as_released": AsReleased}

ESTIMATORS: tuple[str, ...] = tuple(_CLASSES)
"""Names `make_estimator` knows; the first is the default."""


def make_estimator(name: str, shape: ModelShape) -> UtilityEstimator:
    """A fresh estimator. Raises ValueError for an unknown name."""
    if name not in _CLASSES:
        raise ValueError(f"estimator {name!r} is unknown; choose one of {', '.join(ESTIMATORS)}")
    return _CLASSES[name](shape)
