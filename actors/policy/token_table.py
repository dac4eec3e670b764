"""The estimator that knows what each token id was routed to, and how often each expert was asked for lately."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..core import ModelShape, RoutingWindow
from .decayed import Decayed
from .demand import with_mass
from .levels import TOP_LEVEL, to_levels
from .named_arrays import as_part, part_of
from .routing_rows import routing_rows, token_ids
from .token_memory import TokenMemory

PSEUDO = 4.0
"""Observations by which an id's mean is drawn towards the mean of all tokens."""
FLOOR = 0.02
"""Added to the decayed share before its square root is taken."""
TABLE_BYTES = 128 << 20
"""Most memory of the table; a row is 4 bytes an expert."""


class TokenTable:
    """Mean routing of each token id, summed over the draft, times the square root of the decayed share + FLOOR."""

    top_level = TOP_LEVEL
    by_level = False

    def __init__(self, shape: ModelShape) -> None:
        self._shape = shape
        width = shape.n_layers * shape.n_experts
        self._decayed = Decayed(shape)
        self._capacity = max(1, TABLE_BYTES // (4 * width))
        self._table = TokenMemory(width, self._capacity)
        self._sum = np.full(width, shape.top_k / shape.n_experts)
        self._seen = 1.0

    def observe(self, window: RoutingWindow) -> None:
        """Takes the routing of one pass; tokens without ids teach the decayed share and the mean alone."""
        self._decayed.observe(window)
        rows, ids = routing_rows(window, self._shape), token_ids(window)
        if ids is not None:
            self._table.add(ids, rows)
        self._sum += rows.sum(axis=0)
        self._seen += window.tokens

    def worth(self, tokens: int, draft: Sequence[int] | None = None, request: str = "") -> np.ndarray:
        """Table × decayed: float64 [n_layers, n_experts]; `request` is ignored."""
        known = [] if draft is None else [int(i) for i in draft[:tokens]]
        mean = (self._sum / self._seen).astype(np.float32)
        table = self._table.means(known, PSEUDO, mean).sum(axis=0) + (tokens - len(known)) * mean
        grid = table.astype(np.float64).reshape(self._shape.n_layers, self._shape.n_experts)
        return grid * np.sqrt(self._decayed.share() + FLOOR)

    def utilities(self) -> np.ndarray:
        """int64 [n_layers, n_experts] in 0..top_level: levels of the worth a token of an unknown draft has."""
        return to_levels(self.worth(1), np.sqrt(1.0 + FLOOR))

    def expected_counts(self, tokens: int, draft: Sequence[int] | None = None, request: str = "") -> np.ndarray:
        """Expected (token, slot) pairs; float64 [n_layers, n_experts], each row sums to tokens · top_k."""
        if tokens < 0:
            raise ValueError(f"tokens is {tokens}; expected 0 or more")
        return with_mass(self.worth(max(tokens, 1), draft) + 1e-9, tokens, self._shape.top_k)

    def state(self) -> dict[str, np.ndarray]:
        """The table, the mean of all tokens and the decayed share."""
        return {
            **as_part(self._table.state(), "table"),
            **self._decayed.state(),
            "sum": self._sum.copy(),
            "seen": np.array(self._seen),
        }

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Takes up what `state` gave. Raises ValueError when it is another model's."""
        table = TokenMemory(len(self._sum), self._capacity)
        table.restore(part_of(state, "table"))
        self._decayed.restore(state)
        self._table, self._sum, self._seen = table, np.asarray(state["sum"], np.float64), float(state["seen"])
