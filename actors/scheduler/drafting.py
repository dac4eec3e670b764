"""The governor between requests and the device: what to draft in a turn, and what came of it."""

from __future__ import annotations

import time
from collections.abc import Sequence

from ...protos.v1 import generation_pb2
from ...protos.v1 import steps_pb2 as pb
from ..core import DraftChoice
from ..policy.chain import LONGEST
from ..policy.drafting_facts import StepSeen
from ..policy.governor import Decision, Governor
from ..policy.ngram import Judgement
from ..policy.step_model import NGRAM
from .draft_totals import DraftTotals
from .request import Request

CALIBRATED = (2, 8)
"""Draft tokens of the steps by which the drafts are timed before the first request."""


class Drafting:
    """Asks one governor for every request; times are passed in."""

    def __init__(self, kinds: Sequence[str]) -> None:
        """`kinds`: of the device's drafts."""
        self.kinds = tuple(kinds)
        self._governor = Governor(kinds)
        self._totals = DraftTotals(kinds)

    def decide(self, request: Request) -> Decision:
        """For the next turn of `request`."""
        return self._governor.decide(request.drafts, request.remaining, request.gamma)

    def observe(self, request: Request, decision: Decision, reply: pb.StepReply, turn_s: float) -> None:
        """`turn_s`: seconds from asking the device to its reply."""
        if reply.prefill:
            request.drafts.behind = dict(reply.behind)
        else:
            seen = self._seen(reply, turn_s)
            self._governor.observe(request.drafts, decision, seen)
            self._totals.add_step(decision, seen)

    def status(self) -> generation_pb2.SpeculationStatus:
        """What has been chosen and observed of all requests."""
        return self._totals.message()

    def calibrations(self) -> list[tuple[DraftChoice, ...]]:
        """What the steps before the first request should draft; n-grams have nothing to find there, nor to compute."""
        drafts = [DraftChoice(kind, gamma) for gamma in CALIBRATED for kind in self.kinds if kind != NGRAM]
        return [(), *((draft,) for draft in drafts), ()] if drafts else []

    def calibrate(self, reply: pb.StepReply, turn_s: float) -> None:
        """What came of one of `calibrations`."""
        self._governor.calibrate(self._seen(reply, turn_s))

    def _seen(self, reply: pb.StepReply, turn_s: float) -> StepSeen:
        found = Judgement(reply.ngram_match, reply.ngram_found, reply.ngram_stood, len(reply.emitted))
        return StepSeen(
            kind=reply.draft_kind,
            proposed=reply.proposed,
            accepted=reply.accepted,
            draft_s=reply.timings.draft_s,
            turn_s=turn_s,
            behind=dict(reply.behind),
            places=tuple(reply.confidences),
            ngrams=found if NGRAM in self.kinds else None,
        )


def most_tokens(gamma: int | None, kinds: Sequence[str]) -> int:
    """Draft tokens that a step of a request may have; `gamma`: given, or None: the governor's choice."""
    if not kinds:
        return 0
    return LONGEST if gamma is None else gamma


def decision_span(decision: Decision, start_ns: int) -> pb.Span:
    """A decision on the timeline, made since `start_ns`."""
    chosen = " or ".join(map(_named, decision.choices)) or "no draft"
    return pb.Span(
        row="governor",
        name=chosen,
        start_ns=start_ns,
        end_ns=time.time_ns(),
        args={
            "reason": decision.reason,
            "tokens/s": f"{decision.rate:.1f}",
            "tokens/s without drafts": f"{decision.unassisted_rate:.1f}",
        },
    )


def _named(choice: DraftChoice) -> str:
    match = f" from {choice.least_match} on" if choice.least_match else ""
    return f"{choice.kind}{match} {'up to ' if choice.floors else ''}{choice.gamma}"
