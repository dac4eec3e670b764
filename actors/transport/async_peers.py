"""The asyncio counterpart of `peers`: channels to other actors, found by name and found again after a restart."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import grpc.aio

from ...version import __version__
from .endpoint import Endpoint, Resolve
from .server import CHANNEL_OPTIONS
from .version_check import METADATA_KEY

VERSION_METADATA = ((METADATA_KEY, __version__),)
"""To be passed as `metadata` with every call on an asyncio channel (its interceptors cost more than they are worth)."""
CLOSE_GRACE_S = 5.0
"""Calls still running on a channel that somebody else found lost get this long to end by themselves."""


@dataclass(frozen=True)
class Connection:
    """One channel to one incarnation of a peer."""

    endpoint: Endpoint
    channel: grpc.aio.Channel


class AsyncPeers:
    """Cache of one connection per peer, for one event loop."""

    def __init__(self, resolve: Resolve):
        self._resolve = resolve
        self._connections: dict[str, Connection] = {}
        self._closing: set[asyncio.Task] = set()

    async def connect(self, name: str) -> Connection:
        """The connection to `name`. Raises PeerUnknown while it is away."""
        if name not in self._connections:
            # Looking up asks Ray, which blocks: never on the event loop.
            endpoint = await asyncio.get_running_loop().run_in_executor(None, self._resolve, name)
            if name not in self._connections:
                channel = grpc.aio.insecure_channel(endpoint.address, options=CHANNEL_OPTIONS)
                self._connections[name] = Connection(endpoint, channel)
        return self._connections[name]

    def lost(self, name: str, connection: Connection) -> None:
        """To be told after UNAVAILABLE: the next `connect` looks the address up afresh.

        A connection that somebody has replaced already stays replaced; calls of others may end in their own time.
        """
        if self._connections.get(name) is connection:
            del self._connections[name]
            task = asyncio.create_task(connection.channel.close(CLOSE_GRACE_S))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        for connection in self._connections.values():
            await connection.channel.close()
        self._connections.clear()
        for task in list(self._closing):
            task.cancel()
        await asyncio.gather(*self._closing, return_exceptions=True)
