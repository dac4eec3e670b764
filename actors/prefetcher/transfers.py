"""Feeding one device: which experts to send over its link next, and sending them, so that the link need not wait.

What the device holds is known from its own words (Describe, then the replies to Fill). Before the first plan, and after
the device was replaced, its slots are filled evenly over the layers; from then on what it lacks is sent in
the order of their utility, within the plan's link budget. A newer plan replaces everything not yet under way; what is
under way the device itself finishes, or cancels where the newer plan makes it not worth the time. What the device has
no victim for is left until its residents or the plan change: each try may cost a read from disk.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import grpc

from ...protos.v1 import steps_pb2 as pb
from ...protos.v1.steps_pb2_grpc import DeviceStub
from ..core import ExpertKey, ModelShape, Plan
from ..policy.transfer_order import Transfer, TransferQueue
from ..transport.endpoint import PeerUnknown
from ..transport.keyed_backoff import KeyedBackoff
from ..transport.messages import keys
from ..transport.peers import Peers
from .lease import ExpertsUnavailable, Lease
from .loader import Loader, spread
from .store import StoreError

DESCRIBE_TIMEOUT_S = 5.0
FILL_TIMEOUT_S = 20.0
LOAD_TIMEOUT_S = 10.0
RETRY_FIRST_S, RETRY_MOST_S = 0.02, 1.0
RETRY_ROUNDS = 30
"""Rounds of trying what is set aside, without any success, before it is left until a new plan."""
FILLS = 3
"""Calls under way at once: while one expert crosses the link, those for the next are on their way. A call takes longer
than a transfer of 10 MB by PCIe."""
PRELOAD_EPOCH = 0
"""Stands for "before any plan": a device that has followed a plan answers STALE and keeps what it has."""

_Reply = pb.FillReply


@dataclass(frozen=True)
class _Sent:
    """A call under way."""

    transfer: Transfer
    lease: Lease
    call: grpc.Future


class DeviceFeeder:
    """Feeds the device called `device` from its own thread, until `stop`.

    `fingerprint`: of the store whose experts are in the arena; `on_log`: told what goes wrong.
    """

    def __init__(
        self,
        peers: Peers,
        device: str,
        loader: Loader,
        shape: ModelShape,
        fingerprint: str,
        on_log: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._peers, self._device, self._loader, self._shape = peers, device, loader, shape
        self._fingerprint, self._log = fingerprint, on_log
        self._backoff = KeyedBackoff(clock, RETRY_FIRST_S, RETRY_MOST_S)
        self._queue = TransferQueue(shape.expert_bytes)
        self._wake = threading.Condition()
        self._plan: Plan | None = None
        self._plan_is_new = False
        self._incarnation = ""
        self._rounds = 0
        self._resident: set[ExpertKey] | None = None
        self._slots = 0
        self._preloaded = False
        self._bytes_sent = 0
        self._sent: deque[_Sent] = deque()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=f"feed-{device}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread; transfers under way are waited for, within their deadline."""
        with self._wake:
            self._stopping = True
            self._wake.notify_all()
        if self._thread.ident is not None:
            self._thread.join()

    def set_plan(self, plan: Plan) -> None:
        """Follows `plan` from the next transfer on."""
        with self._wake:
            self._plan, self._plan_is_new = plan, True
            self._wake.notify_all()

    @property
    def bytes_sent(self) -> int:
        """Bytes that crossed the link for transfers asked for here, those in vain included."""
        return self._bytes_sent

    @property
    def preloaded(self) -> bool:
        """Whether the device's slots were filled, or it was found to need no filling."""
        return self._preloaded

    # ---- the thread --------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping:
            if not self._backoff.ready(self._device):
                self._sleep(self._backoff.remaining_s(self._device), or_plan=False)
            elif self._resident is None:
                self._meet()
            elif (transfer := self._next()) is not None:
                self._send(transfer)
            elif self._sent:
                self._settle()
            else:
                self._rest()
        while self._sent:
            self._settle()

    def _rest(self) -> None:
        """Nothing to send now: until a new plan, or, if something was set aside, until it is worth another try."""
        self._preloaded = True
        if self._queue.worth_a_retry and self._rounds < RETRY_ROUNDS:
            self._rounds += 1
            self._backoff.failed("set aside")
            self._sleep(self._backoff.remaining_s("set aside"))
            self._queue.retry()
        else:
            self._sleep(None)

    def _sleep(self, seconds: float | None, or_plan: bool = True) -> None:
        """Until time is up (None: never), the end, or a new plan."""
        with self._wake:
            self._wake.wait_for(lambda: self._stopping or (or_plan and self._plan_is_new), seconds)

    def _next(self) -> Transfer | None:
        with self._wake:
            plan, new = self._plan, self._plan_is_new
            self._plan_is_new = False
        if new and plan is not None:
            self._progress()
            self._queue.replace(plan.epoch, self._wanted(plan), plan.link_budget_bytes)
        return self._queue.pop()

    def _wanted(self, plan: Plan) -> list[tuple[ExpertKey, int]]:
        """Experts worth a transfer that the device lacks, with their utilities."""
        layers = self._shape.layer_ids
        rows, experts = plan.wanted().nonzero()
        utilities = plan.utilities[rows, experts].tolist()
        wanted = [ExpertKey(layers[r], e) for r, e in zip(rows.tolist(), experts.tolist(), strict=True)]
        resident = self._resident or set()
        return [(k, u) for k, u in zip(wanted, utilities, strict=True) if k not in resident]

    def _meet(self) -> None:
        """Asks a device that is new to us what it holds, and plans to fill its free slots."""
        try:
            incarnation = self._peers.endpoint(self._device).incarnation
            stub = self._peers.stub(self._device, DeviceStub)
            found = stub.Describe(pb.DescribeRequest(), timeout=DESCRIBE_TIMEOUT_S)
        except (grpc.RpcError, PeerUnknown, ValueError) as error:
            self._lose(error)
            return
        if not found.ready:
            self._backoff.failed(self._device)
            return
        if found.store_fingerprint != self._fingerprint:
            self._log(
                f"device {self._device} has weights of store {found.store_fingerprint}, the arena those of "
                f"{self._fingerprint}: point both at copies of the same store"
            )
            self._backoff.failed(self._device)
            return
        self._resident, self._slots = set(keys(found.resident)), found.slots
        with self._wake:
            plan, self._plan_is_new = self._plan, False
        hot = [] if plan is None else self._wanted(plan)
        asked = {key for key, _ in hot}
        free = max(0, self._slots - len(self._resident) - len(hot))
        others = [k for k in spread(self._shape) if k not in self._resident and k not in asked]
        wanted = hot + _descending(others[:free])
        if plan is None or incarnation != self._incarnation:
            # What another incarnation of the device was sent is not this one's budget, nor is preloading any plan's.
            self._queue = TransferQueue(self._shape.expert_bytes)
        self._incarnation = incarnation
        if plan is None:
            self._queue.replace(PRELOAD_EPOCH, wanted, len(wanted) * self._shape.expert_bytes)
        else:
            self._queue.replace(plan.epoch, wanted, plan.link_budget_bytes)
        self._progress()

    def _send(self, transfer: Transfer) -> None:
        key = transfer.key
        try:
            lease = self._loader.fetch(key.layer, [key.expert], FILL_TIMEOUT_S, urgent=False, timeout_s=LOAD_TIMEOUT_S)
        except (ExpertsUnavailable, StoreError) as error:
            self._log(f"transfer to {self._device}: layer {key.layer}, expert {key.expert}: {error}")
            # A damaged expert stays damaged; room in the arena comes back.
            if isinstance(error, ExpertsUnavailable):
                self._queue.set_aside(transfer)
            else:
                self._queue.done(transfer, moved=False)
            return
        request = pb.FillRequest(
            expert=pb.ExpertRef(layer=key.layer, expert=key.expert),
            plan_epoch=transfer.plan_epoch,
            utility=transfer.utility,
        )
        try:
            call = self._peers.stub(self._device, DeviceStub).Fill.future(request, timeout=FILL_TIMEOUT_S)
        except (PeerUnknown, ValueError) as error:
            lease.release()
            self._queue.done(transfer, moved=False)
            self._lose(error)
            return
        self._sent.append(_Sent(transfer, lease, call))
        if len(self._sent) == FILLS:
            self._settle()

    def _settle(self) -> None:
        """Waits for the oldest call and takes note of what came of it."""
        sent = self._sent.popleft()
        try:
            reply = sent.call.result()
        except grpc.RpcError as error:
            # A call that was made may have copied before it failed.
            self._queue.done(sent.transfer)
            self._lose(error)
            return
        finally:
            sent.lease.release()
        self._note(sent.transfer, reply)

    def _note(self, transfer: Transfer, reply: pb.FillReply) -> None:
        assert self._resident is not None
        self._backoff.succeeded(self._device)
        self._resident.difference_update(keys(reply.evicted))
        self._bytes_sent += reply.bytes
        if reply.outcome == _Reply.FILLED:
            self._resident.add(transfer.key)
            self._queue.done(transfer)
            self._progress()
        elif reply.outcome == _Reply.ALREADY_RESIDENT:
            self._resident.add(transfer.key)
            self._queue.done(transfer, moved=False)
        elif reply.outcome in (_Reply.STALE, _Reply.CANCELLED):
            # The device has a newer plan; it is on its way to us too.
            self._queue.broken_off(transfer, moved=reply.bytes > 0)
            self._queue.replace(transfer.plan_epoch, [], 0)
        elif reply.outcome == _Reply.NO_VICTIM:
            self._queue.refused(transfer)
        else:
            self._queue.set_aside(transfer, moved=reply.bytes > 0)
        if reply.outcome == _Reply.FILLED or reply.evicted:
            self._queue.readmit()

    def _progress(self) -> None:
        """What is set aside may be tried again soon."""
        self._backoff.succeeded("set aside")
        self._rounds = 0

    def _lose(self, error: Exception) -> None:
        """The device is away, or another one answers in its place: forget what it held."""
        if self._resident is not None or not isinstance(error, PeerUnknown):
            detail = error.details() if isinstance(error, grpc.RpcError) else error
            self._log(f"device {self._device} cannot be fed now: {detail}")
        while self._sent:
            # To the same device: what it held, with these, is asked anew when it is back.
            other = self._sent.popleft()
            other.call.exception()
            other.lease.release()
            self._queue.done(other.transfer)
        self._resident = None
        self._peers.lost(self._device)
        self._backoff.failed(self._device)


def _descending(ordered: list[ExpertKey]) -> list[tuple[ExpertKey, int]]:
    """Experts nothing is known of, all worth the same: utility 0."""
    return [(key, 0) for key in ordered]
