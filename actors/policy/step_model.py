"""What a step with a given draft yields and takes: acceptance against drafting, verification and the rest."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from ..core import DraftChoice
from .acceptance_rates import BOUNDS, AcceptanceRates, RequestRates, expected_tokens
from .step_times import DraftTimes, VerifySample, VerifyTimes

LONGEST = 16
"""Most draft tokens a step."""
NGRAM = "ngram"
RATES = {"model": 0.7, NGRAM: 0.6, "self": 0.7}
"""Acceptance assumed of a draft never verified."""
TIMES = {"model": (0.1, 0.25, 0.01), NGRAM: (0.01, 0.0001, 0.0), "self": (0.1, 0.8, 0.0)}
"""`DraftTimes` priors."""
MATCH_WEIGHT = 0.1
"""Of the newest step in the share of steps for which n-grams find something."""
REST_REMEMBERED = 32
"""Steps whose median is the time beside drafting and verifying."""


@dataclass(frozen=True)
class StepSeen:
    """What a step did; all times in seconds."""

    kind: str
    """Of the draft that proposed; empty: none did."""
    asked: int
    """Tokens it was asked for."""
    proposed: int
    accepted: int
    hits: int
    """Distinct experts of all layers that were resident."""
    misses: int
    """Distinct experts of all layers that were not."""
    draft_s: float
    verify_s: float
    """With the wait for experts that were away: their transfers, and what other devices took."""
    turn_s: float
    """The whole step, as the scheduler waits for it."""
    behind: Mapping[str, int] = field(default_factory=dict)
    """By kind: tokens that its next proposal must catch up on."""
    ngrams_found_nothing: bool = False
    """They were asked, and another draft or none was verified."""


@dataclass
class RequestDrafts:
    """What is known of one request."""

    behind: dict[str, int] = field(default_factory=dict)
    """As `StepSeen.behind`."""
    rates: dict[str, RequestRates] = field(default_factory=dict)
    found: float = 0.5
    """Share of the steps for which n-grams found something."""
    last: dict[bool, DraftChoice | None] = field(default_factory=dict)
    """Of the step before: what was chosen of n-grams (True) and of all else (False)."""


@dataclass(frozen=True)
class Options:
    """Drafts that a step might have, and what each promises."""

    choices: tuple[DraftChoice | None, ...]
    """None: no draft."""
    tokens: np.ndarray
    """Expected; float64, one a choice."""
    seconds: np.ndarray
    """Expected; float64, one a choice."""

    def gains(self, rate: float) -> np.ndarray:
        """Tokens more than `rate` (tokens a second) would yield in the same time; float64, one a choice."""
        return self.tokens - rate * self.seconds

    def __add__(self, other: Options) -> Options:
        return Options(
            self.choices + other.choices,
            np.concatenate([self.tokens, other.tokens]),
            np.concatenate([self.seconds, other.seconds]),
        )


class StepModel:
    """Learns from every step; deterministic."""

    def __init__(self, kinds: Sequence[str]) -> None:
        """`kinds`: of the drafts there are."""
        self._rates = {kind: AcceptanceRates(LONGEST, RATES[kind]) for kind in kinds}
        self._times = {kind: DraftTimes(TIMES[kind]) for kind in kinds}
        self._verify = VerifyTimes(LONGEST + 1)
        self._rest: deque[float] = deque(maxlen=REST_REMEMBERED)
        self._pass_s = self._verify.seconds()

    def observe(self, request: RequestDrafts, seen: StepSeen, times_only: bool = False) -> None:
        """`times_only`: of a step whose text says nothing of real ones."""
        sample = VerifySample(seen.proposed + 1, seen.hits, seen.misses, seen.verify_s)
        # Everything is learned at the usual pace: how times relate is what decides, and load tells nothing of that.
        pace = self._verify.pace
        self._verify.observe(sample)
        self._rest.append(max(0.0, seen.turn_s - seen.draft_s - seen.verify_s) / pace)
        self._pass_s = self._verify.seconds() + float(np.median(self._rest))
        if seen.kind:
            self._times[seen.kind].observe(seen.proposed, request.behind.get(seen.kind, 0), seen.draft_s / pace)
            if not times_only:
                self._learn_rates(request, seen)
        if not times_only and NGRAM in self._rates and (seen.kind == NGRAM or seen.ngrams_found_nothing):
            request.found += MATCH_WEIGHT * ((seen.kind == NGRAM) - request.found)
        request.behind = dict(seen.behind)

    def unassisted(self) -> Options:
        """A step without a draft."""
        return Options((None,), np.ones(1), self._pass_s[:1] * self._verify.pace)

    def options(
        self, request: RequestDrafts, kind: str, least: int, most: int, remaining: int, unseen: int | None = None
    ) -> Options:
        """Steps with `least` (>= 1) to `most` tokens of `kind`; `remaining`: tokens that the request still wants.

        What must be caught up on first is paid once and shared by all the steps that remain. `unseen`: steps since
        `kind` was verified last; given, its rates are taken as high as they may well be.
        """
        rates = self._rates[kind].rates()
        if kind in request.rates:
            rates = request.rates[kind].corrected(rates)
        if unseen is not None:
            rates = np.minimum(rates + self._rates[kind].doubt(unseen), BOUNDS[1])
        tokens = expected_tokens(rates)
        seconds = self._pass_s + self._times[kind].seconds(LONGEST, float(self._pass_s[0]))
        seconds += self._catch_up(request, kind) * np.minimum(1.0, tokens / max(1, remaining))
        part = slice(least, most + 1)
        return Options(_choices(kind)[part], tokens[part], seconds[part] * self._verify.pace)

    def catch_up(self, request: RequestDrafts, kind: str) -> float:
        """Seconds that the next proposal of `kind` takes longer for what it is behind."""
        return self._catch_up(request, kind) * self._verify.pace

    def _catch_up(self, request: RequestDrafts, kind: str) -> float:
        return self._times[kind].catch_up(request.behind.get(kind, 0), float(self._pass_s[0]))

    def _learn_rates(self, request: RequestDrafts, seen: StepSeen) -> None:
        # A proposal shorter than asked for ended its chain as a rejected token does.
        tried = min(seen.asked, seen.accepted + 1, LONGEST)
        self._rates[seen.kind].observe(tried, seen.accepted)
        request.rates.setdefault(seen.kind, RequestRates(LONGEST)).observe(tried, seen.accepted)


@cache
def _choices(kind: str) -> tuple[DraftChoice, ...]:
    return tuple(DraftChoice(kind, gamma) for gamma in range(LONGEST + 1))
