"""Which draft to ask, and for how many tokens: whatever promises most tokens a second, speculation or none.

The long-run rate λ is maximal for the choice that maximises tokens − λ · seconds (Dinkelbach 1967), also where
n-grams are asked first and answer now and then only, and where a draft ends itself: another token is worth what it
takes as long as its chance to stand is above λ times its seconds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile

from ..core import DraftChoice
from .chain import LONGEST
from .step_model import NGRAM, UNASSISTED, Drawn, Outlook, RequestDrafts, StepModel, StepSeen

EXPLORATION = 0.004
"""Share of the decode time that steps taken to learn may be expected to lose; they lose some twice that, since what
looks better than it is, is what is tried."""
EXPLORE_EVERY = 8
"""Steps after which something may be taken to learn, and is looked for: how small its loss is, is what may be wrong."""
SAVED_UP = 500
"""Steps for which that share can be saved; it is saved at the start, when there is most to learn."""
SMALL_LOSS = 0.02
"""Tokens; what promises so much for what it may lose is tried first, and losses below this are all alike."""
OTHERWISE = 1.25
"""By how many times longer or shorter a window of the kind that is best must be to teach anything."""
CURSE = 0.01
"""What looks best of several is on average worse than it looks: so much of a draft's tokens is not believed."""
PRECISION, ROUNDS = 1e-3, 6
"""Of the rate, and most rounds: Dinkelbach's iteration reaches it in two or three, from one step to the next in one."""
NO_DRAFT = ""
"""Stands for it where kinds of draft are named."""


@dataclass(frozen=True)
class Decision:
    """What a step is to draft, and why. Rates in tokens a second, as predicted."""

    choices: tuple[DraftChoice, ...]
    """In the order in which they are asked; the first that proposes is verified."""
    reason: str
    """`best`; `explore`: to learn, at a loss; `fixed`: the number of tokens was given."""
    rate: float
    """Of the best choice, n-grams and what stands behind them taken together."""
    unassisted_rate: float
    """Without drafts."""
    loss_s: float = 0.0
    """What exploring is expected to lose."""


class Governor:
    """Decides step by step; deterministic: a function of what it was told, in that order."""

    def __init__(self, kinds: Sequence[str]) -> None:
        """`kinds`: of the drafts there are."""
        self._kinds = tuple(kinds)
        self._model = StepModel(kinds)
        self._fresh_at = dict.fromkeys((*kinds, NO_DRAFT), 0)
        self._steps = self._looked_at = 0
        self._rates: dict[Drawn, float] = {}
        """Of the last decision."""
        self._allowed_s: float | None = None
        """What exploring may lose; None: no step was seen yet."""

    def decide(self, request: RequestDrafts, remaining: int, gamma: int | None = None) -> Decision:
        """`remaining`: tokens that the request still wants, >= 1; `gamma`: given; None: to be chosen."""
        most = min(LONGEST, LONGEST if gamma is None else gamma, remaining - 1)
        best = self._best(request, most, remaining, gamma)
        unassisted_rate = 1.0 / self._model.unassisted_s
        rate = best.rate * unassisted_rate
        explored = self._explored(request, most, best) if gamma is None and most >= 1 else None
        if explored is not None:
            return Decision(explored[0], "explore", rate, unassisted_rate, explored[1])
        return Decision(best.choices, "best" if gamma is None else "fixed", rate, unassisted_rate)

    def observe(self, request: RequestDrafts, decision: Decision, seen: StepSeen) -> None:
        """What came of `decision`."""
        self._steps += 1
        self._fresh_at[seen.kind] = self._steps
        self._model.observe(request, seen)
        if decision.reason != "fixed":
            # Charged is what was to be expected: luck, good or bad, is no reason to learn more or less.
            most_s = EXPLORATION * SAVED_UP * self._model.unassisted_s
            before_s = most_s if self._allowed_s is None else self._allowed_s
            self._allowed_s = min(before_s + EXPLORATION * seen.turn_s - decision.loss_s, most_s)

    def calibrate(self, seen: StepSeen) -> None:
        """A step of no request: it says what things take, not how good drafts are."""
        self._model.observe(RequestDrafts(), seen, times_only=True)

    def _best(self, request: RequestDrafts, most: int, remaining: int, gamma: int | None) -> _Best:
        """The choice of the highest rate, found from the rate of the request's last step on."""
        chains = [kind for kind in self._kinds if kind != NGRAM] if most >= 1 else []
        looked_up = most >= 1 and NGRAM in self._kinds
        rate = self._rates.get(request.drawn, 1.0) if request.rate is None else request.rate
        for _ in range(ROUNDS):
            if gamma is None:
                others = [self._model.chain(request, kind, rate, most, remaining) for kind in chains]
            else:
                others = [self._model.given(request, kind, most, remaining) for kind in chains]
            if gamma is None or not others:
                others.append(UNASSISTED)
            other = max(others, key=lambda outlook: _sure_gain(outlook, rate))
            reached = other.tokens / other.times
            if abs(reached - rate) <= PRECISION * rate:
                break
            rate = reached
        if gamma is None:
            request.rate = self._rates[request.drawn] = rate
        found = self._model.ngrams(request, rate, most, None if gamma is None else most) if looked_up else []
        # A choice takes longer matches than it asks for too: none is asked for beyond one that is not worth it.
        least = _sure_gain(other, rate)
        return _Best.of(other, takewhile(lambda entry: _sure_gain(entry[1], rate) > least, found))

    def _explored(self, request: RequestDrafts, most: int, best: _Best) -> tuple[tuple[DraftChoice, ...], float] | None:
        """What may well be better than the best, if the loss is within what may be lost; and that loss, seconds.

        Of all that might be, the one that promises most for what it is expected to lose.
        """
        if self._allowed_s is None or self._allowed_s <= 0.0 or self._steps < self._looked_at + EXPLORE_EVERY:
            return None
        self._looked_at = self._steps
        chosen = {outlook.choice: outlook.drafted for outlook in best.outlooks}
        kinds = {choice.kind if choice else NO_DRAFT: drafted for choice, drafted in chosen.items()}
        found: tuple[float, tuple[DraftChoice, ...], float] | None = None
        for kind in (NO_DRAFT, *self._kinds):
            unseen = self._steps - self._fresh_at[kind]
            for hope, expected in self._model.hopeful(request, kind, best.rate, most, unseen, best.other.drafted):
                longer = (1.0 + expected.drafted) / (1.0 + kinds.get(kind, math.inf))
                if 1.0 / OTHERWISE < longer < OTHERWISE:
                    continue
                hoped = hope.gain(best.rate) - best.gain
                loss = max(0.0, best.gain - expected.gain(best.rate))
                worth = hoped / (loss + SMALL_LOSS)
                if worth > (found[0] if found else 0.0):
                    loss_s = loss / best.rate * self._model.unassisted_s
                    found = worth, best.with_instead(hope), loss_s
        return found[1:] if found and found[2] <= self._allowed_s else None


@dataclass(frozen=True)
class _Best:
    """What to take of n-grams, and what to do where they find nothing of the kind; the rate of all together."""

    ngrams: tuple[Outlook, ...]
    """The longest match first."""
    other: Outlook
    tokens: float
    times: float

    @classmethod
    def of(cls, other: Outlook, ngrams: Iterable[tuple[float, Outlook]]) -> _Best:
        """`ngrams`: each with its share of the steps."""
        found, tokens, times = list(ngrams), other.tokens, other.times
        for share, outlook in found:
            tokens += share * (outlook.tokens - other.tokens)
            times += share * (outlook.times - other.times)
        return cls(tuple(outlook for _, outlook in found), other, tokens, times)

    @property
    def rate(self) -> float:
        """Tokens a step without a draft."""
        return self.tokens / self.times

    @property
    def gain(self) -> float:
        """As `Outlook.gain`, of what is chosen where n-grams find nothing, at this rate."""
        return self.other.gain(self.rate)

    @property
    def outlooks(self) -> tuple[Outlook, ...]:
        return (*self.ngrams, self.other)

    @property
    def choices(self) -> tuple[DraftChoice, ...]:
        return _those(self.outlooks)

    def with_instead(self, tried: Outlook) -> tuple[DraftChoice, ...]:
        """The choices with `tried` in the place of its like: n-grams of a match as long, or what stands behind them."""
        if tried.choice is None or tried.choice.kind != NGRAM:
            return _those((*self.ngrams, tried))
        least = tried.choice.least_match
        ngrams = [outlook for outlook in self.ngrams if outlook.choice.least_match != least]
        return _those((*sorted((*ngrams, tried), key=lambda outlook: -outlook.choice.least_match), self.other))


def _sure_gain(outlook: Outlook, rate: float) -> float:
    """As `Outlook.gain`, a draft a little worse than it promises."""
    return outlook.gain(rate) - (CURSE * outlook.tokens if outlook.choice else 0.0)


def _those(outlooks: Sequence[Outlook]) -> tuple[DraftChoice, ...]:
    return tuple(outlook.choice for outlook in outlooks if outlook.choice is not None)
