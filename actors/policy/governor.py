"""Which draft to ask, and for how many tokens: whatever promises most tokens a second, speculation or none.

The long-run rate λ is maximal for the choice that maximises tokens − λ · seconds (Dinkelbach 1967), also of drafts that
end themselves: another token is worth what it takes as long as its chance to stand is above λ times its seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile

from ..core import DraftChoice
from .chain import LONGEST
from .drafting_facts import UNASSISTED, Drawn, Outlook, RequestDrafts, StepSeen
from .step_model import NGRAM, StepModel

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
    tried: str = NO_DRAFT
    """Of an exploration: the kind of draft that it is about."""
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
        self._looked = False
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
            return Decision(explored[0], "explore", rate, unassisted_rate, *explored[1:])
        return Decision(best.choices, "best" if gamma is None else "fixed", rate, unassisted_rate)

    def observe(self, request: RequestDrafts, decision: Decision, seen: StepSeen) -> None:
        """What came of `decision`."""
        self._steps += 1
        self._fresh_at[seen.kind] = self._steps
        self._model.observe(request, seen)
        if self._looked:
            # Not when deciding: a step may turn out to compute a prompt, and then nothing was tried.
            self._looked, self._looked_at = False, self._steps
        if decision.reason != "fixed":
            # Charged is what was to be expected: luck, good or bad, is no reason to learn more or less.
            most_s = EXPLORATION * SAVED_UP * self._model.unassisted_s
            before_s = most_s if self._allowed_s is None else self._allowed_s
            loss_s = decision.loss_s if seen.kind == decision.tried else 0.0
            self._allowed_s = min(before_s + EXPLORATION * seen.turn_s - loss_s, most_s)

    def calibrate(self, seen: StepSeen) -> None:
        """A step of no request: it says what things take, not how good drafts are."""
        self._model.observe(RequestDrafts(), seen, times_only=True)

    def _best(self, request: RequestDrafts, most: int, remaining: int, gamma: int | None) -> _Best:
        """The choice of the highest rate, found from the rate of the request's last step on.

        λ is the rate without n-grams: where they find nothing now, the next tokens will hardly repeat much either, and
        where a text goes round it does so for long. What loops bring later is no reason to hurry before them.
        """
        chains = [kind for kind in self._kinds if kind != NGRAM] if most >= 1 else []
        given = [] if gamma is None else [self._model.given(request, kind, most, remaining) for kind in chains]
        rate = self._rates.get(request.drawn, 1.0) if request.rate is None else request.rate
        for _ in range(ROUNDS):
            others = given or [UNASSISTED]
            if gamma is None:
                others = [*(self._model.chain(request, kind, rate, most, remaining) for kind in chains), UNASSISTED]
            other = max(others, key=lambda outlook: _sure_gain(outlook, rate))
            reached = other.tokens / other.times
            if abs(reached - rate) <= PRECISION * rate:
                break
            rate = reached
        if gamma is None:
            request.rate = self._rates[request.drawn] = rate
        found = []
        if most >= 1 and NGRAM in self._kinds:
            found = self._model.ngrams(request, rate, most, None if gamma is None else most)
        # A choice takes longer matches than it asks for too: none is asked for beyond one that is not worth it.
        least = _sure_gain(other, rate)
        return _Best.of(other, rate, takewhile(lambda entry: _sure_gain(entry[1], rate) > least, found))

    def _explored(
        self, request: RequestDrafts, most: int, best: _Best
    ) -> tuple[tuple[DraftChoice, ...], str, float] | None:
        """What may well be better than the best, if the loss is within what may be lost; its kind, and the loss, s.

        Of all that might be, the one that promises most for what it is expected to lose.
        """
        if self._allowed_s is None or self._allowed_s <= 0.0 or self._steps < self._looked_at + EXPLORE_EVERY:
            return None
        self._looked = True
        rate, chosen = best.deciding, {_like(outlook): outlook for outlook in best.outlooks}
        found: tuple[float, Outlook, float] | None = None
        for kind in (NO_DRAFT, *self._kinds):
            unseen = self._steps - self._fresh_at[kind]
            for share, hope, expected in self._model.hopeful(request, kind, rate, most, unseen, best.other.drafted):
                instead = chosen.get(_like(hope), best.other)
                longer = (1.0 + expected.drafted) / (1.0 + instead.drafted)
                if _like(hope) in chosen and 1.0 / OTHERWISE < longer < OTHERWISE:
                    continue
                usual = instead.gain(rate)
                loss = share * max(0.0, usual - expected.gain(rate))
                worth = share * (hope.gain(rate) - usual) / (loss + SMALL_LOSS)
                if worth > (found[0] if found else 0.0):
                    found = worth, hope, loss
        if found is None:
            return None
        _, hope, loss = found
        loss_s = loss / rate * self._model.unassisted_s
        kind = hope.choice.kind if hope.choice else NO_DRAFT
        return (best.with_instead(hope), kind, loss_s) if loss_s <= self._allowed_s else None


@dataclass(frozen=True)
class _Best:
    """What to take of n-grams, and what to do where they find nothing of the kind."""

    ngrams: tuple[Outlook, ...]
    """The longest match first."""
    other: Outlook
    deciding: float
    """The rate that choices are held against: that of `other`; tokens a step without a draft, as all rates here."""
    rate: float
    """Of all together."""

    @classmethod
    def of(cls, other: Outlook, deciding: float, ngrams: Iterable[tuple[float, Outlook]]) -> _Best:
        """`ngrams`: each with its share of the steps."""
        found, tokens, times = list(ngrams), other.tokens, other.times
        for share, outlook in found:
            tokens += share * (outlook.tokens - other.tokens)
            times += share * (outlook.times - other.times)
        return cls(tuple(outlook for _, outlook in found), other, deciding, tokens / times)

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
        ngrams = [outlook for outlook in self.ngrams if _like(outlook) != _like(tried)]
        return _those((*sorted((*ngrams, tried), key=lambda outlook: -outlook.choice.least_match), self.other))


def _like(outlook: Outlook) -> tuple[str, int]:
    """What it has in common with others of the same draft."""
    return (outlook.choice.kind, outlook.choice.least_match) if outlook.choice else (NO_DRAFT, 0)


def _sure_gain(outlook: Outlook, rate: float) -> float:
    """As `Outlook.gain`, a draft a little worse than it promises."""
    return outlook.gain(rate) - (CURSE * outlook.tokens if outlook.choice else 0.0)


def _those(outlooks: Sequence[Outlook]) -> tuple[DraftChoice, ...]:
    return tuple(outlook.choice for outlook in outlooks if outlook.choice is not None)
