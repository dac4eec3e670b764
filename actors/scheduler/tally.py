"""What happened to one request, summed up for the statistics that end its stream. Times are passed in."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...protos.v1 import generation_pb2 as pb
from ...protos.v1 import steps_pb2


@dataclass
class LinkTotals:
    """Transfers of the device since it started, summed over its replies."""

    bytes_moved: int = 0
    transfer_s: float = 0.0
    hidden_s: float = 0.0
    cancelled: int = 0
    """Transfers broken off for a newer plan."""

    def add(self, timings: steps_pb2.Timings) -> None:
        self.bytes_moved += timings.bytes_moved
        self.transfer_s += timings.transfer_s
        self.hidden_s += timings.transfer_hidden_s
        self.cancelled += timings.cancelled_transfers

    def since(self, start: LinkTotals) -> LinkTotals:
        return LinkTotals(
            self.bytes_moved - start.bytes_moved,
            self.transfer_s - start.transfer_s,
            self.hidden_s - start.hidden_s,
            self.cancelled - start.cancelled,
        )

    def copy(self) -> LinkTotals:
        return LinkTotals(self.bytes_moved, self.transfer_s, self.hidden_s, self.cancelled)


@dataclass
class DraftTally:
    """What became of one kind of draft."""

    steps: int = 0
    proposed: list[int] = field(default_factory=list)
    """Tokens by position in the draft."""
    accepted: list[int] = field(default_factory=list)
    """Tokens by position in the draft."""

    def add(self, proposed: int, accepted: int) -> None:
        self.steps += 1
        longer = proposed - len(self.proposed)
        self.proposed += [0] * longer
        self.accepted += [0] * longer
        for position in range(proposed):
            self.proposed[position] += 1
            self.accepted[position] += position < accepted

    def message(self, kind: str) -> pb.DraftStatistics:
        return pb.DraftStatistics(kind=kind, steps=self.steps, proposed=self.proposed, accepted=self.accepted)


@dataclass
class Tally:
    """Counters of one request. All times in seconds of one monotonic clock."""

    arrived_s: float
    link_at_start: LinkTotals
    first_token_s: float | None = None
    last_token_s: float | None = None
    tokens: int = 0
    steps: int = 0
    proposed: int = 0
    accepted: int = 0
    drafts: dict[str, DraftTally] = field(default_factory=dict)
    """By kind."""
    demand: int = 0
    """Distinct (layer, expert) uses of the windows that a self-draft went before."""
    demand_predicted: int = 0
    """Of those, what it had wanted too."""
    uses: int = 0
    hits: int = 0
    expert_calls: int = 0
    lane_calls: int = 0
    fallback_experts: int = 0
    streamed_experts: int = 0
    awaited_experts: int = 0
    restarts: int = 0
    plans: list[pb.PlanInfo] = field(default_factory=list)
    """Made while the request ran."""

    def add_step(self, reply: steps_pb2.StepReply) -> None:
        """Prefill steps count for who computed experts only: acceptance and hit rate speak of decoding."""
        self.expert_calls += reply.timings.expert_calls
        self.lane_calls += reply.timings.lane_calls
        self.fallback_experts += reply.timings.fallback_experts
        self.streamed_experts += reply.timings.streamed_experts
        self.awaited_experts += reply.timings.awaited_experts
        if reply.prefill:
            return
        self.steps += 1
        self.proposed += reply.proposed
        self.accepted += reply.accepted
        if reply.draft_kind:
            self.drafts.setdefault(reply.draft_kind, DraftTally()).add(reply.proposed, reply.accepted)
        if reply.draft_kind and reply.HasField("predicted"):
            for wanted, foreseen in zip(reply.window.layers, reply.predicted.layers, strict=True):
                self.demand += wanted.used
                self.demand_predicted += sum(1 for w, f in zip(wanted.counts, foreseen.counts, strict=True) if w and f)
        self.uses += sum(layer.used for layer in reply.window.layers)
        self.hits += sum(layer.hits for layer in reply.window.layers)

    def add_tokens(self, count: int, now_s: float) -> None:
        if count == 0:
            return
        if self.first_token_s is None:
            self.first_token_s = now_s
        self.last_token_s = now_s
        self.tokens += count

    def statistics(
        self,
        reason: pb.Statistics.FinishReason,
        prompt_tokens: int,
        now_s: float,
        link: LinkTotals,
        emulated: bool,
    ) -> pb.Statistics:
        """TTFT from arrival; TPOT the mean over the tokens after the first; tokens/s over the whole time."""
        moved = link.since(self.link_at_start)
        first, last = self.first_token_s, self.last_token_s
        ttft_s = (first if first is not None else now_s) - self.arrived_s
        return pb.Statistics(
            finish_reason=reason,
            prompt_tokens=prompt_tokens,
            tokens=self.tokens,
            ttft_s=ttft_s,
            tpot_s=(last - first) / (self.tokens - 1) if self.tokens > 1 else 0.0,
            tokens_per_second=self.tokens / max(now_s - self.arrived_s, 1e-9),
            steps=self.steps,
            proposed=self.proposed,
            accepted=self.accepted,
            drafts=[draft.message(kind) for kind, draft in self.drafts.items()],
            demand=self.demand,
            demand_predicted=self.demand_predicted,
            uses=self.uses,
            hits=self.hits,
            bytes_moved=moved.bytes_moved,
            transfer_s=moved.transfer_s,
            transfer_hidden_s=moved.hidden_s,
            cancelled_transfers=moved.cancelled,
            plan_ms=[plan.seconds * 1e3 for plan in self.plans],
            solver_statuses=[plan.status for plan in self.plans],
            solvers=[plan.solver for plan in self.plans],
            plan_gaps=[plan.gap for plan in self.plans],
            expert_calls=self.expert_calls,
            lane_calls=self.lane_calls,
            fallback_experts=self.fallback_experts,
            streamed_experts=self.streamed_experts,
            awaited_experts=self.awaited_experts,
            emulated=emulated,
            restarts=self.restarts,
        )
