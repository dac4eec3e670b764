"""How likely draft tokens are to stand, by position: learned over all requests, corrected for the one at hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

DECAY, REQUEST_DECAY = 0.995, 0.98
"""Weight that an observation keeps at the next of its position, over all requests (half of it is left after 139, some
requests later) and in one."""
PRIOR_TOKENS = 8.0
"""A draft's mean rate starts as if so many of its tokens had been seen."""
POSITION_PRIOR_TOKENS = 4.0
"""A position starts at the mean rate, as if so many of its tokens had been seen."""
ALIKE = (4.0, 8.0, 16.0, 32.0, 64.0)
"""A request starts as all others are, as if so many of its tokens had been seen: whichever number predicted best."""
ALIKE_AT_FIRST, ALIKE_LEAD, ALIKE_DECAY = 1, 1.0, 0.998
"""Which of them at first, by how much in the logarithm of likelihood; weight that this keeps at the next step."""
DOUBTED_AFTER = 256.0
"""Steps without an observation after which those before count half."""
BOUNDS = (0.01, 0.99)


class AcceptanceRates:
    """One kind of draft over all requests: the probability that position i stands, given that all before it do."""

    def __init__(self, longest: int, prior: float) -> None:
        """`longest`: positions; `prior`: rate assumed before the first observation."""
        self._prior = prior
        self._tried = np.zeros(longest)
        self._stood = np.zeros(longest)

    def observe(self, tried: int, accepted: int) -> None:
        """Of a draft the first `tried` positions were decided and the first `accepted` stood: as many, or one fewer."""
        if not 0 <= accepted <= tried <= accepted + 1:
            raise ValueError(f"{accepted} accepted of {tried} tried; of a chain only the last can fail")
        self._tried[:tried] *= DECAY
        self._stood[:tried] *= DECAY
        self._tried[:tried] += 1.0
        self._stood[:accepted] += 1.0

    def rates(self) -> np.ndarray:
        """float64 [longest], within BOUNDS."""
        mean = (self._stood.sum() + PRIOR_TOKENS * self._prior) / (self._tried.sum() + PRIOR_TOKENS)
        rates = (self._stood + POSITION_PRIOR_TOKENS * mean) / (self._tried + POSITION_PRIOR_TOKENS)
        return np.clip(rates, *BOUNDS)

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

    def observe(self, request: RequestRates, rates: np.ndarray, tried: int, accepted: int) -> None:
        """Before `request` learns of `tried` and `accepted`; `rates`: over all requests."""
        if not tried:
            return
        mean = float(rates[:tried].mean())
        for i, odds in enumerate(request.odds(rates, ALIKE)):
            rate = min(max(odds * mean / (1.0 - mean + odds * mean), BOUNDS[0]), BOUNDS[1])
            gained = accepted * math.log(rate) + (tried - accepted) * math.log(1.0 - rate)
            self._scores[i] = ALIKE_DECAY * self._scores[i] + gained

    @property
    def tokens(self) -> float:
        """A request starts as if so many of its tokens had been seen."""
        return ALIKE[self._scores.index(max(self._scores))]


class RequestRates:
    """One kind of draft in one request: the odds of all positions times one factor, learned from it."""

    def __init__(self, longest: int) -> None:
        """`longest`: positions."""
        self._tried = np.zeros(longest)
        self._stood = 0.0

    def observe(self, tried: int, accepted: int) -> None:
        """As `AcceptanceRates.observe`."""
        self._tried *= REQUEST_DECAY**tried
        self._tried[:tried] += 1.0
        self._stood = REQUEST_DECAY**tried * self._stood + accepted

    def doubt(self, rates: np.ndarray, alike: float) -> float:
        """Standard deviation of the mean rate here about that of `rates`; `alike`: as `Alikeness.tokens`."""
        mean = float(rates.mean())
        return float(np.sqrt(mean * (1 - mean) / (self._tried.sum() + alike)))

    def corrected(self, rates: np.ndarray, alike: float = ALIKE[ALIKE_AT_FIRST]) -> np.ndarray:
        """`rates` over all requests, as they are in this one; within BOUNDS. `alike`: as `Alikeness.tokens`."""
        odds = self.odds(rates, (alike,))[0]
        return np.clip(odds * rates / (1.0 - rates + odds * rates), *BOUNDS)

    def odds(self, rates: np.ndarray, alike: Sequence[float]) -> list[float]:
        """Factor of the odds of `rates` in this request, for each of `alike`."""
        tried = float(self._tried.sum())
        # Held against today's rates, which have learned from this request too: nothing is counted twice.
        expected = float(self._tried @ rates)
        share = expected / tried if tried else 0.5
        found = []
        for tokens in alike:
            stood, total, usual = self._stood + tokens * share, tried + tokens, expected + tokens * share
            found.append(stood / max(total - stood, 1e-9) * (total - usual) / usual)
        return found


def expected_tokens(rates: np.ndarray) -> np.ndarray:
    """Tokens emitted by a step with γ = 0 … γ_max draft tokens: 1 + Σ_{j≤γ} Π_{i≤j} rate_i; float64 [γ_max + 1]."""
    return 1.0 + np.concatenate([[0.0], np.cumsum(np.cumprod(rates))])
