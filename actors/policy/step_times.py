"""What a step takes as a function of its draft, learned from the steps before: drafting, verification, and the rest.

seconds to verify = pass + hit · resident experts + miss · other experts + token · tokens, times what windows of that
length were found to take beside it. The experts of W tokens are experts · W^growth: neighbours share them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .robust_fit import fit_coefficients

RING = 512
"""Steps remembered for a fit; older ones are forgotten."""
FITTED_AT_ONCE, REFIT_EVERY = 8, 32
"""The first steps are each followed by a fit, then every so many: it takes 1 or 2 ms."""
GROWTH = 0.6
"""Exponent assumed of the union of experts before windows of different lengths were seen."""
GROWTH_WEIGHT = 0.3
"""Of that assumption, against squared deviations of the windows' logarithms."""
GROWTH_DECAY, BESIDE_DECAY = 0.995, 0.98
"""Weight that a step's experts, and its time beside the formula, keep at the next step."""
VERIFY_PRIOR = (0.4, 0.002, 0.004, 0.05)
"""(pass, hit, miss, token) in proportion; only where few steps were seen."""
PACE_WEIGHT = 0.2
"""Of the newest step in the machine's pace."""
BESIDE_PRIOR = 20.0
"""A window's own correction starts at 1, as if so many steps had been predicted exactly."""


class Fit:
    """seconds = features · coefficients, robust, from the latest RING samples."""

    def __init__(self, prior: Sequence[float]) -> None:
        self._prior = np.array(prior, dtype=float)
        self._features: deque[Sequence[float]] = deque(maxlen=RING)
        self._seconds: deque[float] = deque(maxlen=RING)
        self._unfitted = 0
        self.samples = 0
        self.coefficients = self._prior

    def observe(self, features: Sequence[float], seconds: float) -> None:
        self._features.append(features)
        self._seconds.append(max(seconds, 1e-9))
        self.samples += 1
        self._unfitted += 1
        if self.samples <= FITTED_AT_ONCE or self._unfitted >= REFIT_EVERY:
            self.coefficients = fit_coefficients(np.array(self._features), np.array(self._seconds), self._prior)
            self._unfitted = 0


class ExpertGrowth:
    """Experts that a window of W tokens uses: a · W^b, least squares in logarithms, older windows forgotten."""

    def __init__(self) -> None:
        self._weight = self._x = self._y = self._xx = self._xy = 0.0

    def observe(self, tokens: int, experts: int) -> None:
        x, y = np.log(tokens), np.log(experts + 1.0)
        for name, value in (("_weight", 1.0), ("_x", x), ("_y", y), ("_xx", x * x), ("_xy", x * y)):
            setattr(self, name, GROWTH_DECAY * getattr(self, name) + value)

    def experts(self, tokens: np.ndarray) -> np.ndarray:
        """float64, for each of `tokens` (>= 1); zeros before the first observation."""
        if not self._weight:
            return np.zeros(len(tokens))
        x, y = self._x / self._weight, self._y / self._weight
        spread = self._xx - self._weight * x * x
        together = self._xy - self._weight * x * y
        growth = np.clip((together + GROWTH_WEIGHT * GROWTH) / (spread + GROWTH_WEIGHT), 0.0, 1.0)
        return np.maximum(0.0, np.exp(y + growth * (np.log(tokens) - x)) - 1.0)


@dataclass(frozen=True)
class VerifySample:
    """One verification: tokens of its window, experts used by residence, seconds."""

    tokens: int
    hits: int
    misses: int
    seconds: float


class VerifyTimes:
    """Seconds of a verification by its window."""

    def __init__(self, longest: int) -> None:
        """`longest`: of a window, in tokens."""
        self._tokens = np.arange(1, longest + 1)
        self._fit = Fit(VERIFY_PRIOR)
        self._hits, self._misses = ExpertGrowth(), ExpertGrowth()
        self._beside = np.zeros(longest)
        self._weight = np.zeros(longest)
        self._log_pace = 0.0

    @property
    def pace(self) -> float:
        """How much longer everything takes at present than it usually does: others use the machine too."""
        return float(np.exp(self._log_pace))

    def observe(self, sample: VerifySample) -> None:
        at = sample.tokens - 1
        self._hits.observe(sample.tokens, sample.hits)
        self._misses.observe(sample.tokens, sample.misses)
        features = (1.0, sample.hits, sample.misses, sample.tokens)
        usual_s = sample.seconds / self.pace
        if self._fit.samples >= FITTED_AT_ONCE:
            surprise = np.log(max(usual_s, 1e-9) / max(float(np.dot(features, self._fit.coefficients)), 1e-9))
            self._log_pace += PACE_WEIGHT * float(np.clip(surprise, -1.0, 1.0))
        self._fit.observe(features, usual_s)
        # A step that was held up, by whatever, says little of the next one.
        ratio = np.clip(usual_s / self._by_experts()[at], 0.5, 2.0)
        self._beside[at] = BESIDE_DECAY * self._beside[at] + ratio
        self._weight[at] = BESIDE_DECAY * self._weight[at] + 1.0

    def seconds(self) -> np.ndarray:
        """float64 [longest]: of a window of 1, 2, … tokens, at the usual pace."""
        # A window borrows from its neighbours, the less the farther they are.
        near = np.exp(-np.abs(self._tokens[:, None] - self._tokens[None, :]).astype(float))
        return self._by_experts() * (near @ self._beside + BESIDE_PRIOR) / (near @ self._weight + BESIDE_PRIOR)

    def _by_experts(self) -> np.ndarray:
        hits, misses = self._hits.experts(self._tokens), self._misses.experts(self._tokens)
        features = np.stack([np.ones(len(self._tokens)), hits, misses, self._tokens], axis=1)
        return np.maximum(features @ self._fit.coefficients, 1e-9)


class DraftTimes:
    """Seconds of one kind of draft: call + token · γ + behind · tokens to catch up on."""

    def __init__(self, prior: Sequence[float]) -> None:
        """`prior`: (call, token, behind) in passes of one token: all that is known of a draft never asked."""
        self._fit = Fit(prior)
        self._asked = False

    def observe(self, gamma: int, behind: int, seconds: float) -> None:
        self._fit.observe((1.0, gamma, behind), seconds)
        self._asked = True

    def seconds(self, longest: int, pass_s: float) -> np.ndarray:
        """float64 [longest + 1]: of γ = 0, 1, … tokens, nothing to catch up on; 0 for γ = 0.

        `pass_s`: seconds of a verification of one token, the measure of a draft never asked.
        """
        call, token, _ = self._coefficients(pass_s)
        times = call + token * np.arange(longest + 1)
        times[0] = 0.0
        return times

    def catch_up(self, behind: int, pass_s: float) -> float:
        """Seconds for `behind` tokens."""
        return float(self._coefficients(pass_s)[2] * behind)

    def _coefficients(self, pass_s: float) -> np.ndarray:
        return self._fit.coefficients * (1.0 if self._asked else pass_s)
