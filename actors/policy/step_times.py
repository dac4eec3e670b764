"""What a step takes as a function of its draft, learned from the steps before: drafting, and all the rest.

Everything is held against what a step without a draft takes at present, in logarithms: load on the machine, and the
text's demand for experts, change all steps alike, and only how they relate decides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .robust_filter import RobustFilter

GROWTH = 0.5
"""A window of W tokens is assumed to take W^GROWTH times as long as one of a token: its tokens share experts, whose
union grows as about W^0.6, and part of a pass is the same for all."""
GROWTH_DEVIATION, WINDOW_DEVIATION = 0.15, 0.1
"""Standard deviations of that exponent, and of what a window takes beside it, for windows of e tokens."""
DRIFT, DRIFT_AT_FIRST, FILLED_AFTER = 0.07, 0.3, 8
"""Standard deviation of the change from step to step, in that of the noise; so much more at first, and how long: caches
fill."""
WINDOW_FORGOTTEN, DRAFT_FORGOTTEN = 1 / 1000, 1 / 100
"""Share of what is known of windows, and of drafts, that each step takes away."""
DRAFT_DEVIATION, LEAST_DRAFT_DEVIATION = 1.0, 0.02
"""Of a draft's prior, relative, and at least."""
LEAST_DRAFT = 0.01
"""The noise of drafting is as its time, or as this if that is less; in steps without a draft."""


class WindowTimes:
    """Seconds of a step beside its drafting, by its window: those of one token, times a factor for each length.

    log factor(W) is a line in log W and, beside it, a Brownian motion in log W: near lengths are alike.
    """

    def __init__(self, longest: int) -> None:
        """`longest`: of a window, in tokens."""
        x = np.log(np.arange(1, longest + 1))
        covariance = GROWTH_DEVIATION**2 * np.outer(x, x) + WINDOW_DEVIATION**2 * np.minimum.outer(x, x)
        # The factor of one token is 1, so that its place is free for the logarithm of its seconds.
        self._filter = RobustFilter(GROWTH * x, covariance, WINDOW_FORGOTTEN)
        self._features = np.eye(longest)
        self._features[:, 0] = 1.0

    def observe(self, tokens: int, seconds: float) -> None:
        """A step with a window of `tokens` took `seconds` beside its drafting."""
        known, features, logarithm = self._filter, self._features[tokens - 1], math.log(max(seconds, 1e-9))
        if not known.seen:
            known.mean[0] = logarithm - float(features[1:] @ known.mean[1:])
        known.forget()
        known.covariance[0, 0] += (DRIFT * known.noise + DRIFT_AT_FIRST / (1.0 + known.seen / FILLED_AFTER)) ** 2
        known.observe(features, logarithm)

    @property
    def seconds(self) -> float:
        """Of a step with a window of one token, at present."""
        return math.exp(self._filter.mean[0])

    def factors(self) -> np.ndarray:
        """What windows of 1, 2, … tokens take in windows of one; float64 [longest]."""
        factors = np.exp(self._filter.mean)
        factors[0] = 1.0
        return factors

    def doubts(self, tokens: int) -> np.ndarray:
        """Standard deviations of the logarithms of all factors over that of `tokens`; float64 [longest]."""
        covariance = self._filter.covariance.copy()
        covariance[0], covariance[:, 0] = 0.0, 0.0
        at = tokens - 1
        return np.sqrt(np.maximum(covariance.diagonal() + covariance[at, at] - 2.0 * covariance[at], 0.0))


class DraftTimes:
    """Time of one kind of draft: call + token · γ + behind · tokens to catch up on; in steps without a draft."""

    def __init__(self, prior: Sequence[float]) -> None:
        """`prior`: (call, token, behind), all that is known of a draft never asked."""
        mean = np.array(prior, dtype=float)
        deviation = np.maximum(DRAFT_DEVIATION * mean, LEAST_DRAFT_DEVIATION * (mean > 0))
        self._filter = RobustFilter(mean, np.diag(deviation**2), DRAFT_FORGOTTEN)

    def observe(self, gamma: int, behind: int, took: float) -> None:
        """`took`: in steps without a draft, as everything here."""
        features = np.array((1.0, gamma, behind))
        self._filter.forget()
        self._filter.observe(features, took, max(float(features @ self._filter.mean), LEAST_DRAFT))
        np.maximum(self._filter.mean, 0.0, out=self._filter.mean)

    def times(self, longest: int) -> np.ndarray:
        """Of γ = 0, 1, … tokens, nothing to catch up on; 0 for γ = 0; float64 [longest + 1]."""
        times = self._filter.mean[0] + self._filter.mean[1] * np.arange(longest + 1)
        times[0] = 0.0
        return times

    def catch_up(self, behind: int) -> float:
        """For `behind` tokens."""
        return float(self._filter.mean[2] * behind)
