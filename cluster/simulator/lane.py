"""The link of a simulated machine: prefetches in utility order beside the compute, demanded experts first."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from ...actors.core import ExpertKey
from ...actors.policy.cache_order import ExpertCache
from ...actors.policy.rivals.interface import OffloadPolicy, Wish
from ...actors.policy.transfer_order import Transfer, TransferQueue
from .machine import HostMemory, Machine
from .tally import Tally

UNLIMITED = 1 << 62


class Pools:
    """Slots as a policy wants them: one pool, or one a layer."""

    def __init__(self, policy: OffloadPolicy, row_of: dict[int, int]) -> None:
        sizes = policy.pools()
        self._shared = ExpertCache(policy.setting.slots) if sizes is None else None
        self._own = [] if sizes is None else [ExpertCache(size) for size in sizes]
        self._policy, self._row_of, self._layer_ids = policy, row_of, policy.setting.shape.layer_ids

    def of(self, key: ExpertKey) -> ExpertCache:
        return self._own[self._row_of[key.layer]] if self._shared is None else self._shared

    def revalue(self, rows: Collection[int]) -> None:
        """Asks the policy anew what experts of `rows` are worth."""
        worths = self._policy.worths()
        for pool in [self._shared] if self._shared is not None else [self._own[row] for row in rows]:
            if worths is None:
                pool.set_plan(self._policy.worth)
            else:
                pool.set_worths(self._layer_ids, worths)

    def all(self) -> list[ExpertCache]:
        return self._own if self._shared is None else [self._shared]


@dataclass
class _Flight:
    key: ExpertKey
    finish: float
    transfer: Transfer


class Lane:
    """One transfer at a time, none broken off. `clock` is how far it has been followed."""

    def __init__(self, machine: Machine, policy: OffloadPolicy, pools: Pools, host: HostMemory, tally: Tally):
        self._policy, self._pools, self._host, self._tally = policy, pools, host, tally
        self._bytes = machine.expert_bytes
        self._transfer_s = machine.transfer_s(policy.pageable)
        self._takes_slots = policy.keeps_fetched and not policy.admits_late
        self._queue = TransferQueue(machine.expert_bytes)
        self._queue.replace(0, (), UNLIMITED)
        self._flight: _Flight | None = None
        self._unproven: set[ExpertKey] = set()
        self._refused = 0
        self.clock = 0.0

    def preload(self, keys: Sequence[ExpertKey]) -> None:
        """Experts that are resident before time starts; as many as there is room for."""
        for key in keys:
            cache = self._pools.of(key)
            if cache.free_slots and self._fill(key, cache, forced=False):
                cache.commit(key)

    def wish(self, wishes: Sequence[Wish]) -> None:
        """Replaces all prefetches that have not started; those cached or on their way are left out."""
        of = self._pools.of
        wanted = [(key, utility) for key, utility in wishes if not self.holds(key, of(key))]
        self._queue.replace(0, wanted, UNLIMITED)
        self._refused = 0

    def readmit(self) -> None:
        """What experts are worth has changed: prefetches that had nobody to evict try again."""
        self._queue.readmit()
        self._refused = 0

    def holds(self, key: ExpertKey, cache: ExpertCache) -> bool:
        return key in cache

    def arriving(self, key: ExpertKey) -> float | None:
        """When the transfer under way brings `key`; None if it brings another."""
        flight = self._flight
        return flight.finish if flight is not None and flight.key == key else None

    def free_at(self) -> float:
        return self.clock if self._flight is None else max(self.clock, self._flight.finish)

    def busy_until(self, since: float) -> float:
        """When the link will have done all that waits, if nothing is added or refused."""
        return max(self.free_at(), since) + (len(self._queue) - self._refused) * self._transfer_s

    def advance(self, to: float) -> None:
        """Follows the link up to `to`: transfers end, waiting ones start."""
        while self.clock < to:
            if (self._flight is None and not self._start_next()) or self._flight.finish > to:
                self.clock = to
                return
            self.clock = self._flight.finish
            self._land()

    def demand(self, now: float, keys: Sequence[ExpertKey]) -> tuple[list[float], list[ExpertKey]]:
        """Moves `keys` now, in this order and in front of all prefetches.

        When each will be there, and those that got a slot: they are pinned. The transfer under way is finished
        first; its expert is not moved again. The caller waits for all arrivals before it looks at the link again.
        """
        arrivals, pinned, landing = [], [], now
        if keys and self._flight is not None:
            landing = self.clock = self._flight.finish
            self._land()
        for key in keys:
            cache = self._pools.of(key)
            if cache.lookup(key) is not None:
                pinned += cache.pin([key])
                arrivals.append(landing)
                continue
            self.clock = max(self.clock, now, self._host.ready_at(now, key)) + self._transfer_s
            arrivals.append(self.clock)
            self._count()
            self._tally.useful += 1
            if self._takes_slots and self._fill(key, cache, self._policy.forces_fetch):
                cache.commit(key)
                pinned += cache.pin([key])
        return arrivals, pinned

    def admit(self, keys: Sequence[ExpertKey]) -> None:
        """Lets experts whose bytes are at hand compete for slots."""
        for key in keys:
            cache = self._pools.of(key)
            if self._fill(key, cache, forced=False):
                cache.commit(key)

    def used(self, keys: Sequence[ExpertKey]) -> None:
        """The device has computed `keys` from their slots."""
        for key in keys:
            if key in self._unproven:
                self._unproven.remove(key)
                self._tally.useful += 1

    def _start_next(self) -> bool:
        while (transfer := self._queue.pop()) is not None:
            cache = self._pools.of(transfer.key)
            if self.holds(transfer.key, cache):
                self._queue.done(transfer, moved=False)
            elif self._fill(transfer.key, cache, self._policy.forces_prefetch, self._policy.transfer_cost()):
                start = max(self.clock, self._host.ready_at(self.clock, transfer.key))
                self._count()
                self._flight = _Flight(transfer.key, start + self._transfer_s, transfer)
                return True
            else:
                self._queue.refused(transfer)
                self._refused += 1
        return False

    def _land(self) -> None:
        flight, self._flight = self._flight, None
        self._queue.done(flight.transfer)
        self._pools.of(flight.key).commit(flight.key)
        self._unproven.add(flight.key)

    def _fill(self, key: ExpertKey, cache: ExpertCache, forced: bool, cost: float = 0) -> bool:
        fill = cache.begin_fill(key, self._policy.worth(key), forced=forced, cost=cost)
        if fill is None:
            return False
        if fill.evicted in self._unproven:
            self._unproven.remove(fill.evicted)
            self._tally.wasted += 1
        self._policy.moved(key, fill.evicted)
        return True

    def _count(self) -> None:
        self._tally.transfers += 1
        self._tally.transfer_bytes += self._bytes
        self._tally.link_s += self._transfer_s
