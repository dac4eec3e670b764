"""Reading experts from a store on disk: straight into memory, each one checked."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import numpy as np
import xxhash

from ...kernels.layout import ExpertLayout
from ..core import ExpertKey, ModelShape
from .store_format import EXPERTS_FILE, MANIFEST_FILE, PAGE, Manifest, StoreCorrupt, StoreError, digest

__all__ = ["ExpertStore", "StoreCorrupt", "StoreError"]


class ExpertStore:
    """An open store. Reads may run in several threads at once.

    Where the file system allows, reads into page-aligned buffers bypass the page cache (O_DIRECT): the arena is the
    cache, and holding the same bytes twice would halve what fits in memory. One call reads one expert: the kernel cuts
    it into as many requests as the disk takes at once, so cutting it up here gains nothing; a few readers keep the disk
    busy while checksums are computed (xxh3: some 20 GB/s a core, without the interpreter's lock).
    """

    def __init__(self, path: Path, manifest: Manifest, buffered: int, direct: int | None) -> None:
        self.path = path
        self.manifest = manifest
        self._buffered, self._direct = buffered, direct
        self._files = [fd for fd in (buffered, direct) if fd is not None]
        self._lock = threading.Lock()
        self._index = {key: index for index, key in enumerate(manifest.shape.keys())}
        self._bytes_read = 0

    @classmethod
    def open(cls, path: Path | str) -> ExpertStore:
        """Checks manifest, size and header, reads no expert yet.

        Raises StoreError when it is missing or of another format version, StoreCorrupt when it is damaged.
        """
        path = Path(path)
        file = path / EXPERTS_FILE
        try:
            manifest = Manifest.from_json(path / MANIFEST_FILE, (path / MANIFEST_FILE).read_bytes())
            buffered = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise StoreError(
                path, f"cannot open the expert store ({error})", "convert the checkpoint with `moespac convert`"
            ) from error
        try:
            size = os.fstat(buffered).st_size
            if size != manifest.file_bytes:
                raise StoreCorrupt(file, f"{size:,} bytes instead of {manifest.file_bytes:,}")
            if digest(os.pread(buffered, manifest.data_offset, 0)) != manifest.header_checksum:
                raise StoreCorrupt(file, "header checksum differs")
        except StoreCorrupt:
            os.close(buffered)
            raise
        return cls(path, manifest, buffered, _open_direct(file))

    @property
    def shape(self) -> ModelShape:
        return self.manifest.shape

    @property
    def layout(self) -> ExpertLayout:
        return self.manifest.layout

    @property
    def fingerprint(self) -> str:
        """Identity of the weights: equal stores give equal fingerprints wherever they lie."""
        return self.manifest.fingerprint

    @property
    def bytes_read(self) -> int:
        """Bytes read from disk since the store was opened."""
        return self._bytes_read

    @property
    def direct(self) -> bool:
        """Whether page-aligned reads bypass the page cache."""
        return self._direct is not None

    def read_into(self, key: ExpertKey, buffer: memoryview) -> None:
        """Reads one expert into the first `expert_bytes` of `buffer` and verifies its checksum.

        A buffer of `stride` bytes that starts on a page is read without the page cache. Raises StoreCorrupt (file,
        layer, expert), KeyError for an expert that the model does not have, StoreError when the disk fails. After an
        error the buffer's contents are not to be used.
        """
        index = self._index.get(key)
        if index is None:
            raise KeyError(f"no routed expert {key.expert} in layer {key.layer}")
        manifest, file = self.manifest, self.path / EXPERTS_FILE
        payload = manifest.layout.expert_bytes
        if buffer.nbytes < payload:
            raise ValueError(f"buffer of {buffer.nbytes} bytes for an expert of {payload}")
        offset = manifest.data_offset + index * manifest.stride
        try:
            done = self._read(offset, buffer, payload)
        except OSError as error:
            raise StoreError(
                file, f"layer {key.layer}, expert {key.expert}: {error}", "check the disk, then convert again"
            ) from error
        with self._lock:
            self._bytes_read += done
        if done < payload:
            raise StoreCorrupt(file, f"ends after {done:,} of {payload:,} bytes", key)
        if xxhash.xxh3_64_intdigest(buffer[:payload]) != manifest.checksums[index]:
            raise StoreCorrupt(file, "checksum differs", key)

    def _read(self, offset: int, buffer: memoryview, payload: int) -> int:
        stride = self.manifest.stride
        direct = self._direct
        if direct is not None and buffer.nbytes >= stride and _address(buffer) % PAGE == 0:
            try:
                return min(_read_all(direct, buffer[:stride], offset), payload)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                self._direct = None  # this file system opens O_DIRECT but does not read it
        return _read_all(self._buffered, buffer[:payload], offset)

    def close(self) -> None:
        """Closes the files; reads under way must have ended."""
        while self._files:
            os.close(self._files.pop())
        self._buffered, self._direct = -1, None


def aligned_buffer(size: int) -> memoryview:
    """A writable buffer of `size` bytes that starts on a page."""
    raw = np.empty(size + PAGE, dtype=np.uint8)
    start = -raw.ctypes.data % PAGE
    return memoryview(raw[start : start + size])


def _address(buffer: memoryview) -> int:
    return np.frombuffer(buffer, dtype=np.uint8).ctypes.data


def _open_direct(file: Path) -> int | None:
    try:
        return os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):
            return None
        raise


def _read_all(fd: int, buffer: memoryview, offset: int) -> int:
    done = 0
    while done < buffer.nbytes:
        count = os.preadv(fd, [buffer[done:]], offset + done)
        if count == 0:
            break
        done += count
    return done
