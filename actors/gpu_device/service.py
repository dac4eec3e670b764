"""The Device service: steps one at a time on a thread of their own, transfers beside them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import TypeVar

import grpc

from ...kernels.threads import use_threads
from ...protos.v1 import steps_pb2 as pb
from ...protos.v1.steps_pb2_grpc import DeviceServicer
from ..core import DraftChoice, ExpertKey
from ..policy.chain import LONGEST, PLACES
from ..prefetcher.source import ExpertsUnavailable
from ..prefetcher.store import StoreCorrupt, StoreError
from ..transport.messages import plan_from_proto, refs, sampling_from_proto
from .decode import ContextFull, Session
from .kv import KvExhausted
from .loading import Device
from .overlap_meter import OverlapMeter
from .passes import DeadlinePassed, Pass, PassAbandoned
from .replies import description, step_reply
from .sessions import BadRequest, UnknownRequest

T = TypeVar("T")

_CODES = {
    BadRequest: grpc.StatusCode.INVALID_ARGUMENT,
    UnknownRequest: grpc.StatusCode.NOT_FOUND,
    KvExhausted: grpc.StatusCode.RESOURCE_EXHAUSTED,
    ContextFull: grpc.StatusCode.OUT_OF_RANGE,
    PassAbandoned: grpc.StatusCode.ABORTED,
    DeadlinePassed: grpc.StatusCode.DEADLINE_EXCEEDED,
    ExpertsUnavailable: grpc.StatusCode.ABORTED,
    StoreCorrupt: grpc.StatusCode.DATA_LOSS,
    StoreError: grpc.StatusCode.ABORTED,
}


class DeviceService(DeviceServicer):
    """Serves a device from `serve` on; before, and after `close`, it answers UNAVAILABLE."""

    def __init__(self, name: str, threads: int, cores: Sequence[int] | None = None):
        """`threads`: CPU threads for computing, pinned to `cores` if given."""
        self._name = name
        self._device: Device | None = None
        self._meter: OverlapMeter | None = None
        # One thread computes: steps take turns, and torch keeps a pool of helpers for each thread that computes.
        self._compute = futures.ThreadPoolExecutor(
            1, thread_name_prefix=f"{name}-compute", initializer=use_threads, initargs=(threads, cores)
        )

    def serve(self, device: Device) -> None:
        self._meter = OverlapMeter(device.slots.transfers)
        self._device = device

    def close(self) -> None:
        """Abandons the running step between two layers and waits for it; calls that wait are cancelled."""
        self._device = None
        self._compute.shutdown(wait=True, cancel_futures=True)

    def Describe(self, request: pb.DescribeRequest, context: grpc.ServicerContext) -> pb.DeviceDescription:
        return description(self._name, self._device)

    def Open(self, request: pb.OpenRequest, context: grpc.ServicerContext) -> pb.OpenReply:
        device = self._loaded(context)
        if not request.request_id:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "request_id: empty: name the request")
        # A step for a scheduler that is no more may still run under this name.
        device.sessions.let_go(request.request_id)
        device.sessions.let_go_unless_of(request.scheduler)
        return self._in_turn(context, self._open, device, request)

    def Step(self, request: pb.StepRequest, context: grpc.ServicerContext) -> pb.StepReply:
        device = self._loaded(context)
        if request.prefill_chunk < 1:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "prefill_chunk: 0: give at least 1 token")
        return self._in_turn(context, self._step, device, request, context)

    def Close(self, request: pb.CloseRequest, context: grpc.ServicerContext) -> pb.CloseReply:
        device = self._loaded(context)
        device.sessions.let_go(request.request_id)
        self._in_turn(context, device.sessions.close, request.request_id)
        return pb.CloseReply()

    def SetPlan(self, request: pb.Plan, context: grpc.ServicerContext) -> pb.PlanReply:
        device = self._loaded(context)
        try:
            plan = plan_from_proto(request, device.shape)
        except ValueError as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        return pb.PlanReply(accepted=device.slots.set_plan(plan), epoch_held=device.slots.epoch)

    def Fill(self, request: pb.FillRequest, context: grpc.ServicerContext) -> pb.FillReply:
        device = self._loaded(context)
        key = ExpertKey(request.expert.layer, request.expert.expert)
        if key.layer not in device.shape.layer_ids or key.expert >= device.shape.n_experts:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"expert: the model has no {key}")
        filled = device.slots.fill(device.source, key, request.utility, request.plan_epoch)
        return pb.FillReply(
            outcome=filled.outcome.value,
            evicted=refs(filled.evicted),
            seconds=filled.seconds,
            bytes=filled.bytes,
        )

    def _open(self, device: Device, request: pb.OpenRequest) -> pb.OpenReply:
        device.sessions.open(
            request.request_id,
            request.token_ids,
            request.reserve_tokens,
            sampling_from_proto(request.sampling),
            request.scheduler,
            request.prompt_tokens or None,
            request.logprobs if request.HasField("logprobs") else None,
        )
        if device.sessions.alone(request.request_id):
            # Transfers made while nothing was asked for are no request's.
            self._meter.forget()
        return pb.OpenReply()

    def _step(self, device: Device, request: pb.StepRequest, context: grpc.ServicerContext) -> pb.StepReply:
        session = device.sessions.get(request.request_id)
        run = self._pass(device, session, request, context)
        start_ns = time.time_ns()
        try:
            result = device.decoder.step(session, _choices(device, request), request.prefill_chunk, run)
        finally:
            self._meter.computed(start_ns, time.time_ns())
        return step_reply(device, session, run, result, self._meter.report())

    def _pass(self, device: Device, session: Session, request: pb.StepRequest, context: grpc.ServicerContext) -> Pass:
        left_s = context.time_remaining()
        return Pass(
            device.shape,
            (request.request_id,),
            epoch=device.slots.epoch,
            deadline=None if left_s is None else time.monotonic() + left_s,
            wanted=lambda: context.is_active() and self._device is device and not session.closing,
            trace=request.trace,
        )

    def _in_turn(self, context: grpc.ServicerContext, work: Callable[..., T], *arguments) -> T:
        """Runs `work` on the computing thread, after what is there already; its failures become gRPC's."""
        try:
            return self._compute.submit(work, *arguments).result()
        except (futures.CancelledError, RuntimeError, *_CODES) as error:
            if self._device is None:
                # Whatever it was, `close` is behind it: the executor takes nothing more, steps break off.
                context.abort(grpc.StatusCode.UNAVAILABLE, f"{self._name} is stopping")
            code = next((_CODES[kind] for kind in type(error).__mro__ if kind in _CODES), None)
            if code is None:
                raise
            context.abort(code, str(error))

    def _loaded(self, context: grpc.ServicerContext) -> Device:
        device = self._device
        if device is None:
            context.abort(grpc.StatusCode.UNAVAILABLE, f"{self._name} does not serve: it is starting or stopping")
        return device


def _choices(device: Device, request: pb.StepRequest) -> list[DraftChoice]:
    return [_choice(device, choice) for choice in request.drafts]


def _choice(device: Device, choice: pb.DraftChoice) -> DraftChoice:
    if choice.kind not in device.decoder.drafts:
        raise BadRequest(
            f"drafts: {choice.kind!r} is none of this device's drafts: "
            f"choose among {', '.join(device.decoder.drafts) or 'none'}"
        )
    if len(choice.chances) not in (0, PLACES):
        raise BadRequest(f"drafts: chances of {choice.kind!r}: {len(choice.chances)} values: give {PLACES} or none")
    for value in choice.chances:
        if not 0.0 <= value <= 1.0:
            raise BadRequest(f"drafts: chances of {choice.kind!r}: {value} is no chance: give 0 to 1")
    if len(choice.floors) > LONGEST:
        raise BadRequest(f"drafts: floors of {choice.kind!r}: {len(choice.floors)} values: give at most {LONGEST}")
    for value in choice.floors:
        if not math.isfinite(value):
            raise BadRequest(f"drafts: floors of {choice.kind!r}: {value} is no floor: give finite numbers")
    return DraftChoice(choice.kind, choice.gamma, choice.least_match, tuple(choice.chances), tuple(choice.floors))
