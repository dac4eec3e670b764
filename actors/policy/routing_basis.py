"""The few directions in which the routing of tokens varies most."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class RoutingBasis:
    """Principal components of routing rows."""

    mean: np.ndarray
    """float32 [width]: the mean row."""
    directions: np.ndarray
    """float32 [width, rank], orthonormal, the strongest first."""

    @classmethod
    def of(cls, rows: np.ndarray, rank: int) -> RoutingBasis:
        """Of `rows` float32 [tokens, width]; of fewer directions than `rank` where there are fewer tokens."""
        mean = rows.mean(axis=0)
        centred = (rows - mean).astype(np.float64)
        values, vectors = np.linalg.eigh(centred @ centred.T)
        strongest = np.argsort(-values)[:rank]
        strongest = strongest[values[strongest] > 1e-9 * max(values.max(), 1.0)]
        directions = centred.T @ (vectors[:, strongest] / np.sqrt(values[strongest]))
        return cls(mean, np.ascontiguousarray(directions, dtype=np.float32))

    @property
    def rank(self) -> int:
        """How many directions there are."""
        return self.directions.shape[1]

    def coordinates(self, rows: np.ndarray, rank: int) -> np.ndarray:
        """float32 [rows, rank]: of `rows` in the strongest `rank` directions."""
        return (rows - self.mean) @ self.directions[:, :rank]
