"""This process's sight of the prefetcher: its arena, mapped, and its Fetch calls, over gRPC.

A prefetcher that is replaced has another arena. A thread sleeps until the owner's process ends and then attaches the
successor's: staying with the old mapping would keep a whole arena of dead memory allocated.
"""

from __future__ import annotations

import os
import select
import threading
import time

import grpc

from ...protos.v1 import steps_pb2 as pb
from ...protos.v1.steps_pb2_grpc import PrefetcherStub
from ..core import ModelShape
from ..transport.endpoint import PeerUnknown
from ..transport.peers import Peers
from .arena import ArenaError, ArenaLocation, ArenaReader, ArenaUnreachable
from .lease import ExpertsUnavailable, Lease

DESCRIBE_TIMEOUT_S = 2.0
FETCH_TIMEOUT_S = 10.0
RETRY_FIRST_S, RETRY_MOST_S = 0.05, 2.0


class Attachment:
    """The arena of the prefetcher called `name`. Thread-safe."""

    def __init__(self, peers: Peers, name: str, shape: ModelShape, timeout_s: float = 30.0) -> None:
        """Waits up to `timeout_s` for a prefetcher that is still starting.

        Raises ArenaUnreachable when there is none by then, at once when it is on another host.
        """
        self._peers, self._name, self._shape = peers, name, shape
        self._replaced = threading.Condition()
        self._closing = os.eventfd(0, os.EFD_CLOEXEC)
        self._closed = False
        try:
            self._reader = self._attach_within(timeout_s)
        except ArenaError:
            os.close(self._closing)
            raise
        self._watcher = threading.Thread(target=self._watch, name="arena-watch", daemon=True)
        self._watcher.start()

    @property
    def reader(self) -> ArenaReader:
        """The arena attached now."""
        return self._reader

    def wait_newer(self, than: ArenaReader, timeout_s: float) -> bool:
        """Waits until another arena than `than` is attached; False when `timeout_s` passes first."""
        with self._replaced:
            return self._replaced.wait_for(lambda: self._reader is not than or self._closed, timeout_s)

    def fetch(self, layer: int, experts: list[int], hold_s: float, timeout_s: float) -> Lease:
        """Has the prefetcher bring experts into the arena, within `timeout_s` and FETCH_TIMEOUT_S.

        Raises ExpertsUnavailable.
        """
        request = pb.FetchRequest(layer=layer, expert_ids=experts, hold_s=hold_s)
        try:
            stub = self._peers.stub(self._name, PrefetcherStub)
            reply = stub.Fetch(request, timeout=min(FETCH_TIMEOUT_S, timeout_s))
        except (grpc.RpcError, PeerUnknown, ValueError) as error:
            raise ExpertsUnavailable(f"layer {layer}, experts {experts}: {self._explain(error)}") from error
        if not reply.granted:
            raise ExpertsUnavailable(f"layer {layer}, experts {experts}: {self._name} granted none")

        def release() -> None:
            try:
                stub.Release(pb.ReleaseRequest(lease=reply.lease), timeout=DESCRIBE_TIMEOUT_S)
            except (grpc.RpcError, ValueError) as error:
                # The lease runs out by itself, or went with its prefetcher.
                self._explain(error)

        return Lease(reply.lease, tuple(reply.granted), reply.waited_s, release)

    def close(self) -> None:
        with self._replaced:
            if self._closed:
                return
            self._closed = True
            self._replaced.notify_all()
        os.eventfd_write(self._closing, 1)
        self._watcher.join()
        os.close(self._closing)
        self._reader.close()

    def _explain(self, error: Exception) -> str:
        """What went wrong, and off with the channel if the prefetcher is not at its end any more."""
        if not isinstance(error, grpc.RpcError):  # PeerUnknown, or ValueError: a channel closed under our hands
            self._peers.lost(self._name)
            return f"{self._name} is away ({error})"
        if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
            self._peers.lost(self._name)
        return f"{self._name} answered {error.code().name}: {error.details()}"

    def _attach(self) -> ArenaReader:
        try:
            stub = self._peers.stub(self._name, PrefetcherStub)
            reply = stub.Describe(pb.DescribeRequest(), timeout=DESCRIBE_TIMEOUT_S)
        except (grpc.RpcError, PeerUnknown, ValueError) as error:
            raise ExpertsUnavailable(self._explain(error)) from error
        return ArenaReader.attach(ArenaLocation.from_proto(reply.arena), self._shape)

    def _attach_within(self, timeout_s: float) -> ArenaReader:
        deadline, pause = time.monotonic() + timeout_s, RETRY_FIRST_S
        while True:
            try:
                return self._attach()
            except ExpertsUnavailable as error:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise ArenaUnreachable(f"no arena within {timeout_s:g} s: {error}") from error
            if self._closed_within(min(pause, left)):
                raise ArenaUnreachable("closed while attaching")
            pause = min(2 * pause, RETRY_MOST_S)

    def _closed_within(self, seconds: float) -> bool:
        poller = select.poll()
        poller.register(self._closing, select.POLLIN)
        return bool(poller.poll(seconds * 1000))

    def _watch(self) -> None:
        while self._reader.wait_owner_gone(self._closing):
            self._peers.lost(self._name)
            pause = RETRY_FIRST_S
            while not self._closed_within(pause):
                try:
                    newer = self._attach()
                except (ExpertsUnavailable, ArenaError):
                    # Not back yet, or the lookup still names the dead one; for as long as the deployment lives.
                    self._peers.lost(self._name)
                    pause = min(2 * pause, RETRY_MOST_S)
                    continue
                with self._replaced:
                    older, self._reader = self._reader, newer
                    self._replaced.notify_all()
                older.close()
                break
