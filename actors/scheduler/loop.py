"""The step loop: requests take turns, one step of the device each."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import grpc
import grpc.aio
import structlog

from ...protos.v1 import generation_pb2 as pb
from ...protos.v1 import steps_pb2
from ..core import DraftChoice, Sampling
from ..policy.turns import Refused, Turns
from ..transport.messages import sampling_from_proto
from .device_client import DeviceClient, DeviceLost
from .drafting import Drafting, decision_span, most_tokens
from .planning import PlanDispatch
from .request import End, Failure, Request
from .tally import Tally
from .totals import Totals

log = structlog.get_logger()

CALIBRATION_S = 5.0
"""No step to time drafts begins later after the first; on a slow machine the requests themselves must tell."""
MAX_STALLS = 3
"""A request over which the device is lost more often without a token in between is given up."""


@dataclass(frozen=True)
class LoopSettings:
    """`prefill_chunk` tokens a prefill step; `restart_patience_s`: how long requests wait for a lost device."""

    gamma: int | None
    """Draft tokens a step; None: the governor's choice."""
    prefill_chunk: int
    restart_patience_s: float


class StepLoop:
    """Owns the requests. Everything here runs on one event loop; nothing is shared with other threads."""

    def __init__(self, device: DeviceClient, turns: Turns, settings: LoopSettings):
        self._device, self._turns, self._settings = device, turns, settings
        self._plans: PlanDispatch | None = None
        self._drafting = Drafting(())
        self._requests: dict[str, Request] = {}
        self._totals = Totals()
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
            gamma=gamma,
            most_drafted=most_tokens(gamma, self._description.drafts),
            trace=message.trace,
            stop_tokens=frozenset(message.stop_token_ids) | (frozenset() if message.ignore_eos else self._eos),
            logprobs=message.logprobs if message.HasField("logprobs") else None,
            tally=Tally(time.monotonic(), self._totals.link.copy()),
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

    def finish(self, request_id: str) -> None:
        """No further token is wanted: the stream closes with the statistics. One that is not here is no error."""
        request = self._requests.get(request_id)
        if request is not None:
            # Not behind the running step, nor behind a device that is away: the client has its text already.
            request.events.put_nowait(pb.SubmitEvent(statistics=self._statistics(request, End(pb.Statistics.STOP))))
            self.abandon(request)

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

    def report(self, status: pb.StatusReply) -> None:
        """Fills in what has been decided and done since the start."""
        if self._plans is not None:
            status.planning.CopyFrom(self._plans.status())
        status.speculation.CopyFrom(self._drafting.status())
        status.work.CopyFrom(self._totals.message())

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
        """Proves with one real token that the whole path works; then the service may call itself ready.

        A few more tokens tell what drafts take, so that the first request need not find out.
        """
        self._plans = plans
        self._adopt(description)
        self._drafting = Drafting(description.drafts)
        await self._probe(())
        give_up = time.monotonic() + CALIBRATION_S
        for choices in self._drafting.calibrations() if self._settings.gamma is None else ():
            if time.monotonic() < give_up:
                self._drafting.calibrate(*await self._probe(choices))
        self.ready = True

    async def _probe(self, choices: Sequence[DraftChoice]) -> tuple[steps_pb2.StepReply, float]:
        """One step of a request that is nobody's, and its seconds."""
        eos = self._description.eos_token_ids
        probe = Request(
            id="warm-up",
            prompt_ids=(eos[0] if eos else 0,),
            max_tokens=1,
            sampling=Sampling(),
            gamma=None,
            most_drafted=most_tokens(self._settings.gamma, self._description.drafts),
            trace=False,
            stop_tokens=frozenset(),
            logprobs=None,
            tally=Tally(time.monotonic(), self._totals.link.copy()),
        )
        await self._device.open(probe)
        try:
            started = time.monotonic()
            reply = await self._device.step(probe.id, choices, self._settings.prefill_chunk, False)
            return reply, time.monotonic() - started
        finally:
            await self._device.close(probe.id)

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
        decided_ns = time.time_ns()
        decision = self._drafting.decide(request)
        decided = [decision_span(decision, decided_ns)] if request.trace else []
        started = time.monotonic()
        reply = await self._device.step(
            request.id, decision.choices, self._settings.prefill_chunk, request.trace, remaining_s
        )
        turn_s = time.monotonic() - started
        self._drafting.observe(request, decision, reply, turn_s)
        request.stalls = 0
        request.tally.add_step(reply)
        tokens, end = request.take(reply.emitted)
        request.tally.add_tokens(len(tokens), time.monotonic())
        self._totals.add_step(reply, turn_s, len(tokens))
        plans = self._plans.observe(request.id, reply)
        for running in self._requests.values():
            running.tally.plans += plans
        if reply.prefill:
            decided = []  # it was for a step that drafts
        spans = [*decided, *reply.spans, *self._plans.take_spans()] if request.trace else []
        if tokens or spans:
            logprobs = reply.logprobs[: len(tokens)]
            request.events.put_nowait(pb.SubmitEvent(token_ids=tokens, spans=spans, logprobs=logprobs))
        if end is not None:
            await self._end(request, end)

    async def _end(self, request: Request, outcome: Failure | End) -> None:
        if isinstance(outcome, Failure):
            request.events.put_nowait(outcome)
        else:
            request.events.put_nowait(pb.SubmitEvent(statistics=self._statistics(request, outcome)))
        await self._forget(request)

    def _statistics(self, request: Request, end: End) -> pb.Statistics:
        statistics = request.tally.statistics(
            end.reason, len(request.prompt_ids), time.monotonic(), self._totals.link, self._description.emulated
        )
        self._plans.complete(statistics)
        if end.stop_token is not None:
            statistics.stop_token_id = end.stop_token
        return statistics

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
                self._totals.add_restart()
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
