"""How an expert's bytes get from host memory into a slot, and the record of when they did."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from ...configs import LinkConfig
from ...kernels.buffers import tensor_view
from ..policy.link import SerialLink
from .page_lock import PageLock

SERVICE_TIMES = 64
"""Transfers of which the device's own cost model hears at a time."""


class Link(Protocol):
    """Moves one expert. Called from several threads at once, while others compute."""

    def move(self, block: np.ndarray, slot: torch.Tensor, read_last: torch.cuda.Event | None) -> None:
        """Copies `block` (uint8, host) into `slot` (uint8, same length) and returns when it is there.

        `read_last`: the last reader of the slot's former content, to be waited for first.
        """
        ...

    def close(self) -> None: ...


class MemoryLink:
    """For slots in host memory: a plain copy."""

    def move(self, block: np.ndarray, slot: torch.Tensor, read_last: torch.cuda.Event | None) -> None:
        np.copyto(slot.numpy(), block)

    def close(self) -> None: ...


class EmulatedLink:
    """A real copy that then waits until an accelerator's link of the given speed would have been done."""

    def __init__(self, config: LinkConfig):
        self._clock = SerialLink(config.bandwidth, config.latency)
        self._lock = threading.Lock()

    def move(self, block: np.ndarray, slot: torch.Tensor, read_last: torch.cuda.Event | None) -> None:
        with self._lock:
            finish = self._clock.finish_time(time.monotonic(), block.nbytes)
        np.copyto(slot.numpy(), block)
        while (left := finish - time.monotonic()) > 0:
            time.sleep(left)

    def close(self) -> None: ...


class CudaLink:
    """The bus of a CUDA device: its own stream, from page-locked memory."""

    def __init__(self, device: torch.device, arena: Callable[[], np.ndarray], expert_bytes: int):
        """`arena`: the whole mapping that blocks lie in, as it is now."""
        self._stream = torch.cuda.Stream(device)
        self._lock = threading.Lock()
        self._page_lock = PageLock(arena)
        self._staging = torch.empty(expert_bytes, dtype=torch.uint8, pin_memory=True)

    def move(self, block: np.ndarray, slot: torch.Tensor, read_last: torch.cuda.Event | None) -> None:
        with self._lock, torch.cuda.stream(self._stream):
            source = tensor_view(block)
            if not self._page_lock.covers(block):
                source = self._staging[: block.nbytes].copy_(source)
            if read_last is not None:
                self._stream.wait_event(read_last)
            slot.copy_(source, non_blocking=True)
            self._stream.synchronize()

    def close(self) -> None:
        with self._lock:
            self._page_lock.release()


@dataclass(frozen=True)
class Transfer:
    """One completed transfer; nanoseconds of the wall clock since the epoch."""

    name: str
    start_ns: int
    end_ns: int
    bytes: int
    service_s: float
    """Seconds from when it was asked for, without the wait behind the transfer before it."""


class TransferLog:
    """Completed transfers since somebody last asked; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._transfers: list[Transfer] = []
        self._service_s: deque[float] = deque(maxlen=SERVICE_TIMES)
        self._last_end_ns = 0

    def add(self, name: str, start_ns: int, end_ns: int, size: int, asked_ns: int | None = None) -> Transfer:
        """`asked_ns`: when it could have started, where that is before `start_ns`."""
        with self._lock:
            begin_ns = start_ns if asked_ns is None else asked_ns
            service_s = (end_ns - max(begin_ns, min(self._last_end_ns, end_ns))) * 1e-9
            self._last_end_ns = max(self._last_end_ns, end_ns)
            transfer = Transfer(name, start_ns, end_ns, size, service_s)
            self._transfers.append(transfer)
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
