"""Where a computing actor gets expert weights: in place from the host arena, fetched when they are not there."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np

from ..core import ExpertKey, ModelShape
from ..transport.peers import Peers
from .arena import Arena, ArenaReader
from .attachment import Attachment
from .lease import ExpertsUnavailable, Fetch, Lease
from .loader import FETCH_TIMEOUT_S, Loader
from .store import ExpertStore, aligned_buffer

__all__ = ["ExpertSource", "ExpertsUnavailable", "Lease"]

HOLD_S = 30.0
"""Longest life of the leases taken here: far longer than computing an expert, short enough after a crash."""
REATTACH_S = 1.0
"""How long a fetch waits for a replaced prefetcher's arena to be attached."""
FRUITLESS_ROUNDS = 3
"""Fetches in a row that granted nothing usable before giving up on the prefetcher."""

Use = Callable[[dict[int, np.ndarray]], None]
"""Called with experts and their blocks: uint8 [expert_bytes] each, read-only, valid during the call only."""


class ExpertSource:
    """Weights in host memory, expert by expert. Thread-safe."""

    def __init__(
        self,
        reader: Callable[[], ArenaReader],
        fetch: Fetch,
        *,
        store: ExpertStore | None = None,
        wait_newer: Callable[[ArenaReader, float], bool] | None = None,
        close: Callable[[], None] = lambda: None,
    ) -> None:
        """`reader`: gives the arena attached now; `fetch`: brings experts into it; `store`: read when that fails."""
        self._reader, self._fetch, self._store = reader, fetch, store
        self._wait_newer, self._close = wait_newer, close
        self._scratch: memoryview | None = None
        self._scratch_lock = threading.Lock()

    @classmethod
    def shared(
        cls,
        peers: Peers,
        prefetcher: str,
        shape: ModelShape,
        store: ExpertStore | None = None,
        timeout_s: float = 30.0,
    ) -> ExpertSource:
        """The arena of the actor called `prefetcher`, on this host; its successor's after a restart.

        With a `store`, experts are read from it one by one while the prefetcher is away; without one, experts
        missing from the arena then raise ExpertsUnavailable. Waits up to `timeout_s` for the prefetcher to come up;
        raises ArenaUnreachable when it does not, or when it is on another host.
        """
        attached = Attachment(peers, prefetcher, shape, timeout_s)
        return cls(
            lambda: attached.reader,
            attached.fetch,
            store=store,
            wait_newer=attached.wait_newer,
            close=attached.close,
        )

    @classmethod
    def own(cls, store: ExpertStore, budget_bytes: int, readers: int = 8) -> ExpertSource:
        """A private arena of at most `budget_bytes`, filled from `store` by threads of this process.

        Raises ArenaError when the budget does not hold one expert.
        """
        arena = Arena.create(store.shape, budget_bytes)
        reader = ArenaReader.attach(arena.location, store.shape)
        loader = Loader(store, arena, readers)
        loader.start()

        def fetch(layer: int, experts: list[int], hold_s: float, timeout_s: float) -> Lease:
            return loader.fetch(layer, experts, hold_s, timeout_s=min(FETCH_TIMEOUT_S, timeout_s))

        def close() -> None:
            loader.stop()
            reader.close()
            arena.close()

        return cls(lambda: reader, fetch, close=close)

    @property
    def arena(self) -> ArenaReader:
        """The arena attached now. Another object after a restart of the prefetcher: page-lock it again then."""
        return self._reader()

    def absent(self, layer: int, experts: Sequence[int]) -> list[int]:
        """Those of `experts` that are not in the arena now."""
        reader = self._reader()
        return [e for e in experts if reader.view(ExpertKey(layer, e)) is None]

    def with_resident(self, key: ExpertKey, use: Callable[[np.ndarray], None]) -> bool:
        """Calls use(block) if the expert is in the arena; False when it is not, or was overwritten meanwhile.

        `block` as in `Use`. After False, `use` may have seen rubbish: what it made must not count.
        """
        return not self._use_residents(key.layer, [key.expert], lambda blocks: use(blocks[key.expert]))

    def with_experts(self, layer: int, experts: Sequence[int], use: Use, deadline: float | None = None) -> float:
        """Calls `use` until it has had every expert; returns seconds spent waiting for weights.

        What is in the arena comes in one call, what has to be fetched in further ones. Where a block was overwritten
        during `use`, its expert comes again: `use` must be idempotent and must not fail on rubbish. `deadline`, on
        `time.monotonic`: no fetch goes on beyond it. Raises ExpertsUnavailable, also when experts are missing at the
        deadline, or StoreError (StoreCorrupt) when the store is the cause.
        """
        missing = self._use_residents(layer, experts, use)
        waited, fruitless = 0.0, 0
        while missing:
            left_s = _left_s(deadline, layer, missing)
            started = time.monotonic()
            try:
                lease = self._fetch(layer, missing, HOLD_S, left_s)
            except ExpertsUnavailable:
                if self._store is None:
                    raise
                return waited + time.monotonic() - started + self._read_all(layer, missing, use, deadline)
            waited += time.monotonic() - started
            try:
                left = self._use_granted(layer, missing, set(lease.granted), use)
            finally:
                lease.release()
            fruitless = fruitless + 1 if len(left) == len(missing) else 0
            missing = left
            if fruitless == FRUITLESS_ROUNDS:
                if self._store is None:
                    raise ExpertsUnavailable(
                        f"layer {layer}, experts {missing}: granted, yet not in the arena attached"
                    )
                return waited + self._read_all(layer, missing, use, deadline)
        return waited

    def close(self) -> None:
        """Ends the threads and lets go of the memory; nothing may be in use."""
        self._close()

    def _use_residents(self, layer: int, experts: Sequence[int], use: Use) -> list[int]:
        """Uses those that are in the arena; returns the others, and those overwritten meanwhile."""
        reader = self._reader()
        views = {e: view for e in experts if (view := reader.view(ExpertKey(layer, e))) is not None}
        if views:
            use({e: view.data for e, view in views.items()})
        return [e for e in experts if e not in views or not reader.still_valid(views[e])]

    def _use_granted(self, layer: int, missing: list[int], granted: set[int], use: Use) -> list[int]:
        """Uses what was granted; returns the experts still to be done."""
        reader = self._reader()
        undone = set(self._use_residents(layer, [e for e in missing if e in granted], use))
        left = [e for e in missing if e not in granted or e in undone]
        if len(left) == len(missing) and self._wait_newer is not None:
            # Granted by a prefetcher whose arena is not attached here yet.
            self._wait_newer(reader, REATTACH_S)
        return left

    def _read_all(self, layer: int, experts: list[int], use: Use, deadline: float | None) -> float:
        """Reads from the store into a buffer of this process, one expert at a time; returns seconds of reading."""
        assert self._store is not None
        waited = 0.0
        for expert in experts:
            _left_s(deadline, layer, [expert])
            started = time.monotonic()
            with self._scratch_lock:
                if self._scratch is None:
                    self._scratch = aligned_buffer(self._store.manifest.stride)
                self._store.read_into(ExpertKey(layer, expert), self._scratch)
                waited += time.monotonic() - started
                use({expert: np.frombuffer(self._scratch, np.uint8, self._store.shape.expert_bytes)})
        return waited


def _left_s(deadline: float | None, layer: int, experts: list[int]) -> float:
    """Seconds until `deadline`. Raises ExpertsUnavailable when it has passed."""
    left_s = math.inf if deadline is None else deadline - time.monotonic()
    if left_s <= 0:
        raise ExpertsUnavailable(f"layer {layer}, experts {experts}: not in host memory when the deadline passed")
    return left_s
