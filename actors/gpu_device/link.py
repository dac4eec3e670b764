"""How an expert's bytes get from host memory into a slot, and the record of when they did."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from ...configs import LinkConfig
from ...kernels.buffers import tensor_view
from ..policy.link import SerialLink
from .page_lock import PageLock

PIECE = 1 << 20
"""Most bytes between two looks at whether a copy is still wanted: 40 µs of a fast bus."""
PARTS = 8
"""Pieces of an expert, at least, where a piece costs nothing but the look."""

AHEAD_S = 1e-3
"""A piece may be taken up so long before an emulated link would have moved the one before: waits are not exact."""

Wanted = Callable[[int], bool]
"""Told how many bytes of a copy are there; whether it is to go on."""

SERVICE_TIMES = 64
"""Transfers of which the device's own cost model hears at a time."""


class Link(Protocol):
    """Moves one expert. Called from several threads at once, while others compute."""

    def move(self, block: np.ndarray, slot: torch.Tensor, read_last: torch.cuda.Event | None, wanted: Wanted) -> int:
        """Copies `block` (uint8, host) into `slot` (uint8, same length), piece by piece while `wanted`.

        Returns the bytes moved, when they are there and nothing more is on its way: all, or fewer if it was broken off.
        `read_last`: the last reader of the slot's former content, to be waited for first.
        """
        ...

    def close(self) -> None: ...


class MemoryLink:
    """For slots in host memory: a plain copy."""

    def move(self, block: np.ndarray, slot: torch.Tensor, read_last: torch.cuda.Event | None, wanted: Wanted) -> int:
        into = slot.numpy()
        for start, stop in _pieces(block.nbytes):
            if not wanted(start):
                return start
            np.copyto(into[start:stop], block[start:stop])
        return block.nbytes

    def close(self) -> None: ...


class EmulatedLink:
    """A real copy whose pieces wait until an accelerator's link of the given speed would have moved them.

    A copy that is broken off has used the link for the pieces taken up, and for no longer.
    """

    def __init__(self, config: LinkConfig):
        self._clock, self._latency_s = SerialLink(config.bandwidth, config.latency), config.latency
        self._turn = threading.Lock()

    def move(self, block: np.ndarray, slot: torch.Tensor, read_last: torch.cuda.Event | None, wanted: Wanted) -> int:
        # Every piece is asked for when the copy was: waking late from a wait costs the link nothing.
        into, asked = slot.numpy(), time.monotonic()
        with self._turn:
            for start, stop in _pieces(block.nbytes):
                if not wanted(start):
                    return start
                arrives = self._clock.finish_time(asked, stop - start)
                np.copyto(into[start:stop], block[start:stop])
                _wait_until(arrives - self._latency_s - AHEAD_S)
        _wait_until(arrives)
        return block.nbytes

    def close(self) -> None: ...


class CudaLink:
    """The bus of a CUDA device: its own stream, from page-locked memory."""

    def __init__(self, device: torch.device, arena: Callable[[], np.ndarray], expert_bytes: int):
        """`arena`: the whole mapping that blocks lie in, as it is now."""
        self._stream = torch.cuda.Stream(device)
        self._lock = threading.Lock()
        self._page_lock = PageLock(arena)
        self._staging = torch.empty(expert_bytes, dtype=torch.uint8, pin_memory=True)
        # Two pieces are queued at a time: the bus does not idle while the next is asked for.
        self._arrived = (torch.cuda.Event(), torch.cuda.Event())

    def move(self, block: np.ndarray, slot: torch.Tensor, read_last: torch.cuda.Event | None, wanted: Wanted) -> int:
        with self._lock, torch.cuda.stream(self._stream):
            source, page_locked = tensor_view(block), self._page_lock.covers(block)
            if read_last is not None:
                self._stream.wait_event(read_last)
            queued = arrived = 0
            try:
                for at, (start, stop) in enumerate(_pieces(block.nbytes, PIECE)):
                    if at >= 2:
                        self._arrived[at % 2].synchronize()
                        arrived = start - PIECE
                    if not wanted(arrived):
                        break
                    piece = source[start:stop]
                    if not page_locked:
                        piece = self._staging[start:stop].copy_(piece)
                    slot[start:stop].copy_(piece, non_blocking=True)
                    queued = stop
                    self._arrived[at % 2].record(self._stream)
            finally:
                # Nothing may be on its way when the caller gives slot and block to others.
                self._stream.synchronize()
            return queued

    def close(self) -> None:
        with self._lock:
            self._page_lock.release()


def _pieces(size: int, most: int | None = None) -> Iterator[tuple[int, int]]:
    """Stretches of `size` bytes, of at most `most` each."""
    step = min(PIECE, -(-size // PARTS)) if most is None else most
    for start in range(0, size, step):
        yield start, min(start + step, size)


def _wait_until(end: float) -> None:
    while (left := end - time.monotonic()) > 0:
        time.sleep(left)


@dataclass(frozen=True)
class Transfer:
    """One transfer that is over; nanoseconds of the wall clock since the epoch."""

    name: str
    start_ns: int
    end_ns: int
    bytes: int
    service_s: float
    """Seconds from when it was asked for, without the wait behind the transfer before it."""
    cancelled: bool = False
    """Broken off: `bytes` of it had moved."""


class TransferLog:
    """Transfers that have ended since somebody last asked; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._transfers: list[Transfer] = []
        self._service_s: deque[float] = deque(maxlen=SERVICE_TIMES)
        self._last_end_ns = 0

    def add(
        self, name: str, start_ns: int, end_ns: int, size: int, *, cancelled: bool = False, asked_ns: int | None = None
    ) -> Transfer:
        """`asked_ns`: when it could have started, where that is before `start_ns`."""
        with self._lock:
            begin_ns = start_ns if asked_ns is None else asked_ns
            # The wall clock may be set back meanwhile.
            service_s = max(0, end_ns - max(begin_ns, min(self._last_end_ns, end_ns))) * 1e-9
            self._last_end_ns = max(self._last_end_ns, end_ns)
            transfer = Transfer(name, start_ns, end_ns, size, service_s, cancelled)
            self._transfers.append(transfer)
            if not cancelled:
                self._service_s.append(service_s)
            return transfer

    def service_times(self) -> list[float]:
        """`service_s` of the transfers since the last call of this, the latest SERVICE_TIMES at most."""
        with self._lock:
            taken = list(self._service_s)
            self._service_s.clear()
            return taken

    def take(self) -> list[Transfer]:
        with self._lock:
            taken, self._transfers = self._transfers, []
            return taken
