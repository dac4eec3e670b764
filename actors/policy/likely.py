"""Which experts a chunk of tokens will want in a layer whose router has not spoken yet."""

from __future__ import annotations

import numpy as np

MEMORY = 256
"""Tokens: a pass of as many weighs as much as all before it."""

CERTAIN = 0.9
"""Least probability of a use for which a copy is begun before the router has spoken."""


class LikelyExperts:
    """Learns from every pass how large a share of the tokens chooses each expert, at first k of E."""

    def __init__(self, n_layers: int, n_experts: int, top_k: int) -> None:
        self._shares = np.full((n_layers, n_experts), top_k / n_experts)

    def learn(self, row: int, counts: np.ndarray, tokens: int) -> None:
        """`counts` [n_experts]: of `tokens` tokens, how many chose each expert of layer `row`."""
        if tokens:
            self._shares[row] += (counts / tokens - self._shares[row]) * (tokens / (tokens + MEMORY))

    def of(self, row: int, tokens: int) -> list[int]:
        """Experts that `tokens` tokens all but certainly want, most wanted first.

        Wanted at all with probability 1 - (1 - share)^tokens, as if tokens chose independently.
        """
        shares = self._shares[row]
        wanted = np.flatnonzero(1.0 - (1.0 - np.minimum(shares, 1.0)) ** tokens >= CERTAIN)
        return wanted[np.argsort(-shares[wanted], kind="stable")].tolist()
