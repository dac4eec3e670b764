"""The estimator that knows only how often each expert was asked for lately."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..core import ModelShape, RoutingWindow
from .demand import check_window
from .levels import TOP_LEVEL, to_levels
from .shares import DecayedShares

WINDOW_WEIGHT = 0.3
"""Weight of a window against all before it, however many tokens it has."""


class Decayed:
    """Exponentially decayed mean, over windows, of the share of tokens routed to each expert."""

    top_level = TOP_LEVEL
    by_level = False

    def __init__(self, shape: ModelShape) -> None:
        self._shape = shape
        start = np.full(shape.n_layers * shape.n_experts, shape.top_k / shape.n_experts)
        self._shares = DecayedShares((WINDOW_WEIGHT,), start)

    def observe(self, window: RoutingWindow) -> None:
        """Takes the routing of one pass; a prompt of 32 tokens or more weighs as much as any other window."""
        check_window(window, self._shape)
        self._shares.add(np.asarray(window.counts, np.float32).reshape(1, -1) / window.tokens)

    def share(self) -> np.ndarray:
        """Probability that a token is routed to an expert; float64 [n_layers, n_experts]."""
        return self._shares.values[0].astype(np.float64).reshape(self._shape.n_layers, self._shape.n_experts)

    def worth(self, tokens: int, draft: Sequence[int] | None = None, request: str = "") -> np.ndarray:
        """The expected counts: float64 [n_layers, n_experts]; `draft` and `request` are ignored."""
        return self.expected_counts(tokens)

    def utilities(self) -> np.ndarray:
        """int64 [n_layers, n_experts] in 0..top_level: levels of the share."""
        return to_levels(self.share(), 1.0)

    def expected_counts(self, tokens: int, draft: Sequence[int] | None = None, request: str = "") -> np.ndarray:
        """Expected (token, slot) pairs; float64 [n_layers, n_experts], each row sums to tokens · top_k."""
        if tokens < 0:
            raise ValueError(f"tokens is {tokens}; expected 0 or more")
        share = self.share()
        return tokens * share * (self._shape.top_k / share.sum(axis=1, keepdims=True))

    def state(self) -> dict[str, np.ndarray]:
        """The shares."""
        return {"shares": self._shares.values.copy()}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Takes up what `state` gave. Raises ValueError when it is another model's."""
        shares = np.asarray(state["shares"], np.float32)
        if shares.shape != self._shares.values.shape:
            raise ValueError(f"estimator state: shares have shape {shares.shape}; this model's is another: discard it")
        self._shares.values = shares
