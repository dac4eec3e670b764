"""How often n-grams find something, and how much of it stands: by how long a match, and judged for nothing.

What they would have proposed is held against what was emitted at every step, whatever that step verified.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field

import numpy as np

from .acceptance_rates import AcceptanceRates, Alikeness, RequestRates, Tried, expected_tokens
from .ngram import TRUSTED, Judgement

MATCHES = (2, 4, 8)
"""Matches of so many tokens and more, up to the next, are taken to be alike: a chance repetition, a phrase, a loop."""
RATES = (0.5, 0.6, 0.8)
"""Acceptance assumed of each before the first was judged."""
SHARED_TOKENS = 4.0
"""Tokens of a kind of match after which positions not yet seen are thought to be like the others."""
FOUND, REQUEST_WEIGHT, WEIGHT = 0.1, 0.1, 0.01
"""Share of the steps that find each kind of match: at first; weight of the newest step of a request, and of all."""


@dataclass
class RequestNgrams:
    """What is known of one request."""

    rates: dict[int, RequestRates] = field(default_factory=dict)
    """By kind of match."""
    shares: np.ndarray | None = None
    """As `NgramRecord.shares`; None: not judged yet."""
    tokens: dict[int, tuple[int, np.ndarray]] = field(default_factory=dict)
    """By kind of match: expected tokens, and after how many judged proposals they were reckoned."""


class NgramRecord:
    """Of all requests of a kind (greedy or drawn)."""

    def __init__(self, longest: int) -> None:
        """`longest`: of a proposal."""
        self._longest = longest
        self._rates = [AcceptanceRates(np.full(longest, rate), SHARED_TOKENS) for rate in RATES]
        self._alike = [Alikeness() for _ in MATCHES]
        self._judged = [0] * len(MATCHES)
        self._shares = np.full(len(MATCHES), FOUND)

    def observe(self, request: RequestNgrams, seen: Judgement) -> None:
        at = bisect_right(MATCHES, seen.match) - 1
        now = np.zeros(len(MATCHES))
        if at >= 0 and seen.found:
            now[at] = 1.0
            self._judge(request, at, seen)
        shares = self.shares(request)
        request.shares = shares + REQUEST_WEIGHT * (now - shares)
        self._shares = self._shares + WEIGHT * (now - self._shares)

    def shares(self, request: RequestNgrams) -> np.ndarray:
        """Of the steps of `request`, that find each of MATCHES; float64 [kinds of match]."""
        return self._shares if request.shares is None else request.shares

    def tokens(self, request: RequestNgrams, at: int) -> np.ndarray:
        """Expected of a step with γ = 0, 1, … tokens after MATCHES[at], as far as it proposes; float64 [γ_max + 1]."""
        # Most matches are of one kind: what the others promise stands.
        after, tokens = request.tokens.get(at, (-1, None))
        if tokens is None or after != self._judged[at]:
            rates = self._rates[at].rates()
            if at in request.rates:
                rates = request.rates[at].corrected(rates, self._alike[at].tokens)
            tokens = expected_tokens(rates[: TRUSTED * MATCHES[at]])
            request.tokens[at] = self._judged[at], tokens
        return tokens

    def _judge(self, request: RequestNgrams, at: int, seen: Judgement) -> None:
        # One more was decided, and fell, where neither the step nor what was found ended.
        fell = seen.stood < min(seen.found, seen.emitted)
        tried = Tried(range(seen.stood + fell), seen.stood, self._longest)
        known = request.rates.setdefault(at, RequestRates(self._longest))
        self._judged[at] += 1
        self._alike[at].observe(known, self._rates[at].rates(), tried)
        self._rates[at].observe(tried)
        known.observe(tried)
