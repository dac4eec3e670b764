"""Several estimates of one probability made into one: logistic regression, learned online."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .named_arrays import as_part, part_of

PRIOR = 100.0
"""Weight of the starting weights, in samples of medium doubt per feature."""
FORGET = 0.998
"""Factor by which older windows lose weight with each new one."""
QUICK_FORGET = 0.95
"""The same for a regression that follows a new kind of text within some twenty windows."""
TRUST_RATE, TRUST_KEPT = 0.02, 0.8
"""How much a nat of loss counts in the choice between two regressions, and what is kept of it with each window."""


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-np.clip(logits, -30.0, 30.0)))


class OnlineLogistic:
    """Logistic regression whose weights move with each window by a Newton step on a discounted Hessian.

    Samples are the experts of a window, features what is known of each before it. The same weights serve every
    expert, so permuting experts permutes the probabilities.
    """

    def __init__(self, start: np.ndarray, forget: float = FORGET) -> None:
        self._forget = forget
        self._start = np.asarray(start, dtype=np.float64)
        self._weights = self._start.copy()
        self._hessian = PRIOR * np.eye(len(self._start))

    def probability(self, features: np.ndarray) -> np.ndarray:
        """float64 [samples] for [samples, features]."""
        return _sigmoid(features @ self._weights)

    def observe(self, features: np.ndarray, happened: np.ndarray, expected: np.ndarray | None = None) -> None:
        """Learns from what `happened`, [samples] of 0 or 1; `expected`: what `probability` gives, if it is known."""
        expected = self.probability(features) if expected is None else expected
        doubt = expected * (1.0 - expected)
        added = (features * doubt[:, None]).T @ features
        self._hessian = self._forget * self._hessian + added + (1.0 - self._forget) * PRIOR * np.eye(len(self._weights))
        pull = (1.0 - self._forget) * PRIOR * (self._start - self._weights)
        self._weights += np.linalg.solve(self._hessian, features.T @ (happened - expected) + pull)

    def state(self) -> dict[str, np.ndarray]:
        """Weights and Hessian."""
        return {"weights": self._weights.copy(), "hessian": self._hessian.copy()}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Takes up what `state` gave; ValueError when it has other features."""
        weights, hessian = np.asarray(state["weights"]), np.asarray(state["hessian"])
        if weights.shape != self._weights.shape or hessian.shape != self._hessian.shape:
            raise ValueError(f"calibration: weights have shape {weights.shape}; expected {self._weights.shape}")
        self._weights, self._hessian = weights.astype(np.float64), hessian.astype(np.float64)


class SteadyAndQuick:
    """Two `OnlineLogistic` on the same features, one that forgets slowly and one that forgets fast, mixed.

    Weights are exponential in the losses of the latest windows (Herbster & Warmuth, Tracking the Best Expert, 1998):
    known kinds of text are best served by what was learned long, new kinds by what was learned just now.
    """

    def __init__(self, start: np.ndarray) -> None:
        self._steady, self._quick = OnlineLogistic(start), OnlineLogistic(start, QUICK_FORGET)
        self._advantage = 0.0

    def probability(self, features: np.ndarray) -> np.ndarray:
        """float64 [samples] for [samples, features]."""
        return self._mixed(self._steady.probability(features), self._quick.probability(features))

    def observe(self, features: np.ndarray, happened: np.ndarray) -> np.ndarray:
        """Learns from what `happened`, [samples] of 0 or 1; what was missed, float64 [samples]."""
        steady, quick = self._steady.probability(features), self._quick.probability(features)
        missed = happened - self._mixed(steady, quick)
        gained = np.log(np.where(happened, steady, 1.0 - steady) / np.where(happened, quick, 1.0 - quick)).sum()
        self._advantage = TRUST_KEPT * self._advantage + TRUST_RATE * float(gained)
        self._steady.observe(features, happened, steady)
        self._quick.observe(features, happened, quick)
        return missed

    def state(self) -> dict[str, np.ndarray]:
        """Both regressions and how much better the steady one was lately."""
        parts = as_part(self._steady.state(), "steady") | as_part(self._quick.state(), "quick")
        return {**parts, "advantage": np.array(self._advantage)}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Takes up what `state` gave; ValueError when it has other features."""
        self._steady.restore(part_of(state, "steady"))
        self._quick.restore(part_of(state, "quick"))
        self._advantage = float(state["advantage"])

    def _mixed(self, steady: np.ndarray, quick: np.ndarray) -> np.ndarray:
        trust = _sigmoid(np.array(self._advantage))
        return trust * steady + (1.0 - trust) * quick
