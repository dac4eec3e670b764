"""A machine with drafts whose true rates and times are known: what a governor's choices are judged by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from moespac.actors.core import DraftChoice
from moespac.actors.policy.chain import EDGES, LONGEST, Chain
from moespac.actors.policy.drafting_facts import RequestDrafts, StepSeen
from moespac.actors.policy.governor import Decision, Governor
from moespac.actors.policy.ngram import Judgement
from moespac.actors.policy.step_model import NGRAM

MATCH = 8
"""Tokens that agree whenever n-grams find something."""
SURE, UNSURE = EDGES[-1], 0.0
"""Confidences."""


@dataclass
class World:
    """True values; seconds. `noise`: standard deviation of the logarithm of every time."""

    rates: Mapping[str, np.ndarray]
    """By kind: acceptance of each position, given those before; float [LONGEST]."""
    token_s: Mapping[str, float]
    pass_s: float = 4e-3
    experts: float = 60.0
    """Distinct experts that one token uses; W tokens use experts · W^growth."""
    growth: float = 0.6
    resident: float = 0.7
    hit_s: float = 20e-6
    miss_s: float = 150e-6
    rest_s: float = 1e-3
    found: float = 0.3
    """Share of the steps for which n-grams find something, as long as any choice wants it."""
    unsure: float | None = None
    """Drafts say how sure they are: of this share of the tokens not, and these never stand. None: they say nothing."""
    noise: float = 0.1
    seed: int = 0
    rng: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)

    def used(self, tokens: int) -> tuple[float, float]:
        """Experts resident, and not, that a window uses on average."""
        used = self.experts * tokens**self.growth
        return used * self.resident, used * (1 - self.resident)

    def verify_s(self, tokens: int) -> float:
        hits, misses = self.used(tokens)
        return self.pass_s + self.hit_s * hits + self.miss_s * misses + 1e-4 * tokens

    def tokens(self, choice: DraftChoice) -> float:
        return 1.0 + float(np.cumprod(self.rates[choice.kind][: length(choice)]).sum())

    def seconds(self, choice: DraftChoice) -> float:
        return self.rest_s + self.token_s[choice.kind] * length(choice) + self.verify_s(length(choice) + 1)

    def rate(self, choices: tuple[DraftChoice, ...]) -> float:
        """Expected tokens a second of steps that all choose so."""
        tokens = seconds = 0.0
        left = 1.0
        for choice in _asked(choices):
            share = left * (self.found if choice.kind == NGRAM else 1.0)
            tokens, seconds = tokens + share * self.tokens(choice), seconds + share * self.seconds(choice)
            left -= share
        return (tokens + left) / (seconds + left * (self.rest_s + self.verify_s(1)))

    def best(self, gammas=range(LONGEST + 1)) -> tuple[DraftChoice, ...]:
        """The choices of the highest rate: one n-gram draft or none before one other or none."""
        others = [()] + [(DraftChoice(kind, g),) for kind in self.rates if kind != NGRAM for g in gammas if g]
        ngrams = [()] + [(DraftChoice(NGRAM, g),) for g in gammas if g and NGRAM in self.rates]
        return max(((*first, *other) for first in ngrams for other in others), key=self.rate)

    def step(self, decision: Decision) -> StepSeen:
        """What comes of a decision, by chance."""
        found = NGRAM in self.rates and self.rng.random() < self.found
        choice = next((c for c in decision.choices if c.kind != NGRAM or found), None)
        kind, asked, places = choice.kind if choice else "", 0, ()
        sure = np.ones(LONGEST, dtype=bool)
        if choice:
            if self.unsure is not None and kind != NGRAM:
                sure = self.rng.random(LONGEST) >= self.unsure
            places = _places(choice, sure if self.unsure is not None else None)
            asked = len(places)
        stands = (self.rng.random(asked) < self.rates[kind][:asked]) & sure[:asked] if kind else np.empty(0, bool)
        accepted = asked if stands.all() else int(np.argmin(stands))
        ngrams = Judgement()
        if found and kind == NGRAM:
            ngrams = Judgement(MATCH, asked, accepted, accepted + 1)
        elif found:
            copied = self.rng.random(LONGEST) < self.rates[NGRAM]
            stood = LONGEST if copied.all() else int(np.argmin(copied))
            ngrams = Judgement(MATCH, LONGEST, min(stood, accepted + 1), accepted + 1)
        hits, misses = (self.rng.poisson(mean) for mean in self.used(asked + 1))
        verify_s = self.pass_s + self.hit_s * hits + self.miss_s * misses + 1e-4 * (asked + 1)
        draft_s, verify_s, rest_s = (
            seconds * self.rng.lognormal(0.0, self.noise)
            for seconds in (self.token_s.get(kind, 0.0) * asked, verify_s, self.rest_s)
        )
        turn_s = draft_s + verify_s + rest_s
        return StepSeen(kind, asked, accepted, draft_s, turn_s, places=places, ngrams=ngrams)

    def run(
        self, governor: Governor, steps: int, request: RequestDrafts | None = None, gamma: int | None = None
    ) -> list[tuple[Decision, StepSeen]]:
        """`steps` steps of a request without end."""
        request, done = RequestDrafts() if request is None else request, []
        for _ in range(steps):
            decision = governor.decide(request, 10**6, gamma)
            seen = self.step(decision)
            governor.observe(request, decision, seen)
            done.append((decision, seen))
        return done


def length(choice: DraftChoice) -> int:
    """Tokens of a draft that does not say how sure it is."""
    return len(_places(choice, None))


def _places(choice: DraftChoice, sure: np.ndarray | None) -> tuple[int, ...]:
    chain = Chain(choice, LONGEST)
    while chain.wants_more():
        chain.add(None if sure is None else SURE if sure[len(chain.places)] else UNSURE)
    return tuple(chain.places)


def _asked(choices: tuple[DraftChoice, ...]) -> list[DraftChoice]:
    """Without n-grams behind others, which find as much."""
    ngrams = [choice for choice in choices if choice.kind == NGRAM]
    return [*ngrams[:1], *(choice for choice in choices if choice.kind != NGRAM)]


def achieved(world: World, done: list[tuple[Decision, StepSeen]]) -> float:
    """Expected tokens a second of what was decided: chance in the outcomes left out."""
    tokens = seconds = 0.0
    for decision, _ in done:
        rate = world.rate(decision.choices)
        mean_s = _mean_seconds(world, decision.choices)
        tokens, seconds = tokens + rate * mean_s, seconds + mean_s
    return tokens / seconds


def _mean_seconds(world: World, choices: tuple[DraftChoice, ...]) -> float:
    seconds, left = 0.0, 1.0
    for choice in _asked(choices):
        share = left * (world.found if choice.kind == NGRAM else 1.0)
        seconds, left = seconds + share * world.seconds(choice), left - share
    return seconds + left * (world.rest_s + world.verify_s(1))
