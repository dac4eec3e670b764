"""The step loop: requests take turns, one step of the device each."""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass

import grpc
import grpc.aio
import structlog

from ...protos.v1 import generation_pb2 as pb
from ...protos.v1 import steps_pb2
from ..core import Sampling
from ..policy.turns import Refused, Turns
from ..transport.messages import sampling_from_proto
from .device_client import DeviceClient, DeviceLost
from .planning import PlanDispatch
from .request import Failure, Request
from .tally import LinkTotals, Tally

log = structlog.get_logger()

MAX_STALLS = 3
"""A request over which the device is lost more often without a token in between is given up."""


@dataclass(frozen=True)
class LoopSettings:
    """`prefill_chunk` tokens a prefill step; `restart_patience_s`: how long requests wait for a lost device."""

    gamma: int
    prefill_chunk: int
    restart_patience_s: float


class StepLoop:
    """Owns the requests. Everything here runs on one event loop; nothing is shared with other threads."""

    def __init__(self, device: DeviceClient, turns: Turns, settings: LoopSettings):
        self._device, self._turns, self._settings = device, turns, settings
        self._plans: PlanDispatch | None = None
        self._requests: dict[str, Request] = {}
        self._link = LinkTotals()
        self._work = asyncio.Event()
        self._description = steps_pb2.DeviceDescription()
        self._eos: frozenset[int] = frozenset()
        self.ready = False

    # ---- requests come and go ------------------------------------------------------------------------------------

    def new_request(self, message: pb.SubmitRequest, remaining_s: float | None) -> Request:
        """A request not yet submitted. `remaining_s`: of the client's deadline; None: it has none."""
        gamma = message.gamma if message.HasField("gamma") else self._settings.gamma
        return Request(
            id=message.request_id,
            prompt_ids=tuple(message.prompt_ids),
            max_tokens=message.max_tokens,
            sampling=sampling_from_proto(message.sampling),
            gamma=gamma if self._description.has_draft else 0,
            trace=message.trace,
            ignore_eos=message.ignore_eos,
            tally=Tally(time.monotonic(), self._link.copy()),
            emitted=list(message.emitted_ids),
            deadline_s=math.inf if remaining_s is None else time.monotonic() + remaining_s,
        )

    def submit(self, request: Request) -> Failure | None:
        """Takes the request into the rotation or the queue; a Failure says why not."""
        limit = self._description.context_length
        wanted = len(request.prompt_ids) + request.max_tokens
        if wanted > limit:
            return Failure(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"prompt ({len(request.prompt_ids)} tokens) and max_tokens ({request.max_tokens}) need {wanted} "
                f"positions, the context has {limit}: shorten the prompt or ask for fewer tokens",
            )
        if request.id in self._requests:
            return Failure(grpc.StatusCode.ALREADY_EXISTS, f"request {request.id!r} is running already")
        verdict = self._turns.submit(request.id, request.reserve_tokens * self._description.kv_bytes_per_token)
        if isinstance(verdict, Refused):
            return Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, verdict.message)
        self._requests[request.id] = request
        self._work.set()
        return None

    def abandon(self, request: Request) -> None:
        """The client has left: no further step; the device frees its cache."""
        if self._requests.get(request.id) is request:
            request.abandoned = True
            self._work.set()

    @property
    def running(self) -> int:
        return len(self._turns.running)

    @property
    def waiting(self) -> int:
        return len(self._turns.waiting)

    @property
    def description(self) -> steps_pb2.DeviceDescription:
        """The device as last seen."""
        return self._description

    @property
    def plan_epoch(self) -> int:
        return self._plans.epoch if self._plans is not None else 0

    async def refresh(self) -> None:
        """Looks at the device again, for its figures; one that is away or loading makes the loop look for it."""
        try:
            description = await self._device.describe()
        except DeviceLost:
            description = None
        if description is not None and description.ready:
            self._adopt(description)
        else:
            self.ready = False
            self._work.set()

    async def stop(self) -> None:
        if self._plans is not None:
            await self._plans.stop()

    # ---- the loop ------------------------------------------------------------------------------------------------

    async def start(self, description: steps_pb2.DeviceDescription, plans: PlanDispatch) -> None:
        """Proves with one real token that the whole path works; then the service may call itself ready."""
        self._plans = plans
        self._adopt(description)
        probe = Request(
            id="warm-up",
            prompt_ids=(description.eos_token_ids[0] if description.eos_token_ids else 0,),
            max_tokens=1,
            sampling=Sampling(),
            gamma=0,
            trace=False,
            ignore_eos=True,
            tally=Tally(time.monotonic(), self._link.copy()),
        )
        await self._device.open(probe)
        try:
            await self._device.step(probe.id, 0, self._settings.prefill_chunk, False)
        finally:
            await self._device.close(probe.id)
        self.ready = True

    async def run(self) -> None:
        """Runs for ever; one turn a round."""
        while True:
            await self._drop_abandoned()
            if not self.ready:
                await self._recover("not ready")
                continue
            request_id = self._turns.next()
            if request_id is None:
                self._work.clear()
                await self._work.wait()
                continue
            request = self._requests[request_id]
            try:
                await self._turn(request)
            except DeviceLost as error:
                await self._recover(str(error))
            except grpc.aio.AioRpcError as error:
                if error.code() == grpc.StatusCode.NOT_FOUND and request.opened:
                    request.opened = False  # a restarted device does not know it: it is opened again
                else:
                    await self._end(request, Failure(error.code(), error.details() or "the device gave no reason"))

    async def _turn(self, request: Request) -> None:
        remaining_s = request.deadline_s - time.monotonic()
        if remaining_s <= 0:
            await self._end(request, Failure(grpc.StatusCode.DEADLINE_EXCEEDED, "the request's deadline has passed"))
            return
        if not request.opened:
            await self._device.open(request)
            request.opened = True
        gamma = min(request.gamma, request.remaining - 1)
        reply = await self._device.step(request.id, gamma, self._settings.prefill_chunk, request.trace, remaining_s)
        request.stalls = 0
        self._link.add(reply.timings)
        request.tally.add_step(reply)
        tokens, reason = request.take(list(reply.emitted), self._eos)
        request.tally.add_tokens(len(tokens), time.monotonic())
        for plan in self._plans.observe(request.id, reply):
            for running in self._requests.values():
                running.tally.add_plan(plan.milliseconds, plan.status)
        spans = [*reply.spans, *self._plans.take_spans()] if request.trace else []
        if tokens or spans:
            request.events.put_nowait(pb.SubmitEvent(token_ids=tokens, spans=spans))
        if reason is not None:
            await self._end(request, reason)

    async def _end(self, request: Request, outcome: Failure | pb.Statistics.FinishReason) -> None:
        if isinstance(outcome, Failure):
            request.events.put_nowait(outcome)
        else:
            statistics = request.tally.statistics(
                outcome, len(request.prompt_ids), time.monotonic(), self._link, self._description.emulated
            )
            request.events.put_nowait(pb.SubmitEvent(statistics=statistics))
        await self._forget(request)

    async def _forget(self, request: Request) -> None:
        self._turns.remove(request.id)
        del self._requests[request.id]
        try:
            # Also where `opened` is False: a device that was lost only for a while still holds its cache.
            await self._device.close(request.id)
        except DeviceLost:
            pass  # its caches went with it
        except grpc.aio.AioRpcError as error:
            log.warning("request not closed", request=request.id, code=error.code().name, reason=error.details())

    async def _drop_abandoned(self) -> None:
        for request in [r for r in self._requests.values() if r.abandoned]:
            await self._forget(request)

    async def _recover(self, reason: str) -> None:
        """The device is away: wait for Ray to bring it back, then every request is opened again from its tokens."""
        log.warning("device lost", device=self._device.name, reason=reason)
        self.ready = False
        for request in list(self._requests.values()):
            if request.opened:
                request.opened = False
                request.tally.restarts += 1
                request.stalls += 1
            if request.stalls > MAX_STALLS:
                message = f"the device was lost {request.stalls} times over this request, last because {reason}"
                await self._end(request, Failure(grpc.StatusCode.UNAVAILABLE, message))
        try:
            self._adopt(await self._device.wait_ready(self._settings.restart_patience_s))
            self.ready = True
        except (DeviceLost, grpc.aio.AioRpcError) as error:
            message = f"{error}: see the actor's log, then submit the request again"
            for request in list(self._requests.values()):
                await self._end(request, Failure(grpc.StatusCode.UNAVAILABLE, message))
            # The device may still come back: keep looking, and meanwhile refuse new requests.

    def _adopt(self, description: steps_pb2.DeviceDescription) -> None:
        self._description = description
        self._eos = frozenset(description.eos_token_ids)
