"""The prefetcher's gRPC service: leases on experts in the arena, and plans."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import grpc

from ...protos.v1 import steps_pb2 as pb
from ...protos.v1.steps_pb2_grpc import PrefetcherServicer
from ...version import __version__
from ..core import Plan
from ..transport.messages import plan_from_proto
from .arena import Arena
from .lease import ExpertsUnavailable
from .loader import FETCH_TIMEOUT_S, Loader
from .store import ExpertStore, StoreError

MOST_HOLD_S = 300.0
REPLY_MARGIN_S = 0.05
"""Left of a caller's deadline for the answer to travel."""


@dataclass(frozen=True)
class Engine:
    """What the service speaks for. `on_plan`: told every plan that is taken, in the order of their epochs."""

    store: ExpertStore
    arena: Arena
    loader: Loader
    on_plan: Callable[[Plan], None]


class PrefetcherService(PrefetcherServicer):
    """Answers UNAVAILABLE until `serve` is called."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._engine: Engine | None = None
        self._plan_lock = threading.Lock()
        self._epoch = 0

    def serve(self, engine: Engine) -> None:
        """From now on calls are served."""
        self._engine = engine

    def _running(self, context: grpc.ServicerContext) -> Engine:
        engine = self._engine
        if engine is None:
            context.abort(grpc.StatusCode.UNAVAILABLE, f"{self._name} is starting: try again")
        return engine

    def Describe(self, request: pb.DescribeRequest, context: grpc.ServicerContext) -> pb.PrefetcherDescription:
        engine = self._running(context)
        return pb.PrefetcherDescription(
            name=self._name,
            version=__version__,
            store_fingerprint=engine.store.fingerprint,
            arena=engine.arena.location.to_proto(),
            arena_bytes=engine.arena.location.bytes,
            loaded_bytes=engine.loader.loaded_bytes,
            ready=engine.loader.filled,
            disk_bytes_read=engine.store.bytes_read,
        )

    def SetPlan(self, request: pb.Plan, context: grpc.ServicerContext) -> pb.PlanReply:
        """Takes a plan unless one as new is held. INVALID_ARGUMENT for a plan of another model."""
        engine = self._running(context)
        try:
            plan = plan_from_proto(request, engine.store.shape)
        except ValueError as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        with self._plan_lock:
            accepted = plan.epoch > self._epoch
            if accepted:
                self._epoch = plan.epoch
                engine.loader.set_plan(plan)
                engine.on_plan(plan)
            return pb.PlanReply(accepted=accepted, epoch_held=self._epoch)

    def Fetch(self, request: pb.FetchRequest, context: grpc.ServicerContext) -> pb.FetchReply:
        """INVALID_ARGUMENT: no such expert; RESOURCE_EXHAUSTED: no room in time; DATA_LOSS: the store is damaged."""
        engine = self._running(context)
        if not 0 < request.hold_s <= MOST_HOLD_S:
            context.abort(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"hold_s is {request.hold_s:g}: choose more than 0 and at most {MOST_HOLD_S:g} seconds",
            )
        remaining = context.time_remaining()
        timeout_s = FETCH_TIMEOUT_S if remaining is None else min(FETCH_TIMEOUT_S, remaining - REPLY_MARGIN_S)
        try:
            lease = engine.loader.fetch(request.layer, request.expert_ids, request.hold_s, timeout_s=timeout_s)
        except KeyError as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, error.args[0])
        except StoreError as error:
            context.abort(grpc.StatusCode.DATA_LOSS, str(error))
        except ExpertsUnavailable as error:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
        if not context.is_active():
            lease.release()  # the caller has given up: nobody would
        return pb.FetchReply(lease=lease.id, granted=lease.granted, waited_s=lease.waited_s)

    def Release(self, request: pb.ReleaseRequest, context: grpc.ServicerContext) -> pb.ReleaseReply:
        self._running(context).loader.release(request.lease)
        return pb.ReleaseReply()
