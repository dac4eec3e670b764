"""Expert slots: the device's memory for experts worth keeping near.

Filled by transfers that run beside computation, read by the layers of a pass. A slot that a layer is reading is
pinned and never overwritten; a slot shows its expert only after the whole transfer was found good. A newer plan breaks
off a transfer under way that is no longer worth its time on the link.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum

import numpy as np
import torch

from ...errors import UserError
from ..core import ExpertKey, ModelShape, Plan
from ..policy.cache_order import ExpertCache, IntegrityError, worth, worths
from ..policy.cancellation import waiting, worth_finishing
from ..prefetcher.source import ExpertSource
from .link import Link, TransferLog
from .right_of_way import RightOfWay

ALIGNMENT = 256
"""Bytes; what CUDA kernels like best."""


class BudgetTooSmall(UserError, ValueError):
    """The memory given holds not even one expert."""


def slot_bytes(shape: ModelShape) -> int:
    """Bytes of one slot: an expert, aligned."""
    return -(-shape.expert_bytes // ALIGNMENT) * ALIGNMENT


def slots_within(budget_bytes: int, shape: ModelShape) -> int:
    """Slots that a budget pays for, at most one for every expert; none for a budget of 0.

    Raises BudgetTooSmall for one that holds no expert.
    """
    size = slot_bytes(shape)
    if 0 < budget_bytes < size:
        raise BudgetTooSmall(
            f"expert_memory of {budget_bytes:,} bytes does not hold one expert ({size:,} bytes); "
            "set it to at least that, or to 0 for none on the device"
        )
    return min(budget_bytes // size, shape.n_layers * shape.n_experts)


class Outcome(Enum):
    """What became of a fill; names as in FillReply.Outcome."""

    FILLED = 1
    ALREADY_RESIDENT = 2
    NO_VICTIM = 3
    STALE = 4
    NOT_IN_ARENA = 5
    CANCELLED = 6


@dataclass(frozen=True)
class Filled:
    """Result of a fill."""

    outcome: Outcome
    evicted: tuple[ExpertKey, ...] = ()
    seconds: float = 0.0
    bytes: int = 0
    """That crossed the link, to no avail if the outcome is NOT_IN_ARENA or CANCELLED."""


@dataclass
class _Flight:
    """A transfer under way."""

    begun: float
    """On `time.monotonic`."""
    moved: int = 0
    """Bytes known to be in the slot."""
    wanted: bool = True
    awaited: bool = False
    """A layer waits for it: it is not broken off."""

    def go_on(self, moved: int) -> bool:
        self.moved = moved
        return self.wanted


class ExpertSlots:
    """As many slots on `device` as are of use within `budget_bytes`, allocated at once; thread-safe."""

    def __init__(self, shape: ModelShape, budget_bytes: int, device: torch.device, link: Link, buffers: int = 0):
        """A budget of 0 means no slots. The last `buffers` are left for staging, and count as no slots any more.

        Raises BudgetTooSmall for a budget that holds no expert.
        """
        self.slot_bytes, self.slots = slot_bytes(shape), slots_within(budget_bytes, shape) - buffers
        if self.slots < 0:
            raise ValueError(f"{buffers} buffers of {self.slots + buffers} slots")
        self.transfers, self.right_of_way = TransferLog(), RightOfWay()
        self._shape, self._device, self._link = shape, device, link
        self._memory = torch.empty((self.slots + buffers, self.slot_bytes), dtype=torch.uint8, device=device)
        self._cache = ExpertCache(self.slots)
        self._plan: Plan | None = None
        self._stale_plans = self._cancelled = 0
        self._flights: dict[ExpertKey, _Flight] = {}
        self._read_last: dict[int, torch.cuda.Event] = {}
        self._turn, self._lock = threading.Lock(), threading.Lock()
        self._landed = threading.Condition(self._lock)

    @property
    def epoch(self) -> int:
        """Of the plan held; 0 before the first."""
        with self._lock:
            return self._plan.epoch if self._plan else 0

    @property
    def stale_plans(self) -> int:
        """Plans ignored because a newer one was held."""
        with self._lock:
            return self._stale_plans

    @property
    def cancelled(self) -> int:
        """Transfers broken off for a newer plan."""
        with self._lock:
            return self._cancelled

    @property
    def memory(self) -> torch.Tensor:
        """All slots and then the buffers, uint8 [n, slot_bytes]: kernels address experts by their place in it."""
        return self._memory

    @property
    def buffers(self) -> torch.Tensor:
        """What is left for staging, uint8 [buffers, slot_bytes]."""
        return self._memory[self.slots :]

    def residents(self) -> list[ExpertKey]:
        """Experts that are complete in a slot; the next to be evicted first."""
        with self._lock:
            return self._cache.residents()

    def absent(self, layer: int, experts: Sequence[int]) -> list[int]:
        """Those of `experts` that are neither here nor on their way."""
        with self._lock:
            keys = [ExpertKey(layer, e) for e in experts]
            return [k.expert for k in keys if self._cache.lookup(k) is None and not self._cache.is_filling(k)]

    def under_way(self) -> dict[ExpertKey, float]:
        """Experts that are being copied into slots and will be there, with the seconds since their copy began."""
        with self._lock:
            now = time.monotonic()
            return {key: now - flight.begun for key, flight in self._flights.items() if flight.wanted}

    def count_on(self, keys: Sequence[ExpertKey]) -> None:
        """A layer is going to wait for those of `keys` that are under way: no newer plan breaks them off."""
        with self._lock:
            for key in keys:
                if (flight := self._flights.get(key)) is not None:
                    flight.awaited = True

    def wait_landed(self, keys: Sequence[ExpertKey], timeout_s: float) -> None:
        """Returns when none of `keys` is under way any more, or when time is up."""
        with self._landed:
            self._landed.wait_for(lambda: not any(self._cache.is_filling(key) for key in keys), timeout_s)

    def set_plan(self, plan: Plan) -> bool:
        """Gives residents their new worth, and breaks off transfers that a newer plan makes pointless.

        False, and nothing changes, if a newer plan than this is held.
        """
        with self._lock:
            if self._plan is not None and plan.epoch < self._plan.epoch:
                self._stale_plans += 1
                return False
            newer = self._plan is None or plan.epoch > self._plan.epoch
            self._plan = plan
            self._cache.set_worths(self._shape.layer_ids, worths(plan.utilities, plan.thresholds))
            if newer and self._flights:
                self._reconsider(plan)
            return True

    @contextmanager
    def pinned(self, layer: int, experts: Sequence[int]) -> Iterator[dict[int, torch.Tensor]]:
        """The residents among `experts` with their slots' content (uint8 [slot_bytes]), safe within the block."""
        keys = [ExpertKey(layer, e) for e in experts]
        with self._lock:
            pinned = self._cache.pin(keys)
            self._cache.touch(pinned)
        try:
            yield {key.expert: self._memory[slot] for key, slot in pinned.items()}
        finally:
            # Kernels that read the slots may still be queued: whoever overwrites one waits for this event.
            event = self._recorded_event() if pinned else None
            with self._lock:
                self._cache.unpin(pinned)
                if event is not None:
                    self._read_last.update(dict.fromkeys(pinned.values(), event))

    def fill(self, source: ExpertSource, key: ExpertKey, utility: int, epoch: int) -> Filled:
        """Copies one expert from the host arena into a slot, evicting a resident worth less if none is free.

        By the plan held, an expert that is hot is worth more than any that is cold, whatever their utilities.
        """
        # Calls that queue here hide the way from the prefetcher, not each other's copies.
        with self._turn:
            self.right_of_way.give_way()
            return self._fill(source, key, utility, epoch)

    def _fill(self, source: ExpertSource, key: ExpertKey, utility: int, epoch: int) -> Filled:
        with self._lock:
            if self._plan is not None and epoch < self._plan.epoch:
                return Filled(Outcome.STALE)
            if key in self._cache:
                return Filled(Outcome.ALREADY_RESIDENT)
            cost = self._plan.transfer_cost if self._plan else 0
            fill = self._cache.begin_fill(key, self._worth(key, utility), cost=cost)
            if fill is None:
                return Filled(Outcome.NO_VICTIM)
            read_last = self._read_last.get(fill.slot)
            flight = self._flights[key] = _Flight(time.monotonic())
        evicted = () if fill.evicted is None else (fill.evicted,)
        slot = self._memory[fill.slot, : self._shape.expert_bytes]
        start_ns = time.time_ns()
        good = False

        def copy(block: np.ndarray) -> None:
            flight.moved = self._link.move(block, slot, read_last, flight.go_on)

        try:
            # with_resident tells afterwards whether the arena's block stayed the same all the while.
            good = source.with_resident(key, copy)
        finally:
            with self._lock:
                del self._flights[key]
                whole = flight.moved == self._shape.expert_bytes
                if good and whole:
                    self._cache.commit(key)
                else:
                    self._cache.abort(key)
                cancelled = not (whole or flight.wanted)
                self._cancelled += cancelled
                self._landed.notify_all()
        if not (cancelled or (good and whole)):
            return Filled(Outcome.NOT_IN_ARENA, evicted, bytes=flight.moved)
        name = f"layer {key.layer} expert {key.expert}"
        ended = self.transfers.add(name, start_ns, time.time_ns(), flight.moved, cancelled=cancelled)
        return Filled(Outcome.CANCELLED if cancelled else Outcome.FILLED, evicted, ended.service_s, ended.bytes)

    def check_integrity(self) -> None:
        """Raises IntegrityError unless every slot is accounted for exactly once."""
        with self._lock:
            self._cache.check_integrity()
            if not all(self._cache.is_filling(key) for key in self._flights):
                raise IntegrityError(f"copies under way into no slot: {sorted(self._flights)}")

    def close(self) -> None:
        self._link.close()

    def _reconsider(self, plan: Plan) -> None:
        """Has transfers broken off that are not worth finishing by `plan`, which has just come."""
        behind = waiting(plan, self._shape, self._cache)
        for key, flight in self._flights.items():
            row = self._shape.row(key.layer)
            utility, remaining = int(plan.utilities[row, key.expert]), 1 - flight.moved / self._shape.expert_bytes
            outlasts = self._cache.expendable(self._worth(key, utility))
            back_in_line = bool(utility - plan.transfer_cost >= plan.thresholds[row])
            worth_it = flight.awaited or worth_finishing(remaining, utility, back_in_line, behind, outlasts)
            flight.wanted = flight.wanted and worth_it

    def _worth(self, key: ExpertKey, utility: int) -> int:
        if self._plan is None:
            return utility
        return worth(int(utility), int(self._plan.thresholds[self._shape.row(key.layer)]))

    def _recorded_event(self) -> torch.cuda.Event | None:
        if self._device.type != "cuda":
            return None
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self._device))
        return event
