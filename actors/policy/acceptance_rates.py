"""How likely draft tokens are to stand, by their place: learned over all requests, corrected for the one at hand.

A place tells tokens of unlike chances apart: where a draft says how sure it is, the class of that (`chain.py`); for
n-grams, the position in the chain.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

DECAY, REQUEST_DECAY = 0.995, 0.98
"""Weight that an observation keeps at the next of its place, over all requests (half of it is left after 139, some
requests later), and at the next token in one."""
PRIOR_TOKENS = 4.0
"""A place starts as if so many of its tokens had been seen."""
ALIKE = (4.0, 8.0, 16.0, 32.0, 64.0)
"""A request starts as all others are, as if so many of its tokens had been seen: whichever number predicted best."""
ALIKE_AT_FIRST, ALIKE_LEAD, ALIKE_DECAY = 1, 1.0, 0.998
"""Which of them at first, by how much in the logarithm of likelihood; weight that this keeps at the next step."""
DOUBTED_AFTER = 256.0
"""Steps without an observation after which those before count half."""
BOUNDS = (0.01, 0.99)


class Tried:
    """Draft tokens that were decided: of a chain those that stood, and the one that did not."""

    def __init__(self, places: Sequence[int], accepted: int, longest: int) -> None:
        """`places`: of the tokens decided, each below `longest`; the first `accepted` stood: all, or all but one."""
        if not 0 <= accepted <= len(places) <= accepted + 1:
            raise ValueError(f"{accepted} accepted of {len(places)} tried; of a chain only the last can fail")
        self.tried = np.bincount(np.array(places, dtype=np.intp), minlength=longest).astype(float)
        """Tokens by place; float64 [longest]."""
        self.stood = self.tried.copy()
        if len(places) > accepted:
            self.stood[places[-1]] -= 1.0
        self.tokens, self.accepted = len(places), accepted


class AcceptanceRates:
    """One kind of draft over all requests: the probability that a token stands, given that all before it do."""

    def __init__(self, prior: np.ndarray, shared: float = 0.0) -> None:
        """`prior`: rate of each place before the first observation, float64 [longest]; `shared`: tokens of all places
        after which a place that was not seen is thought to be as the others are, 0: never."""
        self._prior, self._shared = prior, shared
        self._tried = np.zeros(len(prior))
        self._stood = np.zeros(len(prior))

    def observe(self, seen: Tried) -> None:
        kept = DECAY**seen.tried
        self._tried = self._tried * kept + seen.tried
        self._stood = self._stood * kept + seen.stood

    def rates(self) -> np.ndarray:
        """float64 [longest], within BOUNDS."""
        prior = self._prior
        if self._shared:
            tried, stood = self._tried.sum(), self._stood.sum()
            prior = (stood + self._shared * prior) / (tried + self._shared)
        return np.clip((self._stood + PRIOR_TOKENS * prior) / (self._tried + PRIOR_TOKENS), *BOUNDS)

    def doubt(self, unseen: int) -> float:
        """Standard deviation of the mean rate, the greater the longer ago it was observed: `unseen` steps."""
        tried = self._tried.sum() * 0.5 ** (unseen / DOUBTED_AFTER)
        mean = float(self.rates().mean())
        return float(np.sqrt(mean * (1 - mean) / (tried + 1.0)))


class Alikeness:
    """How alike requests are, in tokens, learned from what each was about to show."""

    def __init__(self) -> None:
        self._scores = [0.0] * len(ALIKE)
        self._scores[ALIKE_AT_FIRST] = ALIKE_LEAD

    def observe(self, request: RequestRates, rates: np.ndarray, seen: Tried) -> None:
        """Before `request` learns of `seen`; `rates`: over all requests."""
        if not seen.tokens:
            return
        mean = float(seen.tried @ rates) / seen.tokens
        for i, odds in enumerate(request.odds(rates, ALIKE)):
            rate = min(max(odds * mean / (1.0 - mean + odds * mean), BOUNDS[0]), BOUNDS[1])
            gained = seen.accepted * math.log(rate) + (seen.tokens - seen.accepted) * math.log(1.0 - rate)
            self._scores[i] = ALIKE_DECAY * self._scores[i] + gained

    @property
    def tokens(self) -> float:
        """A request starts as if so many of its tokens had been seen."""
        return ALIKE[self._scores.index(max(self._scores))]


class RequestRates:
    """One kind of draft in one request: the odds of all places times one factor, learned from it."""

    def __init__(self, longest: int) -> None:
        """`longest`: places."""
        self.tried = np.zeros(longest)
        """Tokens by place, the newest count most; float64 [longest]."""
        self._stood = 0.0

    def observe(self, seen: Tried) -> None:
        kept = REQUEST_DECAY**seen.tokens
        self.tried = self.tried * kept + seen.tried
        self._stood = self._stood * kept + seen.accepted

    def doubt(self, rates: np.ndarray, alike: float) -> float:
        """Standard deviation of the mean rate here about that of `rates`; `alike`: as `Alikeness.tokens`."""
        mean = float(rates.mean())
        return float(np.sqrt(mean * (1 - mean) / (self.tried.sum() + alike)))

    def corrected(self, rates: np.ndarray, alike: float = ALIKE[ALIKE_AT_FIRST]) -> np.ndarray:
        """`rates` over all requests, as they are in this one; within BOUNDS. `alike`: as `Alikeness.tokens`."""
        odds = self.odds(rates, (alike,))[0]
        return np.clip(odds * rates / (1.0 - rates + odds * rates), *BOUNDS)

    def odds(self, rates: np.ndarray, alike: Sequence[float]) -> list[float]:
        """Factor of the odds of `rates` in this request, for each of `alike`."""
        tried = float(self.tried.sum())
        # Held against today's rates, which have learned from this request too: nothing is counted twice.
        expected = float(self.tried @ rates)
        share = expected / tried if tried else 0.5
        found = []
        for tokens in alike:
            stood, total, usual = self._stood + tokens * share, tried + tokens, expected + tokens * share
            found.append(stood / max(total - stood, 1e-9) * (total - usual) / usual)
        return found


def expected_tokens(rates: np.ndarray) -> np.ndarray:
    """Tokens emitted by a step with γ = 0 … γ_max draft tokens: 1 + Σ_{j≤γ} Π_{i≤j} rate_i; float64 [γ_max + 1]."""
    return 1.0 + np.concatenate([[0.0], np.cumsum(np.cumprod(rates))])
