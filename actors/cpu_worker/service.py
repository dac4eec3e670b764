"""Experts.Compute: who is let in, in which order, until when, and how failures are named."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent import futures
from dataclasses import dataclass

import grpc

from ...kernels.threads import use_threads
from ...protos.v1.experts_pb2 import ExpertCall, ExpertRows
from ...protos.v1.experts_pb2_grpc import ExpertsServicer
from ..core import ModelShape
from ..prefetcher.source import ExpertsUnavailable
from ..prefetcher.store import StoreCorrupt, StoreError
from ..transport.calls import PARTS_IN_FLIGHT
from ..transport.wire import DecodedCall, MalformedCall, WrongStore, decode_call, encode_rows
from .compute import ExpertComputer, GaveUp

MAX_WAITING = 2 * PARTS_IN_FLIGHT
"""Calls that wait while one is computed: two large calls, cut; the next ones get RESOURCE_EXHAUSTED."""

_CODES = {
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
    """Computes one call at a time, in order of arrival, on one thread of its own.

    More than one at a time would have each call's torch threads compete for the same cores; a thread of its
    own, because every thread that computes keeps a pool of helper threads.
    """

    def __init__(self, name: str, threads: int, cores: Sequence[int] | None = None, max_waiting: int = MAX_WAITING):
        """`threads` that compute, pinned to `cores` if given; `max_waiting`: calls held while one is computed."""
        self._name, self._max_waiting = name, max_waiting
        self._serving: _Serving | None = None
        self._places = threading.BoundedSemaphore(max_waiting + 1)
        self._compute_thread = futures.ThreadPoolExecutor(
            1, thread_name_prefix=f"{name}-compute", initializer=use_threads, initargs=(threads, cores)
        )

    @property
    def handler_threads(self) -> int:
        """Threads that the server needs so that waiting calls do not keep out health checks."""
        return self._max_waiting + 1 + 4

    def serve(self, computer: ExpertComputer, fingerprint: str, shape: ModelShape) -> None:
        """From now on calls are computed; until then they are answered UNAVAILABLE."""
        self._serving = _Serving(computer, fingerprint, shape)

    def close(self) -> None:
        """Ends the thread; waiting calls are cancelled, the running one ends first."""
        self._serving = None
        self._compute_thread.shutdown(wait=True, cancel_futures=True)

    def Compute(self, request: ExpertCall, context: grpc.ServicerContext) -> ExpertRows:
        serving = self._serving
        if serving is None:
            context.abort(grpc.StatusCode.UNAVAILABLE, f"{self._name} does not serve: it is starting or stopping")
        try:
            call = decode_call(request, serving.fingerprint, serving.shape)
            return self._admit(serving.computer, call, context)
        except tuple(_CODES) as error:
            code = next(_CODES[kind] for kind in type(error).__mro__ if kind in _CODES)
            context.abort(code, str(error) or f"{self._name} gave the call up: nobody waits for it any more")

    def _admit(self, computer: ExpertComputer, call: DecodedCall, context: grpc.ServicerContext) -> ExpertRows:
        if not self._places.acquire(blocking=False):
            context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"{self._name} computes one call and holds {self._max_waiting} more: try again, or elsewhere",
            )
        left_s = context.time_remaining()
        deadline = None if left_s is None else time.monotonic() + left_s
        job = self._compute_thread.submit(self._compute, computer, call, _wanted(context), deadline)
        # A place is free when the job has ended, not when its caller has gone.
        job.add_done_callback(lambda _: self._places.release())
        if not context.add_callback(job.cancel):
            job.cancel()
        return job.result(None if left_s is None else min(left_s, threading.TIMEOUT_MAX))

    def _compute(
        self, computer: ExpertComputer, call: DecodedCall, wanted: Callable[[], bool], deadline: float | None
    ) -> ExpertRows:
        started_ns = time.time_ns()
        rows, waited_s = computer.rows(call, wanted, deadline)
        return encode_rows(rows, started_ns, time.time_ns(), waited_s, self._name)


def _wanted(context: grpc.ServicerContext) -> Callable[[], bool]:
    def wanted() -> bool:
        left_s = context.time_remaining()
        return context.is_active() and (left_s is None or left_s > 0)

    return wanted
