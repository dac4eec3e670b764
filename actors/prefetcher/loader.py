"""From disk into the host arena: reader threads, and the order in which they read.

Three things are read, in this order: experts that somebody waits for (`fetch`), experts that a transfer to a device
waits for (`fetch` with urgent=False), and, while neither is wanted, what the plan ranks highest among the absent.
Only the first two evict regardless of utility. Whoever fetches holds a lease: leased blocks are never evicted.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from ..core import ExpertKey, ModelShape, Plan
from ..policy.cache_order import ExpertCache, IntegrityError
from .arena import Arena
from .lease import ExpertsUnavailable, Lease
from .store import ExpertStore, StoreError

FETCH_TIMEOUT_S = 30.0


@dataclass
class _Holding:
    """A lease being served. `pending`: being read for it; `held`: pinned for it."""

    expires: float
    pending: set[ExpertKey] = field(default_factory=set)
    held: set[ExpertKey] = field(default_factory=set)
    errors: dict[ExpertKey, Exception] = field(default_factory=dict)


class Loader:
    """Fills `arena` from `store` with `readers` threads. Thread-safe; the arena's only writer."""

    def __init__(
        self,
        store: ExpertStore,
        arena: Arena,
        readers: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if readers < 1:
            raise ValueError(f"readers is {readers}; expected at least 1")
        self._store, self._arena, self._clock = store, arena, clock
        self._shape = store.shape
        self._cache = ExpertCache(arena.blocks)
        self._rows = {layer: row for row, layer in enumerate(store.shape.layer_ids)}
        self._utilities = np.zeros((store.shape.n_layers, store.shape.n_experts), dtype=np.int64)
        self._changed = threading.Condition()
        self._urgent: deque[tuple[ExpertKey, int]] = deque()
        self._for_transfers: deque[tuple[ExpertKey, int]] = deque()
        self._order = spread(store.shape)
        self._background = deque(self._order)
        self._waiting: dict[ExpertKey, list[_Holding]] = {}
        self._leases: dict[int, _Holding] = {}
        self._lease_ids = itertools.count(1)
        self._reading: dict[ExpertKey, int] = {}
        self._filled = False
        self._stopping = False
        self._error: str | None = None
        self._threads = [
            threading.Thread(target=self._read_on, name=f"reader-{i}", daemon=True) for i in range(readers)
        ]

    def start(self) -> None:
        """Starts reading, until the arena is full or holds every expert."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Ends the threads; reads under way are completed, fetches under way fail. May be called again."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    @property
    def filled(self) -> bool:
        """Whether the first filling is over: the arena is full, or holds every expert."""
        return self._filled

    @property
    def error(self) -> str | None:
        """The first failure to read an expert that nobody had asked for; None: all went well."""
        return self._error

    @property
    def loaded_bytes(self) -> int:
        """Bytes of the experts complete in the arena."""
        with self._changed:
            return self._loaded() * self._shape.expert_bytes

    @property
    def capacity_bytes(self) -> int:
        """`loaded_bytes` of a full arena."""
        return self._arena.blocks * self._shape.expert_bytes

    def wait_filled(self, timeout_s: float) -> bool:
        """Waits for `filled`; False when `timeout_s` passes first."""
        with self._changed:
            return self._changed.wait_for(lambda: self._filled or self._stopping, timeout_s) and self._filled

    def set_plan(self, plan: Plan) -> None:
        """Orders eviction and background reading by the plan's utilities."""
        with self._changed:
            self._expire()
            self._utilities = plan.utilities
            self._cache.set_worths(self._shape.layer_ids, plan.utilities)
            # In the order of spread(), evenly over layers, among equals.
            absent = np.flatnonzero(~self._cache.held(self._shape.layer_ids, self._shape.n_experts).T)
            wanted = absent[np.argsort(-plan.utilities.T.ravel()[absent], kind="stable")]
            self._background = deque(self._order[i] for i in wanted.tolist())
            self._changed.notify_all()

    def fetch(
        self,
        layer: int,
        experts: Iterable[int],
        hold_s: float,
        *,
        urgent: bool = True,
        timeout_s: float = FETCH_TIMEOUT_S,
    ) -> Lease:
        """Brings experts of a layer into the arena and holds them there for at most `hold_s`.

        Grants those that fit at once, at least one. Raises KeyError for experts that do not exist, StoreError when
        not one could be read, ExpertsUnavailable when every block stays leased for `timeout_s` or at the end.
        """
        wanted = [self._known(layer, expert) for expert in dict.fromkeys(experts)]
        if not wanted:
            raise KeyError(f"layer {layer}: no experts named")
        started = self._clock()
        with self._changed:
            holding = _Holding(expires=started + timeout_s + hold_s)
            lease = next(self._lease_ids)
            self._leases[lease] = holding
            try:
                self._serve(holding, wanted, urgent, started + timeout_s)
            except (ExpertsUnavailable, StoreError):
                self._drop(lease)
                raise
            holding.expires = self._clock() + hold_s
            self._cache.touch(holding.held)
            granted = tuple(sorted(key.expert for key in holding.held))
        return Lease(lease, granted, self._clock() - started, lambda: self.release(lease))

    def release(self, lease: int) -> None:
        """Ends a lease. One that is unknown or has run out is no error: releasing is idempotent."""
        with self._changed:
            self._drop(lease)

    def holds(self, key: ExpertKey) -> bool:
        """Whether the expert is complete in the arena now."""
        with self._changed:
            return self._cache.lookup(key) is not None

    def check_integrity(self) -> None:
        """Raises IntegrityError unless bookkeeping, directory and leases agree and every block is accounted for."""
        with self._changed:
            self._cache.check_integrity()
            for key in self._order:
                shown, known = self._arena.block_of(key), self._cache.lookup(key)
                if shown != known:
                    raise IntegrityError(f"{key} is shown in block {shown}, known in {known}")
                if self._cache.is_filling(key) != (key in self._reading):
                    raise IntegrityError(f"{key} is being filled, but by no reader, or the other way round")
            for holding in self._leases.values():
                for key in holding.held:
                    if self._cache.lookup(key) is None:
                        raise IntegrityError(f"{key} is leased, but absent")

    def _known(self, layer: int, expert: int) -> ExpertKey:
        if layer not in self._rows or not 0 <= expert < self._shape.n_experts:
            raise KeyError(f"no routed expert {expert} in layer {layer}")
        return ExpertKey(layer, expert)

    def _utility(self, key: ExpertKey) -> int:
        return int(self._utilities[self._rows[key.layer], key.expert])

    def _loaded(self) -> int:
        return self._cache.slots - self._cache.free_slots - len(self._reading)

    # ---- leases; all below under the lock ----------------------------------------------------------------------

    def _serve(self, holding: _Holding, wanted: list[ExpertKey], urgent: bool, deadline: float) -> None:
        while True:
            self._expire()
            self._claim(holding, wanted, self._urgent if urgent else self._for_transfers)
            while holding.pending:
                self._wait(deadline)
            if holding.held:
                return
            if holding.errors:
                raise next(iter(holding.errors.values()))
            self._wait(deadline)  # every block is leased or being read: for a release

    def _claim(self, holding: _Holding, wanted: list[ExpertKey], queue: deque[tuple[ExpertKey, int]]) -> None:
        """Pins what is there, joins what is being read, gives blocks to as many of the others as possible."""
        # Pins come first: making room for one must not evict another.
        holding.held.update(self._cache.pin(key for key in wanted if key not in holding.held))
        for key in wanted:
            if key in holding.held:
                continue
            if not self._cache.is_filling(key):
                fill = self._cache.begin_fill(key, self._utility(key), forced=True)
                if fill is None:
                    continue
                if fill.evicted is not None:
                    self._arena.invalidate(fill.evicted)
                self._reading[key] = fill.slot
                queue.append((key, fill.slot))
            elif queue is self._urgent:
                self._hurry(key)
            holding.pending.add(key)
            self._waiting.setdefault(key, []).append(holding)
        self._changed.notify_all()

    def _hurry(self, key: ExpertKey) -> None:
        """Somebody waits for what only a transfer had asked for."""
        for job in self._for_transfers:
            if job[0] == key:
                self._for_transfers.remove(job)
                self._urgent.append(job)
                return

    def _wait(self, deadline: float) -> None:
        if self._stopping:
            raise ExpertsUnavailable("the prefetcher is stopping")
        now = self._clock()
        if now >= deadline:
            raise ExpertsUnavailable("no room in the host arena in time: every block is leased or being read")
        until = min([deadline, *(h.expires for h in self._leases.values() if h.expires > now)])
        self._changed.wait(until - now)

    def _expire(self) -> None:
        now = self._clock()
        for lease in [n for n, holding in self._leases.items() if holding.expires <= now]:
            self._drop(lease)

    def _drop(self, lease: int) -> None:
        holding = self._leases.pop(lease, None)
        if holding is None:
            return
        for key in holding.pending:
            self._waiting[key].remove(holding)
        holding.pending.clear()
        self._cache.unpin(holding.held)
        self._changed.notify_all()

    # ---- reading -----------------------------------------------------------------------------------------------

    def _read_on(self) -> None:
        while True:
            with self._changed:
                job = self._next()
                while job is None and not self._stopping:
                    self._note_filled()
                    self._changed.wait()
                    job = self._next()
                if self._stopping:
                    return
            key, block = job
            error: Exception | None = None
            try:
                self._store.read_into(key, self._arena.write_slot(block))
            except StoreError as failure:
                error = failure
            with self._changed:
                self._finish(key, block, error)

    def _next(self) -> tuple[ExpertKey, int] | None:
        if self._urgent:
            return self._urgent.popleft()
        if self._for_transfers:
            return self._for_transfers.popleft()
        while self._background:
            key = self._background.popleft()
            if self._cache.lookup(key) is not None or self._cache.is_filling(key):
                continue
            fill = self._cache.begin_fill(key, self._utility(key))
            if fill is None:
                # In descending utility: what follows finds no room either, until the next plan.
                self._background.clear()
                return None
            if fill.evicted is not None:
                self._arena.invalidate(fill.evicted)
            self._reading[key] = fill.slot
            return key, fill.slot
        return None

    def _finish(self, key: ExpertKey, block: int, error: Exception | None) -> None:
        del self._reading[key]
        waiting = self._waiting.pop(key, [])
        if error is None:
            self._arena.publish(key, block)
            self._cache.commit(key)
        else:
            self._cache.abort(key)
            if not waiting and self._error is None:
                self._error = str(error)
        for holding in waiting:
            holding.pending.discard(key)
            if error is None:
                self._cache.pin([key])
                holding.held.add(key)
            else:
                holding.errors[key] = error
        self._changed.notify_all()

    def _note_filled(self) -> None:
        if not self._filled and not self._reading:
            self._filled = True
            self._changed.notify_all()


def spread(shape: ModelShape) -> list[ExpertKey]:
    """Every expert, in the order in which to load them while nothing is known: evenly over the layers."""
    return [ExpertKey(layer, expert) for expert in range(shape.n_experts) for layer in shape.layer_ids]
