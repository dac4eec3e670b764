"""What the synchronous and the asyncio client have in common: requests, received events, readiness."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import grpc
from grpc_health.v1 import health_pb2

from ...actors.core import Span
from ...protos.v1 import generation_pb2
from .errors import DeadlineExceeded, InvalidRequest, MoespacError
from .results import GenerationStatistics

UNARY_TIMEOUT_S = 10.0
"""Limit of the calls that compute nothing."""
READY_POLL_S = 0.1
SERVICE = generation_pb2.DESCRIPTOR.services_by_name["Generation"].full_name


def generate_request(
    prompt: str,
    *,
    max_tokens: int,
    temperature: float,
    top_p: float,
    top_k: int,
    seed: int,
    gamma: int | None,
    trace: bool,
    ignore_eos: bool,
    model: str,
) -> generation_pb2.GenerateRequest:
    """The message for these arguments. Raises InvalidRequest for what the message cannot even hold."""
    if not isinstance(prompt, str):
        raise InvalidRequest(f"prompt: {type(prompt).__name__} is not text: pass a str")
    # On the wire 0 means "not set": it would silently become 1.
    if top_p == 0:
        raise InvalidRequest("top_p: 0 is outside (0, 1]: use 1 for no limit, or temperature=0 for greedy decoding")
    request = generation_pb2.GenerateRequest(trace=trace, ignore_eos=ignore_eos, model=model)
    fields = (
        (request, "prompt", prompt),
        (request, "max_tokens", max_tokens),
        (request, "gamma", gamma),
        (request.sampling, "temperature", temperature),
        (request.sampling, "top_p", top_p),
        (request.sampling, "top_k", top_k),
        (request.sampling, "seed", seed),
    )
    for message, name, value in fields:
        if value is None and name == "gamma":
            continue
        try:
            setattr(message, name, value)
        except (TypeError, ValueError) as error:
            raise InvalidRequest(f"{name}: {value!r} cannot be sent: {error}") from error
    return request


class Received:
    """What has arrived of one generation: the same for both clients."""

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        """Generated token ids so far."""
        self.spans: list[Span] = []
        """Timeline so far; empty unless asked for with `trace`."""
        self.statistics: GenerationStatistics | None = None
        """How it went; None until the end."""
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
