"""The asyncio client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Unpack

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2_grpc

from ...actors.transport.async_peers import VERSION_METADATA
from ...actors.transport.server import CHANNEL_OPTIONS
from ...protos.v1 import generation_pb2, generation_pb2_grpc
from .calls import READY_POLL_S, UNARY_TIMEOUT_S, Readiness, Received, health_request
from .errors import cancelled, from_rpc
from .options import Options, generate_request
from .results import Model


class AsyncGeneration(Received):
    """One running generation: `async for` over it for pieces of text, then read `statistics`.

    Leaving the loop early cancels the request. Errors are raised by the iteration, as `MoespacError`.
    """

    def __init__(self, call: grpc.aio.UnaryStreamCall, address: str, timeout_s: float | None):
        super().__init__()
        self._call, self._address, self._timeout_s = call, address, timeout_s

    async def __aiter__(self) -> AsyncIterator[str]:
        try:
            async for event in self._call:
                if piece := self._take(event):
                    yield piece
            self._check_complete()
        except grpc.RpcError as error:
            raise from_rpc(error, self._address, self._timeout_s) from error
        except asyncio.CancelledError:
            # gRPC says so too when only the call was cancelled; the task's own cancellation goes on.
            if asyncio.current_task().cancelling():
                raise
            raise cancelled() from None
        finally:
            self._call.cancel()  # no effect once the stream has ended

    def cancel(self) -> None:
        """Ends the request; the service frees its work. May be called more than once."""
        self._call.cancel()

    async def __aenter__(self) -> AsyncGeneration:
        return self

    async def __aexit__(self, *_exc_info: object) -> None:
        self.cancel()


class AsyncClient:
    """A connection to a moespac service, for one event loop. Close it, or use it in an `async with` statement."""

    def __init__(self, address: str = "localhost:50051"):
        self.address = address
        self._channel: grpc.aio.Channel | None = None

    def generate(
        self, prompt: str, max_tokens: int = 128, timeout: float | None = None, **options: Unpack[Options]
    ) -> AsyncGeneration:
        """Starts generating; arguments as `Client.generate`. Needs a running event loop."""
        request = generate_request(prompt, max_tokens, **options)
        call = self._stub().Generate(request, timeout=timeout, metadata=VERSION_METADATA)
        return AsyncGeneration(call, self.address, timeout)

    async def models(self, timeout: float = UNARY_TIMEOUT_S) -> list[Model]:
        """The models that are served."""
        reply = await self._unary(self._stub().Models, generation_pb2.ModelsRequest(), timeout)
        return [Model.from_proto(info) for info in reply.models]

    async def status(self, timeout: float = UNARY_TIMEOUT_S) -> generation_pb2.StatusReply:
        """The service's state: actors, device, prefetcher, requests."""
        return await self._unary(self._stub().Status, generation_pb2.StatusRequest(), timeout)

    async def wait_ready(self, timeout: float = 60.0) -> None:
        """Returns once the service can produce a token. Raises DeadlineExceeded after `timeout` seconds."""
        health = health_pb2_grpc.HealthStub(self._open())
        readiness = Readiness(self.address, timeout)
        while True:
            limit = readiness.call_timeout()
            try:
                if readiness.answered(await health.Check(health_request(), timeout=limit)):
                    return
            except grpc.RpcError as error:
                try:
                    readiness.failed(error)
                except grpc.RpcError:
                    raise from_rpc(error, self.address, timeout) from error
            await asyncio.sleep(READY_POLL_S)

    async def close(self) -> None:
        """Ends the connection and cancels what runs on it."""
        if self._channel is not None:
            await self._channel.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_exc_info: object) -> None:
        await self.close()

    def _open(self) -> grpc.aio.Channel:
        # Not in __init__: a channel belongs to the event loop that runs when it is made.
        if self._channel is None:
            # gRPC's own wait between attempts grows to two minutes: far too long for `wait_ready`.
            options = (*CHANNEL_OPTIONS, ("grpc.max_reconnect_backoff_ms", 1000))
            self._channel = grpc.aio.insecure_channel(self.address, options=options)
        return self._channel

    def _stub(self) -> generation_pb2_grpc.GenerationStub:
        return generation_pb2_grpc.GenerationStub(self._open())

    async def _unary(self, method, request, timeout_s: float):
        try:
            return await method(request, timeout=timeout_s, metadata=VERSION_METADATA)
        except grpc.RpcError as error:
            raise from_rpc(error, self.address, timeout_s) from error
