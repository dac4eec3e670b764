"""What the steps of all requests have come to since the scheduler started. Times are passed in."""

from __future__ import annotations

from ...protos.v1 import generation_pb2 as pb
from ...protos.v1 import steps_pb2
from .tally import LinkTotals


class Totals:
    """Counters that only grow."""

    def __init__(self) -> None:
        self.link = LinkTotals()
        self._work = pb.WorkTotals()

    def add_step(self, reply: steps_pb2.StepReply, turn_s: float, tokens: int) -> None:
        """`turn_s`: seconds from asking the device to its reply; `tokens`: that the request got of it."""
        work, timings = self._work, reply.timings
        self.link.add(timings)
        work.tokens += tokens
        work.transfers += timings.transfers
        work.expert_calls += timings.expert_calls
        work.lane_calls += timings.lane_calls
        work.fallback_experts += timings.fallback_experts
        work.streamed_experts += timings.streamed_experts
        work.awaited_experts += timings.awaited_experts
        work.cancelled_transfers += timings.cancelled_transfers
        work.copy_wait_s += timings.copy_wait_s
        work.expert_wait_s += timings.wait_s
        if reply.prefill:
            work.prefill_tokens += reply.window.tokens
            work.prefill_s += turn_s
            return
        work.steps += 1
        work.accepted += reply.accepted
        work.decode_s += turn_s
        work.draft_s += timings.draft_s
        work.uses += sum(layer.used for layer in reply.window.layers)
        work.hits += sum(layer.hits for layer in reply.window.layers)

    def add_restart(self) -> None:
        """A request is taken up again."""
        self._work.restarts += 1

    def message(self) -> pb.WorkTotals:
        work = pb.WorkTotals(
            bytes_moved=self.link.bytes_moved,
            transfer_s=self.link.transfer_s,
            transfer_hidden_s=self.link.hidden_s,
        )
        work.MergeFrom(self._work)
        return work
