"""Which expert lies in which slot, and who leaves for whom: for device slots and for host arena blocks."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..core import ExpertKey

COLD = 1 << 32
"""More than any utility: what an expert below its layer's threshold is worth less."""


def worth(utility: int, threshold: int) -> int:
    """What an expert is worth to a device that follows a plan: hot ones before all cold ones, then by utility."""
    return utility if utility >= threshold else utility - COLD


def worths(utilities: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """`worth` of all experts: int64 [n_layers, n_experts], of a plan's utilities and thresholds [n_layers]."""
    return np.where(utilities >= thresholds[:, None], utilities, utilities - COLD)


class IntegrityError(Exception):
    """The bookkeeping contradicts itself; the message says where."""


@dataclass(frozen=True)
class Fill:
    """A slot given to an expert whose bytes are still to be copied."""

    slot: int
    evicted: ExpertKey | None
    """Who lay there; gone from this moment, even if the fill is aborted."""


class ExpertCache:
    """`slots` equal slots, each free, filling or resident. Moves no bytes, takes no lock: the owner does
    both.

    Order: (utility, last use, key). Who has the lowest utility leaves first, among equals the least recently
    used, then the highest key: the reverse of the order transfers are made in. Never evicted: pinned experts
    and those being filled. What the order needs lies in arrays by slot, so that a victim is found in some 10 µs.
    """

    def __init__(self, slots: int) -> None:
        if slots < 0:
            raise ValueError(f"slots is {slots}; expected 0 or more")
        self.slots = slots
        self._free = list(range(slots - 1, -1, -1))
        self._slot: dict[ExpertKey, int] = {}
        self._keys: list[ExpertKey | None] = [None] * slots
        self._place = np.zeros((2, slots), dtype=np.int64)
        """Layer and expert in each slot; of free slots meaningless, as all that follows."""
        self._utility = np.zeros(slots)
        self._last_use = np.zeros(slots, dtype=np.int64)
        self._filling = np.zeros(slots, dtype=bool)
        self._pins = np.zeros(slots, dtype=np.int64)
        self._evictable = np.zeros(slots, dtype=bool)
        """Resident and without a pin."""
        self._uses = 0

    def __contains__(self, key: ExpertKey) -> bool:
        """Whether `key` has a slot: it is resident or being filled."""
        return key in self._slot

    def lookup(self, key: ExpertKey) -> int | None:
        """The slot of a resident expert; None if absent or still filling. Counts as no use."""
        slot = self._slot.get(key)
        return None if slot is None or self._filling[slot] else slot

    def is_filling(self, key: ExpertKey) -> bool:
        slot = self._slot.get(key)
        return slot is not None and bool(self._filling[slot])

    def residents(self) -> list[ExpertKey]:
        """Experts whose bytes are complete; the next to be evicted first."""
        keys = [key for key, slot in self._slot.items() if not self._filling[slot]]
        # Two stable sorts: ascending by worth, descending by key among equals.
        keys.sort(reverse=True)
        return sorted(keys, key=self._order)

    def held(self, layer_ids: Sequence[int], n_experts: int) -> np.ndarray:
        """Who is resident or being filled: bool [n_layers, n_experts], as in `set_worths`."""
        here = np.zeros((len(layer_ids), n_experts), dtype=bool)
        layers, experts = self._place[:, list(self._slot.values())]
        here[np.searchsorted(layer_ids, layers), experts] = True
        return here

    @property
    def free_slots(self) -> int:
        return len(self._free)

    def expendable(self, utility: int) -> int:
        """Slots that fills would take before that of an expert worth `utility` which has just been put in."""
        taken = list(self._slot.values())
        return len(self._free) + int((~self._filling[taken] & (self._utility[taken] <= utility)).sum())

    def touch(self, keys: Iterable[ExpertKey]) -> None:
        """Records a use of these experts, as one moment; those not resident are ignored."""
        self._uses += 1
        for key in keys:
            if (slot := self.lookup(key)) is not None:
                self._last_use[slot] = self._uses

    def pin(self, keys: Iterable[ExpertKey]) -> dict[ExpertKey, int]:
        """Protects the residents among `keys` from eviction until `unpin`; their slots. Pins add up."""
        pinned = {key: slot for key in keys if (slot := self.lookup(key)) is not None}
        for slot in pinned.values():
            self._pins[slot] += 1
            self._evictable[slot] = False
        return pinned

    def unpin(self, keys: Iterable[ExpertKey]) -> None:
        """Takes back one pin of each of `keys`. Raises ValueError, before changing anything, if one has none."""
        keys = list(dict.fromkeys(keys))
        for key in keys:
            if key not in self._slot or self._pins[self._slot[key]] == 0:
                raise ValueError(f"{key} is not pinned")
        for key in keys:
            slot = self._slot[key]
            self._pins[slot] -= 1
            self._evictable[slot] = self._pins[slot] == 0

    def set_plan(self, utilities: Mapping[ExpertKey, int] | Callable[[ExpertKey], int]) -> None:
        """Gives every expert here its utility by a new plan; 0 for those a mapping does not name."""
        look_up = utilities if callable(utilities) else lambda key: utilities.get(key, 0)
        for key, slot in self._slot.items():
            self._utility[slot] = look_up(key)

    def set_worths(self, layer_ids: Sequence[int], worths: np.ndarray) -> None:
        """`set_plan` for all experts of a model at once: `worths` [n_layers, n_experts], a row for each of `layer_ids`,
        which ascend and name every layer of the experts here."""
        slots = list(self._slot.values())
        layers, experts = self._place[:, slots]
        self._utility[slots] = worths[np.searchsorted(layer_ids, layers), experts]

    def begin_fill(
        self, key: ExpertKey, utility: int, protect: Container[ExpertKey] = (), forced: bool = False, cost: int = 0
    ) -> Fill | None:
        """Gives `key` a slot to be filled, evicting a resident that is worth less by more than `cost` if none is free.

        None when every other resident is worth at least `utility` − `cost`, is pinned or in `protect`, or is itself
        being filled. `forced` asks for a slot whatever the residents are worth: for an expert that must be
        computed now. Follow with `commit` or `abort`. Raises ValueError if `key` is resident or filling
        already.
        """
        if key in self._slot:
            state = "being filled" if self.is_filling(key) else "resident"
            raise ValueError(f"{key} is already {state}")
        evicted = None
        if not self._free:
            victim = self._victim(protect)
            if victim is None or (not forced and self._utility[victim] >= utility - cost):
                return None
            evicted = self._keys[victim]
            self._vacate(victim)
        slot = self._free.pop()
        self._slot[key], self._keys[slot] = slot, key
        self._place[:, slot] = key
        self._utility[slot], self._last_use[slot], self._filling[slot] = utility, 0, True
        return Fill(slot, evicted)

    def commit(self, key: ExpertKey) -> None:
        """The bytes of `key` are complete: it is resident, and as recently used as any."""
        slot = self._filled(key)
        self._uses += 1
        self._filling[slot], self._last_use[slot], self._evictable[slot] = False, self._uses, True

    def abort(self, key: ExpertKey) -> None:
        """The fill failed: its slot is free."""
        self._vacate(self._filled(key))

    def evict(self, key: ExpertKey) -> int:
        """Frees the slot of an unpinned resident; the slot. Raises ValueError otherwise."""
        slot = self._slot.get(key)
        if slot is None or not self._evictable[slot]:
            state = "absent" if slot is None else "being filled" if self._filling[slot] else "pinned"
            raise ValueError(f"{key} cannot be evicted: it is {state}")
        self._vacate(slot)
        return slot

    def check_integrity(self) -> None:
        """Raises IntegrityError unless every slot is accounted for once and every pin is on a resident."""
        taken = list(self._slot.values())
        if sorted(taken + self._free) != list(range(self.slots)):
            raise IntegrityError(
                f"slots in use {sorted(taken)} and free {sorted(self._free)} are not 0..{self.slots - 1}"
            )
        for key, slot in self._slot.items():
            pins, filling = int(self._pins[slot]), bool(self._filling[slot])
            if self._keys[slot] != key or tuple(self._place[:, slot]) != key:
                raise IntegrityError(f"{key} is said to be in slot {slot}, which holds {self._keys[slot]}")
            if pins < 0 or (filling and pins):
                raise IntegrityError(f"{key} has {pins} pins while {'filling' if filling else 'resident'}")
            if self._evictable[slot] != (not filling and not pins):
                raise IntegrityError(f"{key} counts as {'' if self._evictable[slot] else 'not '}evictable")
            if self._last_use[slot] > self._uses:
                raise IntegrityError(
                    f"{key} was last used at {self._last_use[slot]}, after the latest use {self._uses}"
                )
        if self._evictable[self._free].any() or self._pins[self._free].any():
            raise IntegrityError("a free slot counts as evictable or pinned")

    def _order(self, key: ExpertKey) -> tuple[float, int]:
        slot = self._slot[key]
        return self._utility[slot], self._last_use[slot]

    def _victim(self, protect: Container[ExpertKey]) -> int | None:
        """The slot of whom to evict."""
        evictable = self._evictable
        while True:
            utilities = np.where(evictable, self._utility, np.inf)
            least = utilities.min() if self.slots else np.inf
            if least == np.inf:
                return None
            equal = np.flatnonzero(utilities == least)
            if len(equal) > 1:
                uses = self._last_use[equal]
                equal = equal[uses == uses.min()]
            victim = int(equal[0]) if len(equal) == 1 else max(equal.tolist(), key=lambda slot: self._keys[slot])
            if self._keys[victim] not in protect:
                return victim
            evictable = evictable.copy()
            evictable[victim] = False

    def _vacate(self, slot: int) -> None:
        key, self._keys[slot] = self._keys[slot], None
        del self._slot[key]
        self._filling[slot] = self._evictable[slot] = False
        self._free.append(slot)

    def _filled(self, key: ExpertKey) -> int:
        if not self.is_filling(key):
            raise ValueError(f"{key} is not being filled")
        return self._slot[key]
