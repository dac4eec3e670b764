"""What the governor chose for all requests, what it promised and what came of it. Times are passed in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ...protos.v1 import generation_pb2 as pb
from ..policy.drafting_facts import StepSeen
from ..policy.governor import Decision
from .tally import DraftTally


class DraftTotals:
    """Since the scheduler started."""

    def __init__(self, kinds: Sequence[str]) -> None:
        """`kinds`: of draft that can be chosen."""
        self._kinds = tuple(kinds)
        self._steps: Counter[tuple[str, int]] = Counter()
        self._decisions: dict[str, pb.DecisionTotals] = {}
        self._drafts: dict[str, DraftTally] = {}
        self._last: Decision | None = None
        self._seconds = self._lost_s = 0.0

    def add_step(self, decision: Decision, seen: StepSeen) -> None:
        """A step that decoded, as decided and as it went."""
        tokens = seen.accepted + 1
        self._last = decision
        self._steps[seen.kind, seen.proposed] += 1
        if seen.kind:
            self._drafts.setdefault(seen.kind, DraftTally()).add(seen.proposed, seen.accepted)
        total = self._decisions.setdefault(decision.reason, pb.DecisionTotals(reason=decision.reason))
        total.steps += 1
        total.seconds += seen.turn_s
        total.tokens += tokens
        total.promised_tokens += decision.rate * seen.turn_s
        self._seconds += seen.turn_s
        if decision.reason == "explore":
            self._lost_s += seen.turn_s - tokens / decision.rate

    def message(self) -> pb.SpeculationStatus:
        """An exploration that did better than the best choice promised counts as a gain."""
        return pb.SpeculationStatus(
            kinds=self._kinds,
            steps=[
                pb.DraftedSteps(kind=kind, gamma=gamma, steps=steps)
                for (kind, gamma), steps in sorted(self._steps.items())
            ],
            decisions=[total for _, total in sorted(self._decisions.items())],
            drafts=[draft.message(kind) for kind, draft in sorted(self._drafts.items())],
            exploration_loss=self._lost_s / self._seconds if self._seconds else 0.0,
            predicted_rate=self._last.rate if self._last else 0.0,
            predicted_unassisted_rate=self._last.unassisted_rate if self._last else 0.0,
        )
