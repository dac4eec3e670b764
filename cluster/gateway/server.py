"""The client-facing server: Generation, health, reflection."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection

from ...actors.transport.async_server import AsyncActorServer
from ...actors.transport.endpoint import Resolve
from ...configs import Deployment
from ...protos.v1 import generation_pb2, generation_pb2_grpc
from .metrics_server import MetricsServer
from .readiness import SchedulerState
from .scheduler_link import SchedulerLink
from .service import ActorsInfo, GenerationService
from .text import TextCodec

SERVICE = generation_pb2.DESCRIPTOR.services_by_name["Generation"].full_name
PATIENCE_S = 60.0
log = structlog.get_logger()


class GatewayServer:
    """Listens where the deployment's `service` section says; everything runs on one event loop."""

    def __init__(
        self,
        deployment: Deployment,
        resolve: Resolve,
        actors_info: ActorsInfo | None = None,
        *,
        name: str = "gateway",
        scheduler_name: str = "scheduler",
        patience_s: float = PATIENCE_S,
        died: Callable[[], None] = lambda: None,
    ):
        """`resolve`: finds the scheduler; `actors_info`: for Status, None: those the scheduler tells of;
        `patience_s`: how long a stream waits for a scheduler that is away; `died`: called when readiness is not
        followed any more, which only a defect can bring about.
        """
        self._died = died
        self._deployment, self._resolve, self._actors_info = deployment, resolve, actors_info
        self._name, self._scheduler_name, self._patience_s = name, scheduler_name, patience_s
        self._state: SchedulerState | None = None
        self._metrics: MetricsServer | None = None
        self._stopped = False

    @property
    def ready(self) -> bool:
        """Whether a token can be produced."""
        return self._state is not None and self._state.ready

    async def start(self) -> str:
        """Reads the tokenizer and listens; returns host:port. Raises TokenizerError, CannotListen."""
        service = self._deployment.service
        codec = await asyncio.to_thread(TextCodec.open, self._deployment.model.target)
        self._server = AsyncActorServer(self._name, service.host, service.port, services=(SERVICE,))
        self._link = SchedulerLink(self._resolve, self._scheduler_name)
        self._state = SchedulerState(self._link)
        self._service = GenerationService(
            self._deployment,
            codec,
            self._link,
            self._state,
            self._actors_info,
            self._patience_s,
        )
        self._server.add(generation_pb2_grpc.add_GenerationServicer_to_server, self._service)
        health = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
        reflection.enable_server_reflection((SERVICE, health, reflection.SERVICE_NAME), self._server.server)
        try:
            if service.metrics_port is not None:
                self._metrics = MetricsServer(service.host, service.metrics_port, self._service.status)
                self._service.metrics_port = self._metrics.port
            address = await self._server.start()
        except BaseException:
            await self._close()
            raise
        self._watch = asyncio.create_task(self._state.watch(self._server.set_ready))
        self._watch.add_done_callback(self._watch_ended)
        return address

    def _watch_ended(self, watch: asyncio.Task) -> None:
        if not watch.cancelled():
            log.critical("readiness is not followed any more", error=repr(watch.exception()))
            self._died()

    async def stop(self, grace_s: float | None = None) -> None:
        """Refuses new requests, lets running ones finish for `grace_s` seconds (None: the deployment's
        `drain_timeout`), ends the rest with UNAVAILABLE and stops listening. Stopping again has no effect.
        """
        if self._stopped:
            return
        self._stopped = True
        self._watch.cancel()
        await asyncio.wait([self._watch])
        await self._server.set_ready(False)
        await self._service.drain(self._deployment.service.drain_timeout if grace_s is None else grace_s)
        await self._server.stop(1.0)
        await self._close()

    async def _close(self) -> None:
        if self._metrics is not None:
            await self._metrics.stop()
        await self._link.close()
