"""Expert slots: the device's memory for experts worth keeping near.

Filled by transfers that run beside computation, read by the layers of a pass. A slot that a layer is reading is
pinned and never overwritten; a slot shows its expert only after the whole transfer was found good.
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
from ..policy.cache_order import ExpertCache, worth, worths
from ..prefetcher.source import ExpertSource
from .link import Link, TransferLog

ALIGNMENT = 256
"""Bytes; what CUDA kernels like best."""


class BudgetTooSmall(UserError, ValueError):
    """The memory given holds not even one expert."""


def slot_bytes(shape: ModelShape) -> int:
    """Bytes of one slot: an expert, aligned."""
    return -(-shape.expert_bytes // ALIGNMENT) * ALIGNMENT


def slots_within(budget_bytes: int, shape: ModelShape) -> int:
    """Slots that a budget pays for; none for a budget of 0. Raises BudgetTooSmall for one that holds no expert."""
    size = slot_bytes(shape)
    if 0 < budget_bytes < size:
        raise BudgetTooSmall(
            f"expert_memory of {budget_bytes:,} bytes does not hold one expert ({size:,} bytes); "
            "set it to at least that, or to 0 for none on the device"
        )
    return budget_bytes // size


class Outcome(Enum):
    """What became of a fill; names as in FillReply.Outcome."""

    FILLED = 1
    ALREADY_RESIDENT = 2
    NO_VICTIM = 3
    STALE = 4
    NOT_IN_ARENA = 5


@dataclass(frozen=True)
class Filled:
    """Result of a fill."""

    outcome: Outcome
    evicted: tuple[ExpertKey, ...] = ()
    seconds: float = 0.0
    bytes: int = 0
    """That crossed the link, to no avail if the outcome is NOT_IN_ARENA."""


class ExpertSlots:
    """`budget_bytes // slot_bytes` slots on `device`, allocated at once; thread-safe."""

    def __init__(self, shape: ModelShape, budget_bytes: int, device: torch.device, link: Link):
        """A budget of 0 means no slots. Raises BudgetTooSmall for one that holds no expert."""
        self.slot_bytes, self.slots = slot_bytes(shape), slots_within(budget_bytes, shape)
        self.transfers = TransferLog()
        self._shape, self._device, self._link = shape, device, link
        self._memory = torch.empty((self.slots, self.slot_bytes), dtype=torch.uint8, device=device)
        self._cache = ExpertCache(self.slots)
        self._plan: Plan | None = None
        self._stale_plans = 0
        self._read_last: dict[int, torch.cuda.Event] = {}
        self._lock = threading.Lock()

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
    def memory(self) -> torch.Tensor:
        """All slots, uint8 [slots, slot_bytes]: kernels address experts by their place in it."""
        return self._memory

    def residents(self) -> list[ExpertKey]:
        """Experts that are complete in a slot; the next to be evicted first."""
        with self._lock:
            return self._cache.residents()

    def set_plan(self, plan: Plan) -> bool:
        """Gives residents their new worth. False, and nothing changes, if a newer plan is held."""
        with self._lock:
            if self._plan is not None and plan.epoch < self._plan.epoch:
                self._stale_plans += 1
                return False
            self._plan = plan
            self._cache.set_worths(self._shape.layer_ids, worths(plan.utilities, plan.thresholds))
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
        with self._lock:
            if self._plan is not None and epoch < self._plan.epoch:
                return Filled(Outcome.STALE)
            if self._cache.lookup(key) is not None or self._cache.is_filling(key):
                return Filled(Outcome.ALREADY_RESIDENT)
            cost = self._plan.transfer_cost if self._plan else 0
            fill = self._cache.begin_fill(key, self._worth(key, utility), cost=cost)
            if fill is None:
                return Filled(Outcome.NO_VICTIM)
            read_last = self._read_last.get(fill.slot)
        evicted = () if fill.evicted is None else (fill.evicted,)
        slot = self._memory[fill.slot, : self._shape.expert_bytes]
        start_ns = time.time_ns()
        good, copied = False, 0

        def copy(block: np.ndarray) -> None:
            nonlocal copied
            self._link.move(block, slot, read_last)
            copied = block.nbytes

        try:
            # with_resident tells afterwards whether the arena's block stayed the same all the while.
            good = source.with_resident(key, copy)
        finally:
            with self._lock:
                if good:
                    self._cache.commit(key)
                else:
                    self._cache.abort(key)
        if not good:
            return Filled(Outcome.NOT_IN_ARENA, evicted, bytes=copied)
        name = f"layer {key.layer} expert {key.expert}"
        moved = self.transfers.add(name, start_ns, time.time_ns(), self._shape.expert_bytes)
        return Filled(Outcome.FILLED, evicted, moved.service_s, moved.bytes)

    def check_integrity(self) -> None:
        """Raises IntegrityError unless every slot is accounted for exactly once."""
        with self._lock:
            self._cache.check_integrity()

    def close(self) -> None:
        self._link.close()

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
