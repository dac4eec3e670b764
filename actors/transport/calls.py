"""Expert calls from the caller's side: sent at once, waited for later, given up on clearly."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import grpc
import torch

from ...protos.v1.experts_pb2_grpc import ExpertsStub
from .endpoint import PeerUnknown
from .errors import Refusal
from .flights import Arrived, Flight, GrpcFlight, Way
from .keyed_backoff import KeyedBackoff
from .lanes import Lanes
from .peers import Peers
from .wire import MAX_CALL_BYTES, ExpertPairs, cut, encode_call, pairs_per_call

PARTS_IN_FLIGHT = 8
"""Messages of one call that are under way at once; further ones leave while results are taken."""


class CallFailed(Exception):
    """A worker did not deliver; its experts are still to be computed, by anybody."""

    def __init__(self, worker: str, experts: Sequence[int], reason: str, code: grpc.StatusCode | None = None):
        super().__init__(f"expert call to {worker} for experts {list(experts)} failed: {reason}")
        self.worker, self.experts, self.reason, self.code = worker, tuple(experts), reason, code


@dataclass(frozen=True)
class ServedPart:
    """One message of a call. Times are nanoseconds of the wall clock since the epoch.

    `sent_ns` and `received_ns` are the caller's, `started_ns` and `finished_ns` the serving host's.
    """

    actor: str
    experts: int
    pairs: int
    sent_ns: int
    received_ns: int
    started_ns: int
    finished_ns: int
    weights_wait_ns: int
    """Of the time served: waiting for experts to reach host memory."""
    way: Way


@dataclass
class _Part:
    pairs: list[ExpertPairs]
    flight: Flight | None = None
    sent_ns: int = 0

    @property
    def sizes(self) -> list[int]:
        return [rows.numel() for _, rows, _ in self.pairs]

    def served(self, arrived: Arrived) -> ServedPart:
        reply = arrived.reply
        return ServedPart(
            actor=reply.actor,
            experts=len(self.pairs),
            pairs=sum(self.sizes),
            sent_ns=self.sent_ns,
            received_ns=arrived.received_ns,
            started_ns=reply.started_ns,
            finished_ns=reply.finished_ns,
            weights_wait_ns=reply.weights_wait_ns,
            way=self.flight.way,
        )


class PendingCall:
    """A call under way, made by `ExpertCaller.start`. For one thread at a time."""

    def __init__(
        self,
        worker: str,
        hidden_size: int,
        parts: Sequence[list[ExpertPairs]],
        send: Callable[[list[ExpertPairs]], Flight],
        ended: Callable[[CallFailed | None], None],
    ):
        self.worker = worker
        self.experts: tuple[int, ...] = tuple(dict.fromkeys(e for part in parts for e, _, _ in part))
        self.served: tuple[ServedPart, ...] = ()
        """Filled by `result`, one entry a message."""
        self._hidden_size, self._parts = hidden_size, [_Part(part) for part in parts]
        self._send, self._ended = send, ended
        self._rows: dict[int, torch.Tensor] | None = None
        self._failure: CallFailed | None = None
        self._send_upto(PARTS_IN_FLIGHT)

    def done(self) -> bool:
        """Whether `result` would return or raise without waiting."""
        settled = self._rows is not None or self._failure is not None
        return settled or all(part.flight is not None and part.flight.done() for part in self._parts)

    def result(self) -> dict[int, torch.Tensor]:
        """Expert -> its rows, float32 [pairs, H], weighted by the router, in the order of the call's pairs.

        Waits until the call's deadline at most; may be asked for again. Rows may be views of the reply: do
        not write to them. Raises CallFailed.
        """
        if self._rows is None:
            shares: dict[int, list[torch.Tensor]] = {}
            served = []
            for index, part in enumerate(self._parts):
                self._send_upto(index + PARTS_IN_FLIGHT)
                arrived = self._receive(part)
                served.append(part.served(arrived))
                for (expert, _, _), share in zip(part.pairs, arrived.rows.split_with_sizes(part.sizes), strict=True):
                    shares.setdefault(expert, []).append(share)
            self.served = tuple(served)
            self._rows = {e: rows[0] if len(rows) == 1 else torch.cat(rows) for e, rows in shares.items()}
            self._ended(None)
        return self._rows

    def cancel(self) -> None:
        """Nobody waits for the rows any more; the worker stops between two experts."""
        if self._rows is None and self._failure is None:
            reason = "cancelled by the caller"
            self._failure = CallFailed(self.worker, self.experts, reason, grpc.StatusCode.CANCELLED)
        self._cancel_parts()

    def _send_upto(self, count: int) -> None:
        for part in self._parts[:count]:
            if self._failure is None and part.flight is None:
                part.sent_ns = time.time_ns()
                try:
                    part.flight = self._send(part.pairs)
                except PeerUnknown as error:
                    self._fail(None, str(error))

    def _receive(self, part: _Part) -> Arrived:
        if self._failure is None:
            try:
                return part.flight.receive(sum(part.sizes), self._hidden_size)
            except Refusal as refusal:
                self._fail(refusal.code, str(refusal))
        raise self._failure

    def _fail(self, code: grpc.StatusCode | None, reason: str) -> None:
        self._failure = CallFailed(self.worker, self.experts, reason, code)
        self._cancel_parts()
        self._ended(self._failure)

    def _cancel_parts(self) -> None:
        for part in self._parts:
            if part.flight is not None:
                part.flight.cancel()


class ExpertCaller:
    """Sends expert calls to workers by name and remembers which of them failed; thread-safe.

    Over the lane where the worker is on this host and the call has room there, else over gRPC.
    """

    def __init__(
        self,
        peers: Peers,
        fingerprint: str,
        max_call_bytes: int = MAX_CALL_BYTES,
        clock: Callable[[], float] = time.monotonic,
        here: str | None = None,
    ):
        """`fingerprint`: of the expert store; workers of another one refuse. `clock`: seconds.

        `here`: identity of this host, `host_id()` if None.
        """
        self._peers, self._fingerprint, self._max_call_bytes = peers, fingerprint, max_call_bytes
        self.lanes = Lanes(peers, clock, here)
        self._lock = threading.Lock()
        self._backoff = KeyedBackoff(clock)

    def available(self, worker: str) -> bool:
        """False while a worker that failed is left alone: 0.1 s at first, up to 5 s after more failures."""
        with self._lock:
            return self._backoff.ready(worker)

    def start(
        self,
        worker: str,
        layer: int,
        epoch: int,
        request_ids: Sequence[str],
        hidden: torch.Tensor,
        pairs: Sequence[ExpertPairs],
        deadline_s: float,
    ) -> PendingCall:
        """Sends the experts `pairs` of `layer` to `worker` and returns without waiting.

        `pairs`: experts ascending, at least one, none without tokens. `hidden` [T, H] and the pairs' tensors
        may be of any float type and on any device: they travel as float32, and only the rows needed.
        `deadline_s`: seconds from now. Whatever goes wrong is raised by `PendingCall.result`.
        """
        deadline = time.monotonic() + deadline_s
        hidden = _on_host(hidden, torch.float32)
        pairs = [(e, _on_host(rows, torch.int64), _on_host(weights, torch.float32)) for e, rows, weights in pairs]

        def send(part: list[ExpertPairs]) -> Flight:
            call = encode_call(self._fingerprint, epoch, request_ids, layer, hidden, part)
            flight = self.lanes.send(worker, call, deadline)
            if flight is not None:
                return flight
            stub = self._peers.stub(worker, ExpertsStub)
            return GrpcFlight(stub.Compute.future(call.message(), timeout=max(0.0, deadline - time.monotonic())))

        def ended(failure: CallFailed | None) -> None:
            self._note(worker, failure)

        most = pairs_per_call(hidden.shape[1], self._max_call_bytes)
        return PendingCall(worker, hidden.shape[1], list(cut(pairs, most)), send, ended)

    def close(self) -> None:
        """Gives the lanes up. Idempotent."""
        self.lanes.close()

    def _note(self, worker: str, failure: CallFailed | None) -> None:
        with self._lock:
            if failure is None:
                self._backoff.succeeded(worker)
            else:
                self._backoff.failed(worker)
        if failure is not None and failure.code is grpc.StatusCode.UNAVAILABLE:
            self._peers.lost(worker)


def _on_host(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    # `to` takes longer to find out that there is nothing to do.
    if tensor.dtype is dtype and tensor.is_cpu and not tensor.requires_grad:
        return tensor
    return tensor.detach().to("cpu", dtype)
