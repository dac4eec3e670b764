"""The connection to the scheduler: found by name, shared by all streams, found again after a restart."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc
import grpc.aio

from ...actors.transport.endpoint import Endpoint, PeerUnknown, Resolve
from ...actors.transport.server import CHANNEL_OPTIONS
from ...protos.v1 import generation_pb2_grpc

RESOLVE_TIMEOUT_S = 5.0
CONNECT_TIMEOUT_S = 5.0
GONE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
"""How a call ends whose server went away: at once, or when it shuts down in good order."""
_OPTIONS = (
    *CHANNEL_OPTIONS,
    # A restarted scheduler may come back on the same address: its predecessor's failures must not delay it.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)


class SchedulerLost(Exception):
    """The scheduler is away; it may come back."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


@dataclass(eq=False)
class Connection:
    """One scheduler process that could be reached."""

    endpoint: Endpoint
    channel: grpc.aio.Channel
    users: int = 0
    dropped: bool = False

    @property
    def stub(self) -> generation_pb2_grpc.SchedulingStub:
        return generation_pb2_grpc.SchedulingStub(self.channel)


class SchedulerLink:
    """For one event loop. A connection that failed one stream is replaced, and closed when its last stream has left:
    closing it at once would cancel streams that may still be fine, and their retries would close the next one.
    """

    def __init__(self, resolve: Resolve, name: str):
        self._resolve, self._name = resolve, name
        self._current: Connection | None = None
        self._lock = asyncio.Lock()
        # Looking up asks Ray, which blocks and may hang: one thread of its own, so that nothing else waits for it.
        self._lookups = ThreadPoolExecutor(1, thread_name_prefix="resolve")

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Connection]:
        """The connection, for calls within the block.

        Raises SchedulerLost when the scheduler cannot be reached, and for failures within the block that mean that it
        went away; other gRPC errors pass.
        """
        connection = await self._connection()
        connection.users += 1
        try:
            await self._established(connection)
            yield connection
        except SchedulerLost:
            connection.dropped = True
            raise
        except grpc.aio.AioRpcError as error:
            if error.code() not in GONE:
                raise
            connection.dropped = True
            raise SchedulerLost(error.details() or "it went away") from error
        finally:
            connection.users -= 1
            if connection.dropped and not connection.users:
                await connection.channel.close()

    async def close(self) -> None:
        self._lookups.shutdown(wait=False, cancel_futures=True)
        if self._current is not None:
            await self._current.channel.close()

    async def _connection(self) -> Connection:
        async with self._lock:
            if self._current is None or self._current.dropped:
                endpoint = await self._look_up()
                self._current = Connection(endpoint, grpc.aio.insecure_channel(endpoint.address, options=_OPTIONS))
            return self._current

    async def _look_up(self) -> Endpoint:
        lookup = asyncio.get_running_loop().run_in_executor(self._lookups, self._resolve, self._name)
        try:
            return await asyncio.wait_for(lookup, RESOLVE_TIMEOUT_S)
        except PeerUnknown as error:
            raise SchedulerLost(str(error) or "it is not running") from error
        except TimeoutError as error:
            raise SchedulerLost(f"its address could not be found within {RESOLVE_TIMEOUT_S:g} s") from error

    async def _established(self, connection: Connection) -> None:
        """Waits for the transport: a scheduler that never answered is not one that was lost."""
        channel = connection.channel
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                state = channel.get_state(try_to_connect=True)
                while state is not grpc.ChannelConnectivity.READY:
                    if state in (grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.SHUTDOWN):
                        raise SchedulerLost(f"nothing answers at {connection.endpoint.address}")
                    await channel.wait_for_state_change(state)
                    state = channel.get_state(try_to_connect=True)
        except TimeoutError as error:
            address = connection.endpoint.address
            raise SchedulerLost(f"{address} did not answer within {CONNECT_TIMEOUT_S:g} s") from error
