"""What the gateway knows of the system behind it: asked again and again, so that health answers at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import grpc
import grpc.aio

from ...actors.transport.async_peers import VERSION_METADATA
from ...protos.v1 import generation_pb2, steps_pb2
from .scheduler_link import SchedulerLink, SchedulerLost

REFRESH_S = 0.5
STATUS_TIMEOUT_S = 2.0
"""A scheduler that takes longer to say that it is ready is not."""


class SchedulerState:
    """The scheduler's last answer, and whether it is still true."""

    def __init__(self, link: SchedulerLink):
        self._link = link
        self._known = asyncio.Event()
        self._device: steps_pb2.DeviceDescription | None = None
        self.ready = False
        """Whether a token can be produced."""
        self.problem = "the scheduler has not answered yet"
        """Why not."""

    async def refresh(self) -> generation_pb2.StatusReply | None:
        """Asks the scheduler; None when it is away."""
        try:
            async with self._link.connected() as connection:
                reply = await connection.stub.Status(
                    generation_pb2.StatusRequest(), timeout=STATUS_TIMEOUT_S, metadata=VERSION_METADATA
                )
        except SchedulerLost as lost:
            self.ready, self.problem = False, lost.reason
            return None
        except grpc.aio.AioRpcError as error:
            self.ready, self.problem = False, error.details() or error.code().name
            return None
        if reply.device.context_length:
            self._device = reply.device
            self._known.set()
        self.ready, self.problem = reply.ready, "" if reply.ready else "the model is being loaded"
        return reply

    async def watch(self, changed: Callable[[bool], Awaitable[None]]) -> None:
        """Runs until cancelled; tells `changed` whenever readiness turned."""
        told = False
        while True:
            await self.refresh()
            if self.ready != told:
                told = self.ready
                await changed(told)
            await asyncio.sleep(REFRESH_S)

    @property
    def device(self) -> steps_pb2.DeviceDescription | None:
        """The device that serves the model; None until it was seen once. The model never changes while serving."""
        return self._device

    async def wait_device(self, patience_s: float) -> steps_pb2.DeviceDescription:
        """The same, waiting for it. Raises TimeoutError."""
        async with asyncio.timeout(patience_s):
            if self._device is None:
                await self.refresh()
            await self._known.wait()
        return self._device
