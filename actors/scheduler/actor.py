"""The scheduler as an actor: started by Ray, found by name, reached over gRPC."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from pathlib import Path

import grpc.aio
import structlog

from ...configs import Deployment
from ...protos.v1 import steps_pb2 as pb
from ...protos.v1.generation_pb2_grpc import add_SchedulingServicer_to_server
from ..cost_conditions import Conditions, conditions, endpoints_of
from ..cost_file import CostFile
from ..policy.planner import Planner, PlannerSettings
from ..policy.turns import Turns
from ..ray_context import listen_host, node_id
from ..transport.async_peers import AsyncPeers
from ..transport.async_server import AsyncActorServer
from ..transport.endpoint import Endpoint, Resolve
from ..transport.event_loop import EventLoopThread
from ..transport.messages import shape_from_proto
from .device_client import DeviceClient, DeviceLost
from .learned import LearnedFile
from .loop import LoopSettings, StepLoop
from .planning import PlanDispatch
from .prefetcher_client import PrefetcherClient
from .service import SchedulingService

START_PATIENCE_S = 3600.0
"""A device may take this long to load: the launcher watches its progress and gives up sooner if it fails."""
RESTART_PATIENCE_S = 120.0
"""How long requests wait for a lost device to come back."""
SAVE_EVERY_S = 600.0
"""Between two savings of what was learned; it is saved at the end too."""
STAGES = ("device", "warm-up", "ready")
"""Of the start-up: waiting for the device, one real token through the whole path, serving."""

log = structlog.get_logger()


class SchedulerActor:
    """Requests, steps and plans. The constructor returns at once; `ready` says when a token can be produced."""

    def __init__(
        self, name: str, deployment: Deployment, store_path: str, prefetcher_name: str, host: str, resolve: Resolve
    ):
        """`host`: address to listen on; `resolve`: finds the device and the prefetcher.

        What is learned of the model's routing, and what calls and transfers cost, is kept beside `store_path`, on this
        actor's node.
        """
        self._store = Path(store_path)
        self._costs, self._conditions = CostFile(self._store), Conditions()
        self._resolve, self._prefetcher_name = resolve, prefetcher_name
        self._planner: Planner | None = None
        self._learned: LearnedFile | None = None
        self._deployment = deployment
        self._peers = AsyncPeers(resolve)
        self._prefetcher = PrefetcherClient(self._peers, prefetcher_name)
        self._stage = 0
        self._failure: str | None = None
        self._stopping = False
        self._loop: StepLoop | None = None
        self._tasks: list[asyncio.Task] = []
        self._prefetcher_status = pb.PrefetcherDescription()
        self._thread = EventLoopThread(f"{name}-loop")
        self._server = self._thread.run(self._listen(name, listen_host(host)))
        self._endpoint = Endpoint(name, "scheduler", self._thread.run(self._server.start()), node_id())
        self._thread.spawn(self._start())

    def endpoint(self) -> Endpoint:
        """Where it listens, from the first moment on; requests are refused until it is ready."""
        return self._endpoint

    def progress(self) -> dict[str, str | int]:
        """`stage`: its name; `done` and `total`: stages of the start-up."""
        return {"stage": STAGES[self._stage], "done": self._stage, "total": len(STAGES) - 1}

    def ready(self) -> bool:
        """Whether a token can be produced now."""
        return self._loop is not None and self._loop.ready

    def failure(self) -> str | None:
        """Why the start-up failed, with what to change; None while it goes on and after it succeeded."""
        return self._failure

    def stop(self, grace_s: float = 1.0) -> None:
        """Refuses new requests, lets running ones go on for `grace_s` seconds. Idempotent."""
        if not self._stopping:
            self._stopping = True
            self._thread.run(self._stop(grace_s))
            self._thread.close()

    async def _listen(self, name: str, host: str) -> AsyncActorServer:
        settings = self._deployment.scheduler
        self._device = DeviceClient(self._peers, self._deployment.gpu.name, settings.step_timeout)
        turns = Turns(settings.max_running, settings.max_waiting, self._deployment.gpu.kv_memory)
        gamma = None if self._deployment.draft.gamma == "auto" else self._deployment.draft.gamma
        self._loop = StepLoop(self._device, turns, LoopSettings(gamma, settings.prefill_chunk, RESTART_PATIENCE_S))
        server = AsyncActorServer(name, host)
        service = SchedulingService(self._deployment.name, self._loop, lambda: self._prefetcher_status)
        server.add(add_SchedulingServicer_to_server, service)
        return server

    async def _start(self) -> None:
        settings = self._deployment.scheduler
        try:
            description = await self._device.wait_ready(START_PATIENCE_S)
            self._stage = STAGES.index("warm-up")
            shape = shape_from_proto(description.model)
            planner = Planner(
                shape,
                description.slots,
                description.name,
                [worker.name for worker in self._deployment.workers],
                PlannerSettings(
                    settings.estimator,
                    settings.replan_every,
                    settings.plan_deadline,
                    form=settings.plan_form,
                ),
            )
            self._learned = LearnedFile(self._store, settings.estimator, description.store_fingerprint)
            self._planner = planner
            self._take_up()
            self._conditions = await asyncio.to_thread(self._find_conditions, description)
            planner.take_up_costs(self._costs.load(self._conditions))
            dispatch = PlanDispatch(shape, planner, self._device, self._prefetcher)
            await self._warm_up(description, dispatch)
        except Exception as error:
            # The one place where a start-up ends: the launcher reads the failure and shows it.
            log.exception("start-up failed")
            self._failure = f"scheduler: {error}"
            return
        self._stage = STAGES.index("ready")
        work = (self._loop.run(), self._watch(), self._save_now_and_then())
        self._tasks = [asyncio.create_task(each) for each in work]
        for task in self._tasks:
            task.add_done_callback(self._ended)

    def _take_up(self) -> None:
        """Makes the planner start from what an earlier run has learned, where there is any."""
        state = self._learned.load()
        if state is None:
            return
        try:
            self._planner.take_up(state)
        except (ValueError, KeyError) as error:
            log.warning("estimator starts cold: its file is refused", path=str(self._learned.path), reason=str(error))
        else:
            log.info("estimator starts warm", path=str(self._learned.path))

    def _find_conditions(self, description: pb.DeviceDescription) -> Conditions:
        names = (self._prefetcher_name, *(device.name for device in self._deployment.devices))
        endpoints = endpoints_of(names, self._resolve)
        return conditions(self._deployment, description.store_fingerprint, endpoints, self._prefetcher_name)

    async def _save_learned(self) -> None:
        if self._planner is not None and self._learned is not None:
            await asyncio.to_thread(self._learned.save, self._planner.learned())
            await asyncio.to_thread(self._costs.save, self._conditions, self._planner.cost_samples())

    async def _save_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(SAVE_EVERY_S)
            await self._save_learned()

    async def _warm_up(self, description: pb.DeviceDescription, dispatch: PlanDispatch) -> None:
        """The loop's start, tried again while the device comes and goes; raises the last failure when patience ends."""
        give_up = time.monotonic() + RESTART_PATIENCE_S
        while True:
            try:
                return await self._loop.start(description, dispatch)
            except (DeviceLost, grpc.aio.AioRpcError) as error:
                if time.monotonic() > give_up:
                    raise
                log.warning("warm-up failed, trying again", reason=str(error))
                await asyncio.sleep(1.0)
                description = await self._device.wait_ready(RESTART_PATIENCE_S)

    def _ended(self, task: asyncio.Task) -> None:
        if not self._stopping:
            # Without its loop a scheduler would look alive and answer nothing: end the process, Ray starts a new one.
            log.critical("step loop died", error="cancelled" if task.cancelled() else repr(task.exception()))
            os._exit(70)

    async def _watch(self) -> None:
        """Keeps health and the descriptions that `status` shows up to date."""
        while True:
            await self._server.set_ready(self._loop.ready)
            with contextlib.suppress(grpc.aio.AioRpcError):  # a late answer is no reason to look elsewhere
                await self._loop.refresh()
            self._prefetcher_status = await self._prefetcher.describe() or self._prefetcher_status
            await asyncio.sleep(0.5)

    async def _stop(self, grace_s: float) -> None:
        await self._server.stop(grace_s)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._loop is not None:
            await self._loop.stop()
        await self._save_learned()
        await self._peers.close()
