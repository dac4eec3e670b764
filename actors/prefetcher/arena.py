"""The host arena: experts in shared memory, written by one process and read by others of the same host.

A memfd holds a header page, a directory with one record per routed expert, and page-aligned blocks of one
expert each. Readers open it through /proc/<pid>/fd/<fd> and map it read-only. Being anonymous, it leaves nothing
behind however the processes end: the kernel frees it with the last mapping, and a mapping stays usable (its
contents frozen) after the owner has died.

Readers and the writer share no lock. Each record carries a version (a seqlock): the writer makes it odd, changes the
record and makes it even again; a reader notes an even version, uses the block, and afterwards asks whether the
version is still the same. If it is not, the block may have been overwritten meanwhile: what was computed from it is
thrown away. Torn reads are thus possible but never go unnoticed.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import select
import threading
from dataclasses import dataclass

import numpy as np
import psutil

from ...errors import UserError
from ...protos.v1 import steps_pb2 as pb
from ..core import ExpertKey, ModelShape
from ..transport.endpoint import host_id

PAGE = 4096
ABSENT = -1
_MAGIC = 0x314152414345504D  # "MPECARA1", little-endian
_HEADER = ("magic", "bytes", "n_layers", "n_experts", "expert_bytes", "blocks")
_SEALS = 0x0010 | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW  # 0x0010: F_SEAL_FUTURE_WRITE, not named by Python 3.11


class ArenaError(UserError, RuntimeError):
    """The arena cannot be made as asked."""


class ArenaUnreachable(ArenaError):
    """The arena cannot be mapped from here: it is on another host, or its owner has gone."""


class ArenaElsewhere(ArenaUnreachable):
    """The arena is on another host: waiting does not help."""


@dataclass(frozen=True)
class ArenaLocation:
    """Where another process of the same host finds the arena: /proc/<pid>/fd/<fd>."""

    host_id: str
    pid: int
    fd: int
    bytes: int

    def to_proto(self) -> pb.ArenaLocation:
        return pb.ArenaLocation(host_id=self.host_id, pid=self.pid, fd=self.fd, bytes=self.bytes)

    @classmethod
    def from_proto(cls, message: pb.ArenaLocation) -> ArenaLocation:
        return cls(message.host_id, message.pid, message.fd, message.bytes)


@dataclass(frozen=True)
class ArenaView:
    """One expert in place. `data`: uint8 [expert_bytes], read-only; trust it only if `still_valid` afterwards."""

    key: ExpertKey
    version: int
    data: np.ndarray


def round_up(size: int, unit: int = PAGE) -> int:
    """The smallest multiple of `unit` that is at least `size`."""
    return -(-size // unit) * unit


class _Geometry:
    """Where things lie, from the model's shape and the number of blocks."""

    def __init__(self, shape: ModelShape) -> None:
        self.shape = shape
        self.records = shape.n_layers * shape.n_experts
        self.stride = round_up(shape.expert_bytes)
        self.blocks_at = PAGE + round_up(self.records * 16)
        self._rows = {layer: row for row, layer in enumerate(shape.layer_ids)}

    def record(self, key: ExpertKey) -> int:
        row = self._rows.get(key.layer)
        if row is None or not 0 <= key.expert < self.shape.n_experts:
            raise KeyError(f"no routed expert {key.expert} in layer {key.layer}")
        return row * self.shape.n_experts + key.expert

    def header(self, blocks: int) -> np.ndarray:
        shape, size = self.shape, self.blocks_at + blocks * self.stride
        values = (_MAGIC, size, shape.n_layers, shape.n_experts, shape.expert_bytes, blocks)
        return np.array(values, dtype=np.int64)

    def directory(self, memory: np.ndarray) -> np.ndarray:
        """int64 [records, 2]: version, block."""
        return memory[PAGE : PAGE + self.records * 16].view(np.int64).reshape(self.records, 2)


class Arena:
    """The writer's side. One thread at a time may change the directory; blocks may be filled concurrently."""

    def __init__(self, geometry: _Geometry, blocks: int) -> None:
        self._geometry = geometry
        self.blocks = blocks
        self.stride = geometry.stride
        header = geometry.header(blocks)
        size = int(header[1])
        self._fd = os.memfd_create("moespac-arena", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self._fd, size)
            self._map = mmap.mmap(self._fd, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
            # From here on nobody, whatever rights they open it with, can write except through this mapping; and nobody
            # can shrink it, which would make readers fault.
            fcntl.fcntl(self._fd, fcntl.F_ADD_SEALS, _SEALS)
        except OSError as error:
            os.close(self._fd)
            raise ArenaError(f"cannot map an arena of {size:,} bytes: {error}; lower host_memory") from error
        self._view = memoryview(self._map)
        memory = np.frombuffer(self._map, dtype=np.uint8)
        self._directory = geometry.directory(memory)
        self._directory[:, 1] = ABSENT
        memory[: header.nbytes].view(np.int64)[:] = header
        self.location = ArenaLocation(host_id(), os.getpid(), self._fd, size)

    @classmethod
    def create(cls, shape: ModelShape, budget_bytes: int) -> Arena:
        """An empty arena with as many blocks as `budget_bytes` allow, at most one for every expert.

        Raises ArenaError when not even one expert fits, or when the machine has less memory than that.
        """
        geometry = _Geometry(shape)
        blocks = min(geometry.records, budget_bytes // geometry.stride)
        if blocks < 1:
            raise ArenaError(
                f"host_memory of {budget_bytes:,} bytes does not hold one expert ({geometry.stride:,} bytes); "
                f"set it to at least that, better to {shape.top_k} experts or more"
            )
        total = psutil.virtual_memory().total
        if blocks * geometry.stride > total:
            raise ArenaError(
                f"host_memory of {budget_bytes:,} bytes is more than this machine's {total:,} bytes; lower it"
            )
        return cls(geometry, blocks)

    def write_slot(self, block: int) -> memoryview:
        """The whole block, `stride` bytes, writable. Nothing may be published there meanwhile."""
        if not 0 <= block < self.blocks:
            raise IndexError(f"block {block} of {self.blocks}")
        start = self._geometry.blocks_at + block * self.stride
        return self._view[start : start + self.stride]

    def invalidate(self, key: ExpertKey) -> None:
        """Makes the expert absent. Call before its block is overwritten."""
        self._set(key, ABSENT)

    def publish(self, key: ExpertKey, block: int) -> None:
        """Shows the expert to readers. Call after its block is complete."""
        if not 0 <= block < self.blocks:
            raise IndexError(f"block {block} of {self.blocks}")
        self._set(key, block)

    def block_of(self, key: ExpertKey) -> int | None:
        """The block that readers find the expert in."""
        block = int(self._directory[self._geometry.record(key), 1])
        return None if block == ABSENT else block

    def _set(self, key: ExpertKey, block: int) -> None:
        record = self._directory[self._geometry.record(key)]
        record[0] += 1
        _fence()
        record[1] = block
        _fence()
        record[0] += 1
        _fence()

    def close(self) -> None:
        """Gives the memory back as soon as the last reader unmaps it. Calling it again does nothing."""
        if self._fd < 0:
            return
        os.close(self._fd)
        self._fd = -1
        self._directory = np.empty((0, 2), dtype=np.int64)
        self._view.release()


class ArenaReader:
    """The reader's side, in any process of the owner's host."""

    def __init__(self, geometry: _Geometry, location: ArenaLocation, mapping: mmap.mmap, owner: int) -> None:
        self.location = location
        self._geometry = geometry
        self._owner = owner
        self.memory = np.frombuffer(mapping, dtype=np.uint8)
        """The whole mapping, uint8, read-only: what a device page-locks."""
        self._directory: np.ndarray | None = geometry.directory(self.memory)

    @classmethod
    def attach(cls, location: ArenaLocation, shape: ModelShape) -> ArenaReader:
        """Maps the arena read-only. Raises ArenaUnreachable with the reason when that is impossible."""
        if location.host_id != host_id():
            raise ArenaElsewhere(f"the arena is on another host ({location.host_id}); use an own arena here")
        geometry = _Geometry(shape)
        path = f"/proc/{location.pid}/fd/{location.fd}"
        try:
            owner = os.pidfd_open(location.pid)
        except OSError as error:
            raise ArenaUnreachable(f"process {location.pid}, the arena's owner, has gone: {error}") from error
        try:
            if not os.readlink(path).startswith("/memfd:moespac-arena"):
                raise ArenaUnreachable(f"{path} is not an arena: its owner has closed it")
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                size = os.fstat(fd).st_size
                if size != location.bytes:
                    raise ArenaUnreachable(f"{path} has {size} bytes instead of the {location.bytes} announced")
                mapping = mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ)
            finally:
                os.close(fd)
            found = np.frombuffer(mapping, dtype=np.int64, count=len(_HEADER))
            expected = geometry.header(int(found[_HEADER.index("blocks")]))
            for name, have, want in zip(_HEADER, found.tolist(), expected.tolist(), strict=True):
                if have != want:
                    raise ArenaUnreachable(f"{path} holds an arena for another model: {name} {have}, not {want}")
        except OSError as error:
            os.close(owner)
            raise ArenaUnreachable(f"cannot map {path}: {error}") from error
        except ArenaUnreachable:
            os.close(owner)
            raise
        return cls(geometry, location, mapping, owner)

    def view(self, key: ExpertKey) -> ArenaView | None:
        """The expert in place, or None when it is absent or its record is being changed."""
        memory, directory = self.memory, self._directory
        if directory is None:
            return None
        index = self._geometry.record(key)
        version = int(directory[index, 0])
        if version & 1:
            return None
        _fence()
        block = int(directory[index, 1])
        _fence()
        if block == ABSENT or int(directory[index, 0]) != version:
            return None
        start = self._geometry.blocks_at + block * self._geometry.stride
        return ArenaView(key, version, memory[start : start + self._geometry.shape.expert_bytes])

    def still_valid(self, view: ArenaView) -> bool:
        """Whether everything read from `view.data` before this call was the expert's own weights."""
        directory = self._directory
        _fence()
        return directory is not None and int(directory[self._geometry.record(view.key), 0]) == view.version

    def owner_alive(self) -> bool:
        """Whether the process that fills the arena still runs. When it does not, the contents are frozen."""
        return self._owner >= 0 and not _readable([self._owner], 0)

    def wait_owner_gone(self, or_readable: int) -> bool:
        """Sleeps until the owner has ended (True) or the file descriptor `or_readable` can be read (False)."""
        return or_readable not in _readable([self._owner, or_readable], None)

    def close(self) -> None:
        """Lets go of the mapping; views still in use keep it until they go too, but are no longer `still_valid`."""
        if self._owner >= 0:
            os.close(self._owner)
            self._owner = -1
        # The directory first: whoever finds one finds the memory that goes with it.
        self._directory = None
        self.memory = np.empty(0, dtype=np.uint8)


def _readable(fds: list[int], timeout_ms: int | None) -> list[int]:
    """Of `fds`, those that can be read; a pidfd can once its process has ended."""
    poller = select.poll()
    for fd in fds:
        poller.register(fd, select.POLLIN)
    return [fd for fd, _ in poller.poll(timeout_ms)]


_first, _second = threading.Lock(), threading.Lock()


def _fence() -> None:
    """A full memory barrier between processes, for processors that reorder more than x86 does.

    Releasing one lock and acquiring another compiles to a store-release followed by a load-acquire, which no
    supported architecture lets memory accesses cross in either direction.
    """
    _first.acquire()
    _first.release()
    _second.acquire()
    _second.release()
