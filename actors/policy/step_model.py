"""What a step with a given draft yields and takes: acceptance against drafting, verification and the rest."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from ..core import DraftChoice
from .acceptance_rates import BOUNDS, AcceptanceRates, Alikeness, RequestRates, expected_tokens
from .step_times import DraftTimes, WindowTimes

LONGEST = 16
"""Most draft tokens a step."""
NGRAM = "ngram"
RATES = {"model": 0.7, NGRAM: 0.6, "self": 0.7}
"""Acceptance assumed of a draft never verified."""
TIMES = {"model": (0.1, 0.25, 0.01), NGRAM: (0.01, 0.0001, 0.0), "self": (0.1, 0.8, 0.0)}
"""`DraftTimes` priors."""
TRIED_AGAIN = 100.0
"""Steps without a kind after which its windows are doubted twice as much, thrice after twice as many: a wrong belief
that keeps a draft from being asked would keep itself."""
FOUND, MATCH_WEIGHT, ALWAYS_MATCH_WEIGHT = 0.5, 0.1, 0.01
"""Share of the steps for which n-grams find something: at first; weight of the newest step of a request, and of all."""


@dataclass(frozen=True)
class StepSeen:
    """What a step did; all times in seconds."""

    kind: str
    """Of the draft that proposed; empty: none did."""
    asked: int
    """Tokens it was asked for."""
    proposed: int
    accepted: int
    draft_s: float
    turn_s: float
    """The whole step, as the scheduler waits for it."""
    behind: Mapping[str, int] = field(default_factory=dict)
    """By kind: tokens that its next proposal must catch up on."""
    ngrams_found_nothing: bool = False
    """They were asked, and another draft or none was verified."""


@dataclass
class RequestDrafts:
    """What is known of one request."""

    sampled: bool = False
    """Greedy texts repeat themselves more, and drafts hit them more often: they are told apart from the start."""
    behind: dict[str, int] = field(default_factory=dict)
    """As `StepSeen.behind`."""
    rates: dict[str, RequestRates] = field(default_factory=dict)
    found: float | None = None
    """Share of the steps for which n-grams found something; None: they were not asked yet."""
    tokens: dict[str, tuple[int, np.ndarray]] = field(default_factory=dict)
    """By kind: expected tokens of a step, and after how many verified drafts of the kind they were reckoned."""
    last: dict[bool, DraftChoice | None] = field(default_factory=dict)
    """Of the step before: what was chosen of n-grams (True) and of all else (False)."""


@dataclass(frozen=True)
class Options:
    """Drafts that a step might have, and what each promises."""

    choices: tuple[DraftChoice | None, ...]
    """None: no draft."""
    tokens: np.ndarray
    """Expected; float64, one a choice."""
    times: np.ndarray
    """Expected, in steps without a draft; float64, one a choice."""

    def gains(self, rate: float) -> np.ndarray:
        """Tokens more than `rate` (tokens a step without a draft) would yield in the same time; float64."""
        return self.tokens - rate * self.times

    def __add__(self, other: Options) -> Options:
        return Options(
            self.choices + other.choices,
            np.concatenate([self.tokens, other.tokens]),
            np.concatenate([self.times, other.times]),
        )


NOTHING_KNOWN = RequestRates(LONGEST)
UNASSISTED = Options((None,), np.ones(1), np.ones(1))
"""A step without a draft, the measure of all others."""


class StepModel:
    """Learns from every step; deterministic. Times are in steps without a draft."""

    def __init__(self, kinds: Sequence[str]) -> None:
        """`kinds`: of the drafts there are."""
        both = [(kind, sampled) for kind in kinds for sampled in (False, True)]
        self._rates = {key: AcceptanceRates(LONGEST, RATES[key[0]]) for key in both}
        self._alike = {key: Alikeness() for key in both}
        self._verified = dict.fromkeys(both, 0)
        self._found = dict.fromkeys((False, True), FOUND)
        self._drafts = {kind: DraftTimes(TIMES[kind]) for kind in kinds}
        self._windows = WindowTimes(LONGEST + 1)
        self._factors = self._windows.factors()

    @property
    def unassisted_s(self) -> float:
        """Seconds of a step without a draft, at present."""
        return self._windows.seconds

    def observe(self, request: RequestDrafts, seen: StepSeen, times_only: bool = False) -> None:
        """`times_only`: of a step whose text says nothing of real ones."""
        self._windows.observe(seen.proposed + 1, seen.turn_s - seen.draft_s)
        self._factors = self._windows.factors()
        if seen.kind:
            took = seen.draft_s / self._windows.seconds
            self._drafts[seen.kind].observe(seen.proposed, request.behind.get(seen.kind, 0), took)
            if not times_only:
                self._learn_rates(request, seen)
        if not times_only and (seen.kind == NGRAM or seen.ngrams_found_nothing):
            found = self.found(request)
            request.found = found + MATCH_WEIGHT * ((seen.kind == NGRAM) - found)
            always = self._found[request.sampled]
            self._found[request.sampled] += ALWAYS_MATCH_WEIGHT * ((seen.kind == NGRAM) - always)
        request.behind = dict(seen.behind)

    def found(self, request: RequestDrafts) -> float:
        """Share of the steps of `request` for which n-grams find something."""
        return self._found[request.sampled] if request.found is None else request.found

    def options(self, request: RequestDrafts, kind: str, least: int, most: int, remaining: int) -> Options:
        """Steps with `least` (>= 1) to `most` tokens of `kind`; `remaining`: tokens that the request still wants.

        What must be caught up on first is paid once and shared by all the steps that remain.
        """
        tokens = self._tokens_of(request, kind)
        times = self._factors + self._drafts[kind].times(LONGEST)
        if behind := self.catch_up(request, kind):
            times += behind * np.minimum(1.0, tokens / max(1, remaining))
        part = slice(least, most + 1)
        return Options(_choices(kind)[part], tokens[part], times[part])

    def hopeful(self, request: RequestDrafts, options: Options, unseen: int, against: int) -> Options:
        """The same, all of one kind, as good as they may well be: a standard deviation better, more if long unseen.

        `unseen`: steps since the kind was verified last; `against`: tokens of the window they are to be better than.
        """
        choice = options.choices[0]
        if choice is None:
            part, tokens = slice(0, 1), options.tokens
        else:
            part = slice(choice.gamma, choice.gamma + len(options.choices))
            rates = self._rates_of(request, choice.kind)
            alike = self._alike[choice.kind, request.sampled].tokens
            known = request.rates.get(choice.kind, NOTHING_KNOWN)
            doubt = math.hypot(self._rates[choice.kind, request.sampled].doubt(unseen), known.doubt(rates, alike))
            rates = np.minimum(rates + doubt, BOUNDS[1])
            tokens = expected_tokens(rates)[part]
        doubts = self._windows.doubts(against)[part] * (1.0 + unseen / TRIED_AGAIN)
        saved = self._factors[part] * -np.expm1(-doubts)
        return Options(options.choices, tokens, options.times - saved)

    def catch_up(self, request: RequestDrafts, kind: str) -> float:
        """Time that the next proposal of `kind` takes longer for what it is behind."""
        behind = request.behind.get(kind, 0)
        return self._drafts[kind].catch_up(behind) if behind else 0.0

    def _tokens_of(self, request: RequestDrafts, kind: str) -> np.ndarray:
        # Most steps verify one kind: what the others promise stands.
        after, tokens = request.tokens.get(kind, (-1, None))
        if after != (verified := self._verified[kind, request.sampled]):
            tokens = expected_tokens(self._rates_of(request, kind))
            request.tokens[kind] = verified, tokens
        return tokens

    def _rates_of(self, request: RequestDrafts, kind: str) -> np.ndarray:
        rates = self._rates[kind, request.sampled].rates()
        if kind not in request.rates:
            return rates
        return request.rates[kind].corrected(rates, self._alike[kind, request.sampled].tokens)

    def _learn_rates(self, request: RequestDrafts, seen: StepSeen) -> None:
        # A proposal shorter than asked for ended its chain as a rejected token does.
        tried = min(seen.asked, seen.accepted + 1, LONGEST)
        key, known = (seen.kind, request.sampled), request.rates.setdefault(seen.kind, RequestRates(LONGEST))
        self._verified[key] += 1
        self._alike[key].observe(known, self._rates[key].rates(), tried, seen.accepted)
        self._rates[key].observe(tried, seen.accepted)
        known.observe(tried, seen.accepted)


@cache
def _choices(kind: str) -> tuple[DraftChoice, ...]:
    return tuple(DraftChoice(kind, gamma) for gamma in range(LONGEST + 1))
