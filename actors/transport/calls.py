"""Expert calls from the caller's side: sent at once, waited for later, given up on clearly."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import grpc
import torch

from ...protos.v1.experts_pb2 import ExpertRows
from ...protos.v1.experts_pb2_grpc import ExpertsStub
from .endpoint import PeerUnknown
from .keyed_backoff import KeyedBackoff
from .peers import Peers
from .wire import MAX_CALL_BYTES, ExpertPairs, MalformedCall, cut, decode_rows, encode_call, pairs_per_call

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


@dataclass
class _Part:
    pairs: list[ExpertPairs]
    future: grpc.Future | None = None
    sent_ns: int = 0
    received_ns: int = 0

    @property
    def sizes(self) -> list[int]:
        return [len(rows) for _, rows, _ in self.pairs]

    def arrived(self, _future: grpc.Future) -> None:
        self.received_ns = time.time_ns()

    def served(self, reply: ExpertRows) -> ServedPart:
        return ServedPart(
            actor=reply.actor,
            experts=len(self.pairs),
            pairs=sum(self.sizes),
            sent_ns=self.sent_ns,
            # The waiter may run before the callback that takes the time.
            received_ns=self.received_ns or time.time_ns(),
            started_ns=reply.started_ns,
            finished_ns=reply.finished_ns,
            weights_wait_ns=reply.weights_wait_ns,
        )


class PendingCall:
    """A call under way, made by `ExpertCaller.start`. For one thread at a time."""

    def __init__(
        self,
        worker: str,
        hidden_size: int,
        parts: Sequence[list[ExpertPairs]],
        send: Callable[[list[ExpertPairs]], grpc.Future],
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
        return settled or all(part.future is not None and part.future.done() for part in self._parts)

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
                reply, rows = self._receive(part)
                served.append(part.served(reply))
                for (expert, _, _), share in zip(part.pairs, rows.split(part.sizes), strict=True):
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
            if self._failure is None and part.future is None:
                part.sent_ns = time.time_ns()
                try:
                    part.future = self._send(part.pairs)
                except PeerUnknown as error:
                    self._fail(None, str(error))
                else:
                    part.future.add_done_callback(part.arrived)

    def _receive(self, part: _Part) -> tuple[ExpertRows, torch.Tensor]:
        if self._failure is None:
            try:
                reply = part.future.result()
                return reply, decode_rows(reply, sum(part.sizes), self._hidden_size)
            except grpc.RpcError as error:
                self._fail(error.code(), f"{error.code().name}: {error.details()}")
            except MalformedCall as error:
                self._fail(grpc.StatusCode.INTERNAL, f"unusable reply: {error}")
            except ValueError as error:
                # gRPC's answer on a channel that another thread gave up just before this call was sent.
                self._fail(grpc.StatusCode.CANCELLED, str(error))
        raise self._failure

    def _fail(self, code: grpc.StatusCode | None, reason: str) -> None:
        self._failure = CallFailed(self.worker, self.experts, reason, code)
        self._cancel_parts()
        self._ended(self._failure)

    def _cancel_parts(self) -> None:
        for part in self._parts:
            if part.future is not None:
                part.future.cancel()


class ExpertCaller:
    """Sends expert calls to workers by name and remembers which of them failed; thread-safe."""

    def __init__(
        self,
        peers: Peers,
        fingerprint: str,
        max_call_bytes: int = MAX_CALL_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ):
        """`fingerprint`: of the expert store; workers of another one refuse. `clock`: seconds."""
        self._peers, self._fingerprint, self._max_call_bytes = peers, fingerprint, max_call_bytes
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
        hidden = hidden.detach().to("cpu", torch.float32)
        pairs = [
            (expert, rows.to("cpu", torch.int64), weights.detach().to("cpu", torch.float32))
            for expert, rows, weights in pairs
        ]

        def send(part: list[ExpertPairs]) -> grpc.Future:
            message = encode_call(self._fingerprint, epoch, request_ids, layer, hidden, part)
            return self._peers.stub(worker, ExpertsStub).Compute.future(
                message, timeout=max(0.0, deadline - time.monotonic())
            )

        def ended(failure: CallFailed | None) -> None:
            self._note(worker, failure)

        most = pairs_per_call(hidden.shape[1], self._max_call_bytes)
        return PendingCall(worker, hidden.shape[1], list(cut(pairs, most)), send, ended)

    def _note(self, worker: str, failure: CallFailed | None) -> None:
        with self._lock:
            if failure is None:
                self._backoff.succeeded(worker)
            else:
                self._backoff.failed(worker)
        if failure is not None and failure.code is grpc.StatusCode.UNAVAILABLE:
            self._peers.lost(worker)
