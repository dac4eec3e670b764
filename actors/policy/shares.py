"""How often each expert was asked for lately, at several memory lengths at once."""

from __future__ import annotations

import numpy as np


class DecayedShares:
    """Exponentially decayed mean of routing rows, one for each rate.

    `rates`: weight of the newest token against all before it, in (0, 1]; 1 remembers the last token alone.
    `start`: what every mean begins with, [width] or [rates, width].
    """

    def __init__(self, rates: tuple[float, ...], start: np.ndarray) -> None:
        self._rates = np.asarray(rates)
        self.values = np.broadcast_to(np.asarray(start, np.float32), (len(rates), np.shape(start)[-1])).copy()
        """float32 [rates, width]."""

    def add(self, rows: np.ndarray, most: float = 1.0) -> None:
        """Takes `rows` float32 [tokens, width], oldest first; together they weigh at most `most` in every mean."""
        if not len(rows):
            return
        ages = np.arange(len(rows) - 1, -1, -1)
        weights = self._rates[:, None] * (1.0 - self._rates[:, None]) ** ages
        total = weights.sum(axis=1, keepdims=True)
        weights *= np.minimum(1.0, most / total)
        kept = 1.0 - weights.sum(axis=1, keepdims=True)
        self.values = (kept * self.values + weights @ rows).astype(np.float32)
