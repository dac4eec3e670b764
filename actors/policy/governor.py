"""Which draft to ask, and for how many tokens: whatever promises most tokens a second, speculation or none.

The long-run rate λ is maximal for the choice that maximises tokens − λ · seconds (Dinkelbach 1967), also where
n-grams are asked first and answer now and then only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

import numpy as np

from ..core import DraftChoice
from .step_model import LONGEST, NGRAM, UNASSISTED, Options, RequestDrafts, StepModel, StepSeen

HYSTERESIS = 0.01
"""Another choice must promise so many tokens more in the same time than the last one."""
EXPLORATION = 0.006
"""Share of the decode time that steps taken to learn may lose."""
EXPLORE_EVERY = 8
"""Fewest steps from one that is taken to learn to the next: how small its loss is, is what may be wrong."""
SAVED_UP = 500
"""Steps for which that share can be saved; it is saved at the start, when there is most to learn."""
SMALL_LOSS = 0.02
"""Tokens; what promises so much for what it may lose is tried first, and losses below this are all alike."""
PRECISION = 1e-3
"""Of the rate; Dinkelbach's iteration reaches it in two or three rounds."""
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
        self._steps = self._explored_at = 0
        self._allowed_s: float | None = None
        """What exploring may lose; None: no step was seen yet."""

    def decide(self, request: RequestDrafts, remaining: int, gamma: int | None = None) -> Decision:
        """`remaining`: tokens that the request still wants, >= 1; `gamma`: given; None: to be chosen."""
        most = min(LONGEST, LONGEST if gamma is None else gamma, remaining - 1)
        least = 1 if gamma is None else most
        options = {k: self._model.options(request, k, least, most, remaining) for k in self._kinds if most >= 1}
        others = [options[kind] for kind in options if kind != NGRAM]
        if gamma is None or not others:
            others.append(UNASSISTED)
        best = _best(request, reduce(add, others), options.get(NGRAM), self._model.found(request))
        unassisted_rate = 1.0 / self._model.unassisted_s
        rate = best.rate * unassisted_rate
        explored = self._explored(request, options, best) if gamma is None and options else None
        if explored is not None:
            return Decision(explored[0], "explore", rate, unassisted_rate, explored[1])
        request.last = {False: best.other, True: best.ngram}
        return Decision(best.choices, "best" if gamma is None else "fixed", rate, unassisted_rate)

    def observe(self, request: RequestDrafts, decision: Decision, seen: StepSeen) -> None:
        """What came of `decision`."""
        self._steps += 1
        self._fresh_at[seen.kind] = self._steps
        self._model.observe(request, seen)
        if decision.reason == "explore":
            self._explored_at = self._steps
        if decision.reason != "fixed":
            # Charged is what was to be expected: luck, good or bad, is no reason to learn more or less.
            most_s = EXPLORATION * SAVED_UP * self._model.unassisted_s
            before_s = most_s if self._allowed_s is None else self._allowed_s
            self._allowed_s = min(before_s + EXPLORATION * seen.turn_s - decision.loss_s, most_s)

    def calibrate(self, seen: StepSeen) -> None:
        """A step of no request: it says what things take, not how good drafts are."""
        self._model.observe(RequestDrafts(), seen, times_only=True)

    def _explored(
        self, request: RequestDrafts, options: dict[str, Options], best: _Best
    ) -> tuple[tuple[DraftChoice, ...], float] | None:
        """What may well be better than the best, if the loss is within what may be lost; and that loss, seconds.

        Of all that might be, the one that promises most for what it is expected to lose.
        """
        if self._allowed_s is None or self._allowed_s <= 0.0 or self._steps < self._explored_at + EXPLORE_EVERY:
            return None
        window = 1 + (best.other.gamma if best.other else 0)
        found: tuple[float, tuple[DraftChoice, ...], float] | None = None
        for kind, tried in {NO_DRAFT: UNASSISTED, **options}.items():
            hopeful = self._model.hopeful(request, tried, self._steps - self._fresh_at.get(kind, 0), window)
            hopes = hopeful.gains(best.rate)
            losses = np.maximum(0.0, -tried.gains(best.rate))
            if kind != NO_DRAFT:
                losses += best.rate * self._model.catch_up(request, kind)
            worth = hopes / (losses + SMALL_LOSS)
            chosen = best.ngram if kind == NGRAM else best.other
            if chosen in tried.choices:
                worth[tried.choices.index(chosen)] = 0.0
            at = int(worth.argmax())
            if worth[at] > (found[0] if found else 0.0):
                loss_s = float(losses[at]) / best.rate * self._model.unassisted_s
                found = float(worth[at]), _those(tried.choices[at], best.other if kind == NGRAM else None), loss_s
        return found[1:] if found and found[2] <= self._allowed_s else None


@dataclass(frozen=True)
class _Best:
    """What to ask n-grams for, if anything, and what to do where they find nothing; the rate of the two together."""

    ngram: DraftChoice | None
    other: DraftChoice | None
    rate: float

    @property
    def choices(self) -> tuple[DraftChoice, ...]:
        return _those(self.ngram, self.other)


def _those(*choices: DraftChoice | None) -> tuple[DraftChoice, ...]:
    return tuple(choice for choice in choices if choice is not None)


def _best(request: RequestDrafts, others: Options, ngrams: Options | None, found: float) -> _Best:
    rate = float(np.max(others.tokens / others.times))
    last, last_ngram = _place(request.last.get(False), others), _place(request.last.get(True), ngrams)
    alone = _place(None, others)
    while True:
        at = _steadily(last, others, rate, alone)
        tokens, times, ngram = float(others.tokens[at]), float(others.times[at]), None
        if ngrams is not None:
            first = _steadily(last_ngram, ngrams, rate)
            if ngrams.gains(rate)[first] > others.gains(rate)[at]:
                ngram = ngrams.choices[first]
                tokens += found * (float(ngrams.tokens[first]) - tokens)
                times += found * (float(ngrams.times[first]) - times)
        if tokens / times <= rate * (1.0 + PRECISION):
            return _Best(ngram, others.choices[at], tokens / times)
        rate = tokens / times


def _place(choice: DraftChoice | None, options: Options | None) -> int | None:
    return options.choices.index(choice) if options is not None and choice in options.choices else None


def _steadily(last: int | None, options: Options, rate: float, alone: int | None = None) -> int:
    """Place of the best of `options`, or the `last` where that is hardly worse, and no worse than `alone`."""
    gains = options.gains(rate)
    best = int(gains.argmax())
    if last is None or gains[best] - gains[last] >= HYSTERESIS * options.tokens[best]:
        return best
    return last if alone is None or gains[last] >= gains[alone] else best
