"""What turns routing windows into a utility for each expert, and the names it can be asked for by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

from ..core import ModelShape, RoutingWindow
from .as_described import AsDescribed
from .as_released import AsReleased
from .best import Best
from .decayed import Decayed
from .token_table import TokenTable


class UtilityEstimator(Protocol):
    """Learns from every pass of the target which experts deserve residency."""

    by_level: bool
    """Its levels decide about slots, as in the paper's system; else what the expected counts are worth does."""

    @property
    def top_level(self) -> int:
        """K: the highest utility an expert can have now."""

    def observe(self, window: RoutingWindow) -> None:
        """Takes the routing of one pass. Raises ValueError when the counts cannot be this model's."""

    def utilities(self) -> np.ndarray:
        """int64 [n_layers, n_experts], a copy; 0 = not wanted, higher is worth more."""

    def worth(self, tokens: int, draft: Sequence[int] | None = None, request: str = "") -> np.ndarray:
        """What residency is worth before a window of `tokens` tokens: what decides who is exchanged for whom.

        float64 [n_layers, n_experts], comparable over layers; `draft` and `request` as in `expected_counts`.
        """

    def expected_counts(self, tokens: int, draft: Sequence[int] | None = None, request: str = "") -> np.ndarray:
        """Expected (token, slot) pairs in a coming window of `tokens` tokens.

        `draft`: ids of its first tokens, as far as they are known. `request`: whose window comes; '' = of the request
        observed last. Estimators that cannot use them ignore them. float64 [n_layers, n_experts]; each row sums
        to tokens · top_k.
        """

    def state(self) -> dict[str, np.ndarray]:
        """What was learned and is worth keeping over a restart; empty where nothing is."""

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Takes up what `state` gave. Raises ValueError when it is another model's, and then changes nothing."""


_CLASSES: dict[str, Callable[[ModelShape], UtilityEstimator]] = {
    "best": Best,
    "as_described": AsDescribed,
    "as_released": AsReleased,
    "decayed": Decayed,
    "token_table": TokenTable,
}

ESTIMATORS: tuple[str, ...] = tuple(_CLASSES)
"""Names `make_estimator` knows; the first is the default."""


def make_estimator(name: str, shape: ModelShape) -> UtilityEstimator:
    """A fresh estimator. Raises ValueError for an unknown name."""
    if name not in _CLASSES:
        raise ValueError(f"estimator {name!r} is unknown; choose one of {', '.join(ESTIMATORS)}")
    return _CLASSES[name](shape)
