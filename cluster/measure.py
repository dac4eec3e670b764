"""Short measurements of this machine: memory, disk and the link to a GPU."""

from __future__ import annotations

import mmap
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from .machine import available_memory, usable_cores

_CHUNK = 8 << 20


@dataclass(frozen=True)
class DiskSpeed:
    """`note` says why there is no figure, or what it does not tell."""

    read_bytes_per_s: float | None
    bytes_read: int
    note: str


def memory_read_bandwidth(size: int = 512 << 20, seconds: float = 0.5) -> float:
    """Bytes per second that all usable cores together read from a buffer of `size` bytes; best of several passes.

    The buffer should be larger than the last-level cache; it is a quarter of the free memory at most.
    """
    import torch

    size = min(size, available_memory() // 4)
    before = torch.get_num_threads()
    torch.set_num_threads(usable_cores())
    try:
        buffer = torch.ones(size // 4)
        best, end = 0.0, time.perf_counter() + seconds
        while best == 0.0 or time.perf_counter() < end:
            start = time.perf_counter()
            torch.dot(buffer, buffer)
            best = max(best, buffer.nbytes / (time.perf_counter() - start))
        return best
    finally:
        torch.set_num_threads(before)


def disk_read_speed(folder: Path, size: int = 256 << 20, write_seconds: float = 1.5) -> DiskSpeed:
    """Sequential reads of a file just written to `folder`, past the page cache; the file never has a name.

    Stops writing after `write_seconds`, so that a slow disk is measured with less.
    """
    try:
        stat = os.statvfs(folder)
        if stat.f_bavail * stat.f_frsize < 4 * size:
            return DiskSpeed(None, 0, f"not measured: less than {4 * size >> 20} MiB free")
        with tempfile.TemporaryFile(dir=folder) as file, mmap.mmap(-1, _CHUNK) as buffer:
            buffer[:] = os.urandom(1 << 20) * (_CHUNK >> 20)
            written, end = 0, time.perf_counter() + write_seconds
            while written < size and time.perf_counter() < end:
                written += os.write(file.fileno(), buffer)
                os.fdatasync(file.fileno())
            return _read_back(file.fileno(), written, buffer)
    except OSError as error:
        return DiskSpeed(None, 0, f"not measured: {error.strerror} ({folder})")


def _read_back(fd: int, size: int, buffer: mmap.mmap, limit_s: float = 1.5) -> DiskSpeed:
    note = "direct, sequential"
    try:
        reader = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_DIRECT)
    except OSError:  # tmpfs and some network file systems
        reader = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
        os.posix_fadvise(reader, 0, 0, os.POSIX_FADV_DONTNEED)
        note = "sequential; this file system has no direct reads, the page cache may help"
    try:
        done, start = 0, time.perf_counter()
        while done < size and time.perf_counter() - start < limit_s:
            done += os.preadv(reader, [buffer], done)
        return DiskSpeed(done / (time.perf_counter() - start), done, note)
    finally:
        os.close(reader)


def gpu_link_bandwidth(torch_device: str, size: int = 256 << 20) -> float:
    """Bytes per second of a copy from page-locked host memory to `torch_device`; best of five."""
    import torch

    host = torch.empty(size, dtype=torch.uint8, pin_memory=True)
    device = torch.empty(size, dtype=torch.uint8, device=torch_device)
    best = 0.0
    for _ in range(5):
        torch.cuda.synchronize(torch_device)
        start = time.perf_counter()
        device.copy_(host, non_blocking=True)
        torch.cuda.synchronize(torch_device)
        best = max(best, size / (time.perf_counter() - start))
    return best
