"""Staging: a few slots through which experts pass that a layer wants at once and nobody wants to keep.

While experts are computed from some buffers, a thread copies the next ones into others, over the link that fills
slots too. A buffer shows its expert only after the whole copy was found good, and is overwritten only after the last
kernel that reads it. Bookkeeping is that of the slots.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import structlog
import torch

from ..core import ExpertKey
from ..policy.cache_order import ExpertCache
from ..prefetcher.source import ExpertSource
from .link import Link, TransferLog
from .right_of_way import RightOfWay

log = structlog.get_logger()

MOST_BUFFERS = 4
SLOTS_A_BUFFER = 16
"""Slots that must be paid for each buffer: staging takes a sixteenth of the memory for experts at most."""

WANTED, LIKELY = 2, 1
"""Worth of what the layer wants and of what the next may want; left-overs are worth 0."""


def buffers_of(slots: int) -> int:
    """How many of `slots` slots become buffers: none, or at least two, as one is read while the other is written."""
    count = min(MOST_BUFFERS, slots // SLOTS_A_BUFFER)
    return count if count >= 2 else 0


class Staging:
    """Buffers and the thread that fills them. `order`, `held` and `ready` are for the thread that computes."""

    def __init__(
        self,
        memory: torch.Tensor,
        expert_bytes: int,
        source: ExpertSource,
        link: Link,
        transfers: TransferLog,
        right_of_way: RightOfWay,
    ):
        """`memory`: the buffers, uint8 [n, slot_bytes], n >= 2; `transfers`: told of every copy."""
        self.buffers = len(memory)
        self._memory, self._expert_bytes, self._source = memory, expert_bytes, source
        self._link, self._transfers, self._right_of_way = link, transfers, right_of_way
        self._cache = ExpertCache(len(memory))
        self._queue: deque[ExpertKey] = deque()
        self._ahead: deque[ExpertKey] = deque()
        self._deadline: float | None = None
        self._read_last: dict[int, torch.cuda.Event] = {}
        self._copying: tuple[ExpertKey, float] | None = None
        self._could_start_ns = 0
        self._late: ExpertKey | None = None
        self._closing = False
        self._wake = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="staging", daemon=True)
        self._thread.start()

    @property
    def usable(self) -> bool:
        """False from a copy that was given up until it ends after all."""
        with self._wake:
            return self._late is None

    def held(self, layer: int) -> tuple[dict[int, float | None], float | None]:
        """Experts of `layer` in the buffers, with the seconds since their copy began, None where it is complete.

        Then the seconds since the copy under way began, whatever it is of; None: there is none.
        """
        now = time.monotonic()
        with self._wake:
            there: dict[int, float | None] = {k.expert: None for k in self._cache.residents() if k.layer == layer}
            if self._copying is None:
                return there, None
            key, began = self._copying
            if key.layer == layer:
                there[key.expert] = now - began
            return there, now - began

    def order(self, keys: Sequence[ExpertKey], ahead: Sequence[ExpertKey] = (), deadline: float | None = None) -> None:
        """Has `keys` copied in this order, and then `ahead`, as many as there are buffers to spare.

        Forgets what was ordered before; what is in the buffers already is not copied again. `deadline`, on
        `time.monotonic`: weights are not waited for beyond it.
        """
        with self._wake:
            worth = dict.fromkeys(ahead, LIKELY) | dict.fromkeys(keys, WANTED)
            self._cache.set_plan(worth)
            self._queue = deque(key for key in keys if not self._holds(key))
            self._ahead = deque(key for key in ahead if not self._holds(key) and worth[key] == LIKELY)
            self._deadline, self._could_start_ns = deadline, time.time_ns()
            self._wake.notify_all()

    @contextmanager
    def ready(self, keys: Sequence[ExpertKey], timeout_s: float) -> Iterator[dict[ExpertKey, torch.Tensor]]:
        """Those of `keys` that are complete, with their content (uint8 [slot_bytes]), safe within the block.

        Waits for one at least; none when all have failed, or time is up: then the copies ordered are given up. Half the
        buffers at most, so that copies go on meanwhile. After the block the buffers are free.
        """
        with self._wake:
            if not self._wake.wait_for(lambda: self._any_there(keys) or not self._any_pending(keys), timeout_s):
                self._give_up()
            there = [key for key in keys if self._cache.lookup(key) is not None]
            pinned = self._cache.pin(there[: max(1, self.buffers // 2)])
        try:
            yield {key: self._memory[slot] for key, slot in pinned.items()}
        finally:
            # Kernels that read the buffers may still be queued: whoever overwrites one waits for this event.
            event = self._recorded_event() if pinned else None
            with self._wake:
                self._cache.unpin(pinned)
                for key, slot in pinned.items():
                    self._cache.evict(key)
                    if event is not None:
                        self._read_last[slot] = event
                self._could_start_ns = time.time_ns()
                self._wake.notify_all()

    def check_integrity(self) -> None:
        """Raises IntegrityError unless every buffer is accounted for exactly once."""
        with self._wake:
            self._cache.check_integrity()

    def close(self) -> None:
        """Ends the thread, after the copy under way."""
        with self._wake:
            self._closing = True
            self._wake.notify_all()
        self._thread.join()

    # ---- the thread --------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while (taken := self._next()) is not None:
            key, slot, read_last = taken
            good = False
            try:
                self._copy(key, slot, read_last)
                good = True
            except Exception as error:  # Whatever it was: the layer computes the expert from host memory.
                log.warning("expert not staged", layer=key.layer, expert=key.expert, error=str(error))
            with self._wake:
                if good:
                    self._cache.commit(key)
                else:
                    self._cache.abort(key)
                self._copying = self._late = None
                self._wake.notify_all()
        self._right_of_way.release()

    def _next(self) -> tuple[ExpertKey, int, torch.cuda.Event | None] | None:
        """The next expert to be copied, and where to; None at the end. Waits for an order, or for a free buffer."""
        with self._wake:
            while not self._closing:
                queue, worth = (self._queue, WANTED) if self._queue else (self._ahead, LIKELY)
                fill = self._cache.begin_fill(queue[0], worth) if queue else None
                if fill is not None:
                    key = queue.popleft()
                    self._right_of_way.claim()
                    self._copying = key, time.monotonic()
                    return key, fill.slot, self._read_last.get(fill.slot)
                self._right_of_way.release()
                self._wake.wait()
            return None

    def _copy(self, key: ExpertKey, slot: int, read_last: torch.cuda.Event | None) -> None:
        buffer, start_ns = self._memory[slot, : self._expert_bytes], 0

        def copy(blocks: dict[int, np.ndarray]) -> None:
            nonlocal start_ns
            start_ns = time.time_ns()
            self._link.move(blocks[key.expert], buffer, read_last, lambda _: True)

        # Fetches what is not in the arena, and copies again what was overwritten meanwhile.
        self._source.with_experts(key.layer, [key.expert], copy, self._deadline)
        name = f"layer {key.layer} expert {key.expert} streamed"
        asked_ns = min(start_ns, self._could_start_ns)
        self._transfers.add(name, start_ns, time.time_ns(), self._expert_bytes, asked_ns=asked_ns)

    # ---- within the lock ---------------------------------------------------------------------------------------

    def _holds(self, key: ExpertKey) -> bool:
        return self._cache.lookup(key) is not None or self._cache.is_filling(key)

    def _any_there(self, keys: Sequence[ExpertKey]) -> bool:
        return any(self._cache.lookup(key) is not None for key in keys)

    def _any_pending(self, keys: Sequence[ExpertKey]) -> bool:
        return any(key in self._queue or self._cache.is_filling(key) for key in keys)

    def _give_up(self) -> None:
        self._queue.clear()
        self._ahead.clear()
        self._late = self._copying[0] if self._copying is not None else None

    def _recorded_event(self) -> torch.cuda.Event | None:
        if self._memory.device.type != "cuda":
            return None
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self._memory.device))
        return event
