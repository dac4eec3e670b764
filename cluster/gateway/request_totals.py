"""How requests ended and how long their tokens took, since the gateway started. Times are passed in."""

from __future__ import annotations

import grpc

from ...actors.histogram import empty_histogram, observe
from ...protos.v1 import generation_pb2 as pb

TTFT_BOUNDS_S = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)
TPOT_BOUNDS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
STOP, LENGTH, OTHER = "stop", "length", "failed"
FAILURES = {
    grpc.StatusCode.CANCELLED: "cancelled",
    grpc.StatusCode.DEADLINE_EXCEEDED: "deadline",
    grpc.StatusCode.INVALID_ARGUMENT: "invalid",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "refused",
    grpc.StatusCode.UNAVAILABLE: "unavailable",
}
OUTCOMES = (STOP, LENGTH, *FAILURES.values(), OTHER)


class RequestTotals:
    """Every request counts once, whatever became of it; those refused at the door too."""

    def __init__(self) -> None:
        # All outcomes are there from the first: a counter that appears with its first event hides that event.
        self._totals = pb.RequestTotals(
            outcomes=dict.fromkeys(OUTCOMES, 0),
            ttft_s=empty_histogram(TTFT_BOUNDS_S),
            tpot_s=empty_histogram(TPOT_BOUNDS_S),
        )

    def add(self, end: pb.Statistics | grpc.StatusCode) -> None:
        """`end`: how the request went, or the status that it failed with."""
        if isinstance(end, grpc.StatusCode):
            self._totals.outcomes[FAILURES.get(end, OTHER)] += 1
            return
        self._totals.outcomes[LENGTH if end.finish_reason == pb.Statistics.LENGTH else STOP] += 1
        if end.tokens > 0:
            observe(self._totals.ttft_s, end.ttft_s)
        if end.tokens > 1:
            observe(self._totals.tpot_s, end.tpot_s)

    def message(self) -> pb.RequestTotals:
        """The counters themselves: copy what is to last."""
        return self._totals
