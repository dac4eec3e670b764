"""What the governor is told of steps, keeps of requests, and expects of drafts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ..core import DraftChoice
from .acceptance_rates import RequestRates
from .ngram import Judgement
from .ngram_record import RequestNgrams

Drawn = Literal["greedy", "coupled", "rejection"]
"""How a request's tokens are chosen: drafts hit greedy texts more often, and are sure of other things."""


@dataclass(frozen=True)
class StepSeen:
    """What a step did; all times in seconds."""

    kind: str
    """Of the draft that proposed; empty: none did."""
    proposed: int
    accepted: int
    draft_s: float
    turn_s: float
    """The whole step, as the scheduler waits for it."""
    behind: Mapping[str, int] = field(default_factory=dict)
    """By kind: tokens that its next proposal must catch up on."""
    places: Sequence[int] = ()
    """How sure the draft was of each token proposed, as of `chain.place_of`; empty: it does not say."""
    ngrams: Judgement | None = None
    """None: they were not looked up."""


@dataclass
class RequestDrafts:
    """What is known of one request."""

    drawn: Drawn = "greedy"
    behind: dict[str, int] = field(default_factory=dict)
    """As `StepSeen.behind`."""
    rates: dict[str, RequestRates] = field(default_factory=dict)
    ngrams: RequestNgrams = field(default_factory=RequestNgrams)
    rate: float | None = None
    """Of its last decision, tokens a step without a draft; None: it had none."""
    outlooks: dict[str, Reckoned] = field(default_factory=dict)
    """By kind."""
    steps: int = 0
    """Observed."""


@dataclass(frozen=True)
class Outlook:
    """What a step with a draft may be expected to be."""

    choice: DraftChoice | None
    """None: no draft."""
    tokens: float
    """Emitted."""
    times: float
    """It takes, in steps without a draft."""
    drafted: float
    """Tokens verified beside the target's own."""

    def gain(self, rate: float) -> float:
        """Tokens more than `rate` (tokens a step without a draft) would yield in the same time."""
        return self.tokens - rate * self.times


@dataclass(frozen=True)
class Reckoned:
    """An outlook and what it was reckoned for."""

    outlook: Outlook
    step: int
    """Of the request."""
    rate: float
    most: int


UNASSISTED = Outlook(None, 1.0, 1.0, 0.0)
"""A step without a draft, the measure of all others."""
