"""Channels to other actors, found by name and found again after a restart."""

from __future__ import annotations

import threading
from typing import TypeVar

import grpc

from .endpoint import Endpoint, Resolve
from .server import CHANNEL_OPTIONS
from .version_check import VersionStamp

Stub = TypeVar("Stub")


def open_channel(address: str) -> grpc.Channel:
    """A synchronous channel to a moespac server: message sizes and version stamp included."""
    # Reconnection is ours to decide: the address of a restarted actor is another one.
    options = (*CHANNEL_OPTIONS, ("grpc.max_reconnect_backoff_ms", 1000))
    return grpc.intercept_channel(grpc.insecure_channel(address, options=options), VersionStamp())


class Peers:
    """Thread-safe cache of one channel per peer."""

    def __init__(self, resolve: Resolve):
        self._resolve = resolve
        self._lock = threading.Lock()
        self._channels: dict[str, tuple[Endpoint, grpc.Channel]] = {}

    def endpoint(self, name: str) -> Endpoint:
        """The endpoint in use for `name`. Raises PeerUnknown while it is away."""
        return self._connected(name)[0]

    def stub(self, name: str, stub_class: type[Stub]) -> Stub:
        """A stub of `stub_class` on the channel to `name`. Raises PeerUnknown while it is away."""
        return stub_class(self._connected(name)[1])

    def lost(self, name: str) -> None:
        """To be told after UNAVAILABLE: the next use looks the address up afresh."""
        with self._lock:
            entry = self._channels.pop(name, None)
        if entry is not None:
            entry[1].close()

    def close(self) -> None:
        with self._lock:
            entries = list(self._channels.values())
            self._channels.clear()
        for _, channel in entries:
            channel.close()

    def _connected(self, name: str) -> tuple[Endpoint, grpc.Channel]:
        with self._lock:
            entry = self._channels.get(name)
        if entry is not None:
            return entry
        # Looking up may take a while (it asks Ray); never under the lock.
        endpoint = self._resolve(name)
        with self._lock:
            entry = self._channels.get(name)
            if entry is None:
                entry = self._channels[name] = (endpoint, open_channel(endpoint.address))
        return entry
