"""Many ridge regressions on the same inputs, kept exact after every sample: recursive least squares."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

WIDEN_AT = 1.003
"""The covariance is widened when it should be by this factor: that touches as much memory as learning does."""


class RecursiveRidge:
    """Weights B minimising the discounted Σ ‖y − x·B‖² + ridge·‖B‖².

    One weight matrix [inputs, outputs] for all outputs, since they share the covariance of the inputs
    (Haykin, Adaptive Filter Theory, ch. 10; a block of samples at a time by the Woodbury identity). `forget` is the
    factor by which older samples lose weight with each new one, by widening the covariance; no input's variance grows
    beyond its first: inputs that stay away would otherwise widen it without bound.
    """

    def __init__(self, inputs: int, outputs: int, ridge: float, forget: float = 1.0) -> None:
        self._ridge, self._forget = ridge, forget
        self._covariance = np.eye(inputs) / ridge
        self._not_widened = 0
        self._weights = np.zeros((inputs, outputs), dtype=np.float32)

    def predict(self, inputs: np.ndarray) -> np.ndarray:
        """float32 [samples, outputs] for float32 [samples, inputs]."""
        return inputs @ self._weights

    def observe(self, inputs: np.ndarray, surprise: np.ndarray) -> None:
        """Learns from `surprise` [samples, outputs]: what was seen minus what `predict(inputs)` gives now."""
        x = inputs.astype(np.float64)
        self._widen(len(x))
        spread = self._covariance @ x.T
        lower = _cholesky(np.eye(len(x)) + x @ spread)
        if lower is None:
            # Spoilt by rounding, or by a file. What was learned stays; how sure it is is found anew.
            self._covariance, self._not_widened = np.eye(len(self._covariance)) / self._ridge, 0
            return
        # The square of one matrix: what is left of the covariance stays symmetric, whatever is rounded.
        half = np.linalg.solve(lower, spread.T)
        self._weights += np.linalg.solve(lower.T, half).T.astype(np.float32) @ surprise
        self._covariance -= half.T @ half

    def _widen(self, samples: int) -> None:
        self._not_widened += samples
        factor = self._forget**-self._not_widened
        if factor < WIDEN_AT:
            return
        widest = 1.0 / (self._ridge * np.diagonal(self._covariance))
        widening = np.sqrt(np.minimum(factor, np.maximum(widest, 1.0)))
        # One product, the same for (i, j) and (j, i): what is not symmetric would grow with every sample.
        self._covariance *= np.outer(widening, widening)
        self._not_widened = 0

    def state(self) -> dict[str, np.ndarray]:
        """Weights, covariance, and samples for which it is not widened yet."""
        arrays = {"weights": self._weights.copy(), "covariance": self._covariance.copy()}
        return arrays | {"not_widened": np.array(self._not_widened)}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Takes up what `state` gave; ValueError when it is of another size."""
        weights, covariance = np.asarray(state["weights"]), np.asarray(state["covariance"])
        if weights.shape != self._weights.shape or covariance.shape != self._covariance.shape:
            raise ValueError(f"regression: weights have shape {weights.shape}; expected {self._weights.shape}")
        self._weights, self._covariance = weights.astype(np.float32), covariance.astype(np.float64)
        self._not_widened = int(state["not_widened"])


def _cholesky(matrix: np.ndarray) -> np.ndarray | None:
    """Its lower factor; None where it has none: not positive definite, or not finite."""
    if not np.isfinite(matrix).all():
        return None
    try:
        return np.linalg.cholesky(matrix)
    except np.linalg.LinAlgError:
        return None
