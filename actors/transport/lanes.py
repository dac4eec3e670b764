"""The caller's lanes to workers of its host: asked for once, in the background; used as soon as they are there."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import grpc
import structlog

from ...protos.v1.experts_pb2 import LaneRequest
from ...protos.v1.experts_pb2_grpc import ExpertsStub
from .endpoint import Endpoint, PeerUnknown, host_id
from .errors import Refusal
from .flights import LaneFlight
from .keyed_backoff import KeyedBackoff
from .lane import FRAME_BYTES, Lane, LaneLost, fits
from .peers import Peers
from .wire import EncodedCall

NEGOTIATION_S = 5.0
"""Longest wait for a worker's answers; it may be computing a large call."""
_HEADROOM = 64
_LONGEST_S = 1e9


@dataclass
class _Offer:
    """What one incarnation of a worker offers."""

    endpoint: Endpoint
    address: str | None = None
    """None: nothing, or not known yet."""
    idle: list[Lane] = field(default_factory=list)
    """Connections that carry no call; the one used last comes last, its memory is in the caches."""


class Lanes:
    """Thread-safe: a connection carries one call at a time, and there are as many as calls at once."""

    def __init__(self, peers: Peers, clock: Callable[[], float] = time.monotonic, here: str | None = None):
        """`clock`: seconds, of waits after failures; `here`: identity of this host, `host_id()` if None."""
        self._peers, self._here = peers, host_id() if here is None else here
        self._lock = threading.Lock()
        self._offers: dict[str, _Offer] = {}
        self._backoff = KeyedBackoff(clock)
        self._closed = False
        self._said: dict[str, str | None] = {}
        self._log = structlog.get_logger()

    def send(self, worker: str, call: EncodedCall, deadline: float) -> LaneFlight | None:
        """The call on its way, or None: it is to go over gRPC. Waits for nothing. `deadline`: on `time.monotonic`."""
        if not fits(call):
            return None
        lane, offer = self._lane_to(worker)
        if lane is None:
            return None
        head = call.head.SerializeToString()
        if len(head) > FRAME_BYTES - _HEADROOM:
            self._ended(worker, offer, lane)
            return None
        try:
            left_s = min(deadline - time.monotonic(), _LONGEST_S)
            lane.send(call, head, time.time_ns() + round(left_s * 1e9))
        except LaneLost:
            # gRPC finds out whether the worker is still there.
            lane.close()
            self._ended(worker, offer, None)
            return None
        return LaneFlight(lane, deadline, lambda lane: self._ended(worker, offer, lane))

    def open(self, worker: str) -> str | None:
        """Asks `worker` for a lane and waits for the answer; why there is none.

        Not needed: the first call asks, without waiting, and goes over gRPC.
        """
        try:
            offer = _Offer(self._peers.endpoint(worker))
        except PeerUnknown as error:
            return str(error)
        with self._lock:
            stale, self._offers[worker] = self._offers.get(worker), offer
        self._close_idle(stale)
        return self._negotiate(worker, offer)

    def close(self) -> None:
        """Calls under way are not waited for. Idempotent."""
        with self._lock:
            self._closed = True
            offers = list(self._offers.values())
            self._offers.clear()
        for offer in offers:
            self._close_idle(offer)

    def _lane_to(self, worker: str) -> tuple[Lane | None, _Offer | None]:
        try:
            endpoint = self._peers.endpoint(worker)
        except PeerUnknown:
            return None, None
        with self._lock:
            stale = offer = self._offers.get(worker)
            known = offer is not None and offer.endpoint == endpoint
            if known and offer.idle:
                return offer.idle.pop(), offer
            if not known:
                if self._closed or not self._backoff.ready(worker):
                    return None, None
                offer = self._offers[worker] = _Offer(endpoint)
        if not known:
            self._close_idle(stale)
            threading.Thread(target=self._negotiate, args=(worker, offer), name=f"{worker}-lane", daemon=True).start()
        if offer.address is None:
            return None, None
        try:
            return Lane.open(offer.address), offer
        except BlockingIOError:  # more connect at once than the worker takes
            return None, None
        except (OSError, Refusal):
            self._ended(worker, offer, None)
            return None, None

    def _negotiate(self, worker: str, offer: _Offer) -> str | None:
        """Finds out what `worker` offers, and proves it by a connection; why there is no lane."""
        try:
            stub = self._peers.stub(worker, ExpertsStub)
            reply = stub.OpenLane(LaneRequest(host_id=self._here), timeout=NEGOTIATION_S)
            lane = Lane.open(reply.address) if reply.address else None
            try:
                if lane is not None:
                    lane.probe(NEGOTIATION_S)
            except BaseException:
                lane.close()
                raise
        except (grpc.RpcError, PeerUnknown, ValueError, OSError, Refusal) as error:
            # Whatever it was, it may pass: the next call after a while asks again.
            why = f"{error.code().name}: {error.details()}" if isinstance(error, grpc.RpcError) else str(error)
            with self._lock:
                self._backoff.failed(worker)
            self._ended(worker, offer, None)
        else:
            why = reply.refusal or None
            with self._lock:
                self._backoff.succeeded(worker)
                offer.address = reply.address or None
            if lane is not None:
                self._ended(worker, offer, lane)
        if not self._closed and why != self._said.get(worker, ""):
            self._said[worker] = why
            self._log.info("expert calls", worker=worker, way="lane" if why is None else "grpc", reason=why)
        return why

    def _ended(self, worker: str, offer: _Offer, lane: Lane | None) -> None:
        """A connection of `offer` is free again; None: the worker has gone, and with it the offer."""
        with self._lock:
            current = self._offers.get(worker) is offer
            if current and lane is not None:
                offer.idle.append(lane)
                return
            if current:
                del self._offers[worker]
        if lane is not None:
            lane.close()
        else:
            self._close_idle(offer)

    def _close_idle(self, offer: _Offer | None) -> None:
        if offer is not None:
            with self._lock:
                idle, offer.idle = offer.idle, []
            for lane in idle:
                lane.close()
