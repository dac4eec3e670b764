"""Which expert lies in which slot, and who leaves for whom: for device slots and for host arena blocks."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass

from ..core import ExpertKey

COLD = 1 << 32
"""More than any utility: what an expert below its layer's threshold is worth less."""


def worth(utility: int, threshold: int) -> int:
    """What an expert is worth to a device that follows a plan: hot ones before all cold ones, then by utility."""
    return utility if utility >= threshold else utility - COLD


class IntegrityError(Exception):
    """The bookkeeping contradicts itself; the message says where."""


@dataclass(frozen=True)
class Fill:
    """A slot given to an expert whose bytes are still to be copied."""

    slot: int
    evicted: ExpertKey | None
    """Who lay there; gone from this moment, even if the fill is aborted."""


@dataclass
class _Entry:
    slot: int
    utility: int
    last_use: int
    filling: bool
    pins: int = 0


class ExpertCache:
    """`slots` equal slots, each free, filling or resident. Moves no bytes, takes no lock: the owner does
    both.

    Order: (utility, last use, key). Who has the lowest utility leaves first, among equals the least recently
    used, then the highest key: the reverse of the order transfers are made in. Never evicted: pinned experts
    and those being filled. A victim search looks at every resident (about 0.15 ms for 1000).
    """

    def __init__(self, slots: int) -> None:
        if slots < 0:
            raise ValueError(f"slots is {slots}; expected 0 or more")
        self.slots = slots
        self._free = list(range(slots - 1, -1, -1))
        self._entries: dict[ExpertKey, _Entry] = {}
        self._uses = 0

    def __contains__(self, key: ExpertKey) -> bool:
        """Whether `key` has a slot: it is resident or being filled."""
        return key in self._entries

    def lookup(self, key: ExpertKey) -> int | None:
        """The slot of a resident expert; None if absent or still filling. Counts as no use."""
        entry = self._entries.get(key)
        return None if entry is None or entry.filling else entry.slot

    def is_filling(self, key: ExpertKey) -> bool:
        entry = self._entries.get(key)
        return entry is not None and entry.filling

    def residents(self) -> list[ExpertKey]:
        """Experts whose bytes are complete; the next to be evicted first."""
        keys = [key for key, entry in self._entries.items() if not entry.filling]
        # Two stable sorts: ascending by worth, descending by key among equals.
        keys.sort(reverse=True)
        return sorted(keys, key=self._worth)

    @property
    def free_slots(self) -> int:
        return len(self._free)

    def expendable(self, utility: int) -> int:
        """Slots that fills would take before that of an expert worth `utility` which has just been put in."""
        return len(self._free) + sum(not e.filling and e.utility <= utility for e in self._entries.values())

    def touch(self, keys: Iterable[ExpertKey]) -> None:
        """Records a use of these experts, as one moment; those not resident are ignored."""
        self._uses += 1
        for key in keys:
            entry = self._entries.get(key)
            if entry is not None and not entry.filling:
                entry.last_use = self._uses

    def pin(self, keys: Iterable[ExpertKey]) -> dict[ExpertKey, int]:
        """Protects the residents among `keys` from eviction until `unpin`; their slots. Pins add up."""
        pinned = {key: slot for key in keys if (slot := self.lookup(key)) is not None}
        for key in pinned:
            self._entries[key].pins += 1
        return pinned

    def unpin(self, keys: Iterable[ExpertKey]) -> None:
        """Takes back one pin of each of `keys`. Raises ValueError, before changing anything, if one has none."""
        keys = list(dict.fromkeys(keys))
        for key in keys:
            if key not in self._entries or self._entries[key].pins == 0:
                raise ValueError(f"{key} is not pinned")
        for key in keys:
            self._entries[key].pins -= 1

    def set_plan(self, utilities: Mapping[ExpertKey, int] | Callable[[ExpertKey], int]) -> None:
        """Gives every expert here its utility by a new plan; 0 for those a mapping does not name."""
        look_up = utilities if callable(utilities) else lambda key: utilities.get(key, 0)
        for key, entry in self._entries.items():
            entry.utility = look_up(key)

    def begin_fill(
        self, key: ExpertKey, utility: int, protect: Container[ExpertKey] = (), forced: bool = False
    ) -> Fill | None:
        """Gives `key` a slot to be filled, evicting a resident that is worth less if none is free.

        None when every other resident is worth at least as much, is pinned or in `protect`, or is itself
        being filled. `forced` asks for a slot whatever the residents are worth: for an expert that must be
        computed now. Follow with `commit` or `abort`. Raises ValueError if `key` is resident or filling
        already.
        """
        if key in self._entries:
            state = "being filled" if self._entries[key].filling else "resident"
            raise ValueError(f"{key} is already {state}")
        evicted = None
        if not self._free:
            evicted = self._victim(protect)
            if evicted is None or (not forced and self._entries[evicted].utility >= utility):
                return None
            self.evict(evicted)
        slot = self._free.pop()
        self._entries[key] = _Entry(slot, utility, last_use=0, filling=True)
        return Fill(slot, evicted)

    def commit(self, key: ExpertKey) -> None:
        """The bytes of `key` are complete: it is resident, and as recently used as any."""
        entry = self._filling(key)
        self._uses += 1
        entry.filling, entry.last_use = False, self._uses

    def abort(self, key: ExpertKey) -> None:
        """The fill failed: its slot is free."""
        self._free.append(self._filling(key).slot)
        del self._entries[key]

    def evict(self, key: ExpertKey) -> int:
        """Frees the slot of an unpinned resident; the slot. Raises ValueError otherwise."""
        entry = self._entries.get(key)
        if entry is None or entry.filling or entry.pins:
            state = "absent" if entry is None else "being filled" if entry.filling else "pinned"
            raise ValueError(f"{key} cannot be evicted: it is {state}")
        del self._entries[key]
        self._free.append(entry.slot)
        return entry.slot

    def check_integrity(self) -> None:
        """Raises IntegrityError unless every slot is accounted for once and every pin is on a resident."""
        taken = [entry.slot for entry in self._entries.values()]
        if sorted(taken + self._free) != list(range(self.slots)):
            raise IntegrityError(
                f"slots in use {sorted(taken)} and free {sorted(self._free)} are not 0..{self.slots - 1}"
            )
        for key, entry in self._entries.items():
            if entry.pins < 0 or (entry.filling and entry.pins):
                raise IntegrityError(f"{key} has {entry.pins} pins while {'filling' if entry.filling else 'resident'}")
            if entry.last_use > self._uses:
                raise IntegrityError(f"{key} was last used at {entry.last_use}, after the latest use {self._uses}")

    def _worth(self, key: ExpertKey) -> tuple[int, int]:
        entry = self._entries[key]
        return entry.utility, entry.last_use

    def _victim(self, protect: Container[ExpertKey]) -> ExpertKey | None:
        worst, victim = (0, 0), None
        for key, entry in self._entries.items():
            if entry.filling or entry.pins or key in protect:
                continue
            worth = (entry.utility, entry.last_use)
            if victim is None or worth < worst or (worth == worst and key > victim):
                worst, victim = worth, key
        return victim

    def _filling(self, key: ExpertKey) -> _Entry:
        entry = self._entries.get(key)
        if entry is None or not entry.filling:
            raise ValueError(f"{key} is not being filled")
        return entry
