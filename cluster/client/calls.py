"""What the synchronous and the asyncio client have in common: received events, readiness."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import grpc
from grpc_health.v1 import health_pb2

from ...actors.core import Span, TokenLogprobs
from ...actors.transport.messages import logprobs_from_proto
from ...protos.v1 import generation_pb2
from .errors import DeadlineExceeded, MoespacError
from .results import GenerationStatistics

UNARY_TIMEOUT_S = 10.0
"""Limit of the calls that compute nothing."""
READY_POLL_S = 0.1
SERVICE = generation_pb2.DESCRIPTOR.services_by_name["Generation"].full_name


class Received:
    """What has arrived of one generation: the same for both clients."""

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        """Generated token ids so far."""
        self.spans: list[Span] = []
        """Timeline so far; empty unless asked for with `trace`."""
        self.statistics: GenerationStatistics | None = None
        """How it went; None until the end."""
        self.logprobs: list[TokenLogprobs] = []
        """Of each token id, of the model's own distribution (temperature 1, no limits); empty unless asked for."""
        self._pieces: list[str] = []

    @property
    def text(self) -> str:
        """Generated text so far."""
        return "".join(self._pieces)

    def _take(self, event: generation_pb2.GenerateEvent) -> str:
        """Files one event; returns its text, which may be empty."""
        kind = event.WhichOneof("event")
        if kind == "piece":
            self.token_ids.extend(event.piece.token_ids)
            self.logprobs.extend(map(logprobs_from_proto, event.piece.logprobs))
            self._pieces.append(event.piece.text)
            return event.piece.text
        if kind == "spans":
            self.spans.extend(
                Span(span.row, span.name, span.start_ns, span.end_ns, dict(span.args)) for span in event.spans.spans
            )
        elif kind == "statistics":
            self.statistics = GenerationStatistics.from_proto(event.statistics)
        return ""

    def _check_complete(self) -> None:
        if self.statistics is None:
            raise MoespacError(
                "the service ended the generation without statistics: its text may be cut off; try again",
                grpc.StatusCode.DATA_LOSS,
            )


@dataclass
class Readiness:
    """One wait for a service to become ready; the caller asks and sleeps, this decides."""

    address: str
    timeout_s: float
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._until = self.clock() + self.timeout_s
        self._last = "nothing answers there"

    def call_timeout(self) -> float:
        """Seconds that the next question may take. Raises DeadlineExceeded when there are none left."""
        remaining = self._until - self.clock()
        if remaining <= 0:
            raise DeadlineExceeded(
                f"{self.address} was not ready after {self.timeout_s:g} s ({self._last}): "
                f"wait longer, or ask `moespac status`"
            )
        return min(remaining, UNARY_TIMEOUT_S)

    def answered(self, reply: health_pb2.HealthCheckResponse) -> bool:
        """Whether the service can produce a token now."""
        self._last = "it is loading, or an actor is away"
        return reply.status == health_pb2.HealthCheckResponse.SERVING

    def failed(self, error: grpc.RpcError) -> None:
        """Nobody there yet: go on asking. Any other failure is final."""
        if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
            raise error
        self._last = error.details() or error.code().name


def health_request() -> health_pb2.HealthCheckRequest:
    return health_pb2.HealthCheckRequest(service=SERVICE)
