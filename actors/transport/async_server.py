"""The asyncio counterpart of `server`: for actors that hold many streams and compute nothing."""

from __future__ import annotations

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer

from .server import SERVER_OPTIONS, listen
from .version_check import AsyncVersionGuard


class AsyncActorServer:
    """Health says NOT_SERVING for `services` and for the server as a whole until `set_ready(True)`."""

    def __init__(self, name: str, host: str = "127.0.0.1", port: int = 0, services: tuple[str, ...] = ()):
        self.name = name
        self._host, self._port = host, port
        self._services = ("", *services)
        self.server = grpc.aio.server(interceptors=(AsyncVersionGuard(name),), options=SERVER_OPTIONS)
        self._health = HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.server)

    def add(self, add_servicer_to_server, servicer) -> None:
        """`add_servicer_to_server`: the generated function of the service."""
        add_servicer_to_server(servicer, self.server)

    async def start(self) -> str:
        """Listens; returns host:port. Raises PortInUse, CannotListen."""
        address = listen(self.server, self._host, self._port)
        await self.set_ready(False)
        await self.server.start()
        return address

    async def set_ready(self, ready: bool) -> None:
        status = health_pb2.HealthCheckResponse
        for service in self._services:
            await self._health.set(service, status.SERVING if ready else status.NOT_SERVING)

    async def stop(self, grace_s: float = 1.0) -> None:
        """Refuses new calls at once, lets running ones go on for `grace_s` seconds."""
        await self._health.enter_graceful_shutdown()
        await self.server.stop(grace_s)
