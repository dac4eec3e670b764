"""Regression that goes on for ever: from one observation to the next, with what it does not know."""

from __future__ import annotations

import math

import numpy as np

CLIPPED = 2.5
"""Standard deviations of an error beyond which it counts no more."""
NOISE, LEAST_NOISE, NOISE_WEIGHT = 0.3, 0.02, 0.05
"""Standard deviation of the noise: at first, at least; weight of the newest observation in its square."""
SETTLED_AFTER = 8
"""Observations before the noise is learned: the first errors are those of the start."""


class RobustFilter:
    """y = features · coefficients + noise: mean and covariance of the coefficients (Kalman 1960), errors clipped.

    The noise is learned. What is not observed becomes as uncertain again as it was at first; its mean stays.
    """

    def __init__(self, mean: np.ndarray, covariance: np.ndarray, forgotten: float) -> None:
        """`mean`: float64 [k]; `covariance`: float64 [k, k]; `forgotten`: share of what is known, an observation."""
        self.mean, self.covariance = mean.astype(float), covariance.astype(float)
        self.seen = 0
        self._forgotten = forgotten
        self._returned = forgotten * self.covariance
        self._noise = NOISE**2

    @property
    def noise(self) -> float:
        """Standard deviation, as learned so far."""
        return math.sqrt(self._noise)

    def forget(self) -> None:
        """To be called before an observation."""
        self.covariance *= 1.0 - self._forgotten
        self.covariance += self._returned

    def observe(self, features: np.ndarray, value: float, scale: float = 1.0) -> None:
        """`scale`: of the noise, in that of other observations."""
        towards = self.covariance @ features
        spread = float(features @ towards)
        total = spread + self._noise * scale * scale
        limit = CLIPPED * math.sqrt(total)
        error = min(max(value - float(features @ self.mean), -limit), limit)
        self.mean += towards * (error / total)
        self.covariance -= np.outer(towards, towards / total)
        self.seen += 1
        if self.seen > SETTLED_AFTER:
            noise = max(error * error - spread, 0.25 * error * error) / (scale * scale)
            self._noise = max(self._noise + NOISE_WEIGHT * (noise - self._noise), LEAST_NOISE**2)
