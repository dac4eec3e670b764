"""Several estimates of one probability made into one: logistic regression, learned online."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

PRIOR = 100.0
"""Weight of the starting weights, in samples of medium doubt per feature."""
FORGET = 0.998
"""Factor by which older windows lose weight with each new one."""


class OnlineLogistic:
    """Logistic regression whose weights move with each window by a Newton step on a discounted Hessian.

    Samples are the experts of a window, features what is known of each before it. The same weights serve every
    expert, so permuting experts permutes the probabilities.
    """

    def __init__(self, start: np.ndarray) -> None:
        self._start = np.asarray(start, dtype=np.float64)
        self._weights = self._start.copy()
        self._hessian = PRIOR * np.eye(len(self._start))

    def probability(self, features: np.ndarray) -> np.ndarray:
        """float64 [samples] for [samples, features]."""
        return 1.0 / (1.0 + np.exp(-np.clip(features @ self._weights, -30.0, 30.0)))

    def observe(self, features: np.ndarray, happened: np.ndarray) -> np.ndarray:
        """Learns from what `happened`, [samples] of 0 or 1; returns what it missed, float64 [samples]."""
        expected = self.probability(features)
        doubt = expected * (1.0 - expected)
        added = (features * doubt[:, None]).T @ features
        self._hessian = FORGET * self._hessian + added + (1.0 - FORGET) * PRIOR * np.eye(len(self._weights))
        pull = (1.0 - FORGET) * PRIOR * (self._start - self._weights)
        self._weights += np.linalg.solve(self._hessian, features.T @ (happened - expected) + pull)
        return happened - expected

    def state(self) -> dict[str, np.ndarray]:
        """Weights and Hessian."""
        return {"weights": self._weights.copy(), "hessian": self._hessian.copy()}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Takes up what `state` gave; ValueError when it has other features."""
        weights, hessian = np.asarray(state["weights"]), np.asarray(state["hessian"])
        if weights.shape != self._weights.shape or hessian.shape != self._hessian.shape:
            raise ValueError(f"calibration: weights have shape {weights.shape}; expected {self._weights.shape}")
        self._weights, self._hessian = weights.astype(np.float64), hessian.astype(np.float64)
