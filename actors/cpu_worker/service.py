"""Expert calls at the worker, over gRPC or the lane: who is let in, until when, and how failures are named."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent import futures
from dataclasses import dataclass
from functools import partial

import grpc
import structlog
import torch
from google.protobuf.message import DecodeError

from ...kernels.threads import use_threads
from ...protos.v1.experts_pb2 import ExpertCall, ExpertRows, LaneOffer, LaneRequest
from ...protos.v1.experts_pb2_grpc import ExpertsServicer
from ..core import ModelShape
from ..prefetcher.source import ExpertsUnavailable
from ..prefetcher.store import StoreCorrupt, StoreError
from ..transport.calls import PARTS_IN_FLIGHT
from ..transport.endpoint import host_id
from ..transport.errors import Refusal
from ..transport.wire import DecodedCall, MalformedCall, WrongStore, decode_call, encode_rows
from .compute import ExpertComputer, GaveUp
from .compute_thread import ComputeThread
from .lane import LaneCall, LaneServer

MAX_WAITING = 2 * PARTS_IN_FLIGHT
"""Calls that wait while one is computed: two large calls, cut; the next ones get RESOURCE_EXHAUSTED."""

_CODES = {
    DecodeError: grpc.StatusCode.INVALID_ARGUMENT,
    MalformedCall: grpc.StatusCode.INVALID_ARGUMENT,
    WrongStore: grpc.StatusCode.FAILED_PRECONDITION,
    StoreCorrupt: grpc.StatusCode.DATA_LOSS,
    StoreError: grpc.StatusCode.ABORTED,
    ExpertsUnavailable: grpc.StatusCode.ABORTED,
    GaveUp: grpc.StatusCode.CANCELLED,
    futures.CancelledError: grpc.StatusCode.CANCELLED,
    futures.TimeoutError: grpc.StatusCode.DEADLINE_EXCEEDED,
}


@dataclass(frozen=True)
class _Serving:
    computer: ExpertComputer
    fingerprint: str
    shape: ModelShape


class ExpertsService(ExpertsServicer):
    """Computes one call at a time, on one thread; calls over gRPC and those of each lane take turns."""

    def __init__(
        self,
        name: str,
        threads: int,
        cores: Sequence[int] | None = None,
        max_waiting: int = MAX_WAITING,
        lane: bool = True,
    ):
        """`threads` that compute, pinned to `cores` if given; `max_waiting`: calls held while one is computed.

        `lane`: whether callers on this host are offered one.
        """
        self._name, self._max_waiting = name, max_waiting
        self._log = structlog.get_logger().bind(actor=name)
        self._serving: _Serving | None = None
        self._places = threading.BoundedSemaphore(max_waiting + 1)
        self._thread = ComputeThread(f"{name}-compute", partial(use_threads, threads, cores))
        self._offers_lane = lane
        self._lane: LaneServer | None = None

    @property
    def handler_threads(self) -> int:
        """Threads that the server needs so that waiting calls do not keep out health checks."""
        return self._max_waiting + 1 + 4

    def serve(self, computer: ExpertComputer, fingerprint: str, shape: ModelShape) -> None:
        """From now on calls are computed; until then they are answered UNAVAILABLE."""
        if self._offers_lane:
            self._lane = LaneServer(self._name, self._thread, self._answer, self._max_waiting + 1)
        self._serving = _Serving(computer, fingerprint, shape)

    def close(self) -> None:
        """Ends the thread; waiting calls are cancelled, the running one ends first."""
        self._serving = None
        self._thread.close()
        if self._lane is not None:
            self._lane.close()

    def OpenLane(self, request: LaneRequest, context: grpc.ServicerContext) -> LaneOffer:
        if self._serving is None:
            context.abort(grpc.StatusCode.UNAVAILABLE, self._not_serving())
        if not self._offers_lane:
            return LaneOffer(refusal=f"devices.{self._name}.lane is grpc")
        if request.host_id != host_id():
            return LaneOffer(refusal=f"the caller is on another host than {self._name}")
        return LaneOffer(address=self._lane.address)

    def Compute(self, request: ExpertCall, context: grpc.ServicerContext) -> ExpertRows:
        try:
            serving = self._checked()
            call = decode_call(request, serving.fingerprint, serving.shape)
            return self._admit(serving.computer, call, context)
        except Exception as error:
            context.abort(*self._named(error))

    def _admit(self, computer: ExpertComputer, call: DecodedCall, context: grpc.ServicerContext) -> ExpertRows:
        if not self._places.acquire(blocking=False):
            raise Refusal(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"{self._name} computes one call and holds {self._max_waiting} more: try again, or elsewhere",
            )
        left_s = context.time_remaining()
        deadline = None if left_s is None else time.monotonic() + left_s
        job = self._thread.submit(partial(self._compute, computer, call, _wanted(context), deadline))
        # A place is free when the job has ended, not when its caller has gone.
        job.add_done_callback(lambda _: self._places.release())
        if not context.add_callback(job.cancel):
            job.cancel()
        return job.result(None if left_s is None else min(left_s, threading.TIMEOUT_MAX))

    def _answer(self, asked: LaneCall) -> bytes:
        """What the lane asks for, on the thread that computes."""
        try:
            if self._thread.broken is not None:
                raise self._thread.broken
            serving = self._checked()
            head = ExpertCall.FromString(asked.head)
            call = decode_call(head, serving.fingerprint, serving.shape, asked.memory.read_call(head))
            out = asked.memory.rows(len(call.token_rows), serving.shape.hidden_size)
            reply = self._compute(serving.computer, call, asked.wanted, asked.deadline, out)
            return reply.SerializeToString()
        except Exception as error:
            raise Refusal(*self._named(error)) from error

    def _compute(
        self,
        computer: ExpertComputer,
        call: DecodedCall,
        wanted: Callable[[], bool],
        deadline: float | None,
        out: torch.Tensor | None = None,
    ) -> ExpertRows:
        """`out`: where the rows are left; None: they are part of the reply."""
        started_ns = time.time_ns()
        rows, waited_s = computer.rows(call, wanted, deadline, out)
        return encode_rows(rows if out is None else None, started_ns, time.time_ns(), waited_s, self._name)

    def _checked(self) -> _Serving:
        serving = self._serving
        if serving is None:
            raise Refusal(grpc.StatusCode.UNAVAILABLE, self._not_serving())
        return serving

    def _not_serving(self) -> str:
        return f"{self._name} does not serve: it is starting or stopping"

    def _named(self, error: Exception) -> tuple[grpc.StatusCode, str]:
        """What the caller is told, whichever way its call came."""
        if isinstance(error, Refusal):
            return error.code, error.reason
        for kind in type(error).__mro__:
            if kind in _CODES:
                return _CODES[kind], str(error) or f"{self._name} gave the call up: nobody waits for it any more"
        self._log.error("expert call failed", exc_info=error)
        return grpc.StatusCode.UNKNOWN, f"{type(error).__name__}: {error}"


def _wanted(context: grpc.ServicerContext) -> Callable[[], bool]:
    def wanted() -> bool:
        left_s = context.time_remaining()
        return context.is_active() and (left_s is None or left_s > 0)

    return wanted
