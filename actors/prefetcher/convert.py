"""From a checkpoint to an expert store, expert by expert, all or nothing."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import xxhash

from .checkpoint import Checkpoint, open_checkpoint, source_fingerprint
from .store import ExpertStore, StoreError, aligned_buffer
from .store_format import EXPERTS_FILE, MANIFEST_FILE, Manifest, build_header, digest, stride_of

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""


def convert(checkpoint: Path | str, store: Path | str, progress: Progress | None = None) -> None:
    """Writes the routed experts of `checkpoint` to the directory `store`, replacing a store that is there.

    Memory stays bounded by a few experts. The store is written beside its place and renamed when it is complete and on
    disk, so a crash leaves the old one or none; the next conversion clears up. Raises CheckpointError for the source
    and StoreError for the target; after either, nothing half-done is left.
    """
    source = open_checkpoint(checkpoint)
    with _exclusive(Path(store).absolute()) as partial:
        _write(source, partial, Path(store).absolute(), progress or (lambda done, total: None))


def store_path_for(checkpoint: Path | str, configured: Path | str | None) -> Path:
    """Where the store of `checkpoint` is: as configured, else in the user's cache, named by model and fingerprint."""
    if configured is not None:
        return Path(configured).expanduser().absolute()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = Path(checkpoint).resolve().name
    return cache / "moespac" / "stores" / f"{name}-{source_fingerprint(checkpoint)[:16]}"


def ensure_store(
    checkpoint: Path | str, configured: Path | str | None = None, progress: Progress | None = None
) -> Path:
    """Path of an intact store of `checkpoint`, converted now if there is none or if it was made from other files.

    Raises StoreCorrupt for a damaged store: a disk that flips bits is something to know of, not to write over.
    """
    path = store_path_for(checkpoint, configured)
    fingerprint = source_fingerprint(checkpoint)
    if not _made_from(path, fingerprint):
        source = open_checkpoint(checkpoint)
        with _exclusive(path) as partial:
            if not _made_from(path, fingerprint):  # another process may have converted while this one waited
                _write(source, partial, path, progress or (lambda done, total: None))
    return path


def _made_from(path: Path, fingerprint: str) -> bool:
    if not (path / MANIFEST_FILE).exists():
        return False
    store = ExpertStore.open(path)
    try:
        return store.manifest.source_fingerprint == fingerprint
    finally:
        store.close()


@contextmanager
def _exclusive(store: Path) -> Iterator[Path]:
    """An empty directory beside `store` that belongs to this process alone; gone afterwards.

    Waits for another conversion to the same place. The lock is the kernel's, so it dies with its process.
    """
    partial = store.with_name(f".{store.name}.partial")
    try:
        store.parent.mkdir(parents=True, exist_ok=True)
        lock = _lock_directory(partial)
    except OSError as error:
        raise _refused(store, error) from error
    try:
        _clear(partial)
        yield partial
    except OSError as error:
        raise _refused(store, error) from error
    finally:
        # After success `partial` has been renamed; the lock went with it.
        if partial.exists() and os.stat(partial).st_ino == os.fstat(lock).st_ino:
            shutil.rmtree(partial)
        os.close(lock)


def _lock_directory(path: Path) -> int:
    while True:
        path.mkdir(exist_ok=True)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        fcntl.flock(fd, fcntl.LOCK_EX)
        # Whoever held the lock may have renamed or removed the directory that we waited for.
        if path.exists() and os.stat(path).st_ino == os.fstat(fd).st_ino:
            return fd
        os.close(fd)


def _clear(directory: Path) -> None:
    for entry in directory.iterdir():
        entry.unlink()


def _refused(store: Path, error: OSError) -> StoreError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreError(store, "the disk is full", "free space or set `store` to another disk")
    return StoreError(store, f"cannot be written ({error})", "set `store` to a directory you may write to")


def _write(source: Checkpoint, partial: Path, store: Path, progress: Progress) -> None:
    if store.exists() and not (store / MANIFEST_FILE).exists() and (not store.is_dir() or any(store.iterdir())):
        raise StoreError(store, "exists and is no expert store", "choose another path")
    header = build_header(source.shape, source.layout, source.fingerprint)
    keys, stride, payload = source.shape.keys(), stride_of(source.layout), source.layout.expert_bytes
    buffer = aligned_buffer(stride)
    buffer[payload:] = bytes(stride - payload)
    checksums: list[int] = []
    progress(0, len(keys) * payload)
    fd = os.open(partial / EXPERTS_FILE, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        # Takes the space now: a full disk shows before the work, not after it.
        os.posix_fallocate(fd, 0, len(header) + len(keys) * stride)
        _write_all(fd, memoryview(header), 0)
        for index, key in enumerate(keys):
            _lay_out(source.expert(key), buffer)
            checksums.append(xxhash.xxh3_64_intdigest(buffer[:payload]))
            _write_all(fd, buffer, len(header) + index * stride)
            progress((index + 1) * payload, len(keys) * payload)
        os.fsync(fd)
    finally:
        os.close(fd)
    manifest = Manifest(
        model_name=source.name,
        model_type=source.model_type,
        source_fingerprint=source.fingerprint,
        shape=source.shape,
        layout=source.layout,
        data_offset=len(header),
        header_checksum=digest(header),
        checksums=tuple(checksums),
    )
    with (partial / MANIFEST_FILE).open("wb") as stream:
        stream.write(manifest.to_json())
        stream.flush()
        os.fsync(stream.fileno())
    _sync_directory(partial)
    _put_in_place(partial, store)


def _lay_out(parts: tuple[torch.Tensor, ...], buffer: memoryview) -> None:
    """Gate, up and down rows, one after another."""
    at = 0
    for part in parts:
        data = part.contiguous().flatten().view(torch.uint8).numpy()
        np.frombuffer(buffer, np.uint8, data.size, at)[:] = data
        at += data.size


def _put_in_place(partial: Path, store: Path) -> None:
    replaced = store.with_name(f".{store.name}.replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    if store.exists():
        store.rename(replaced)
    partial.rename(store)
    _sync_directory(store.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _write_all(fd: int, data: memoryview, offset: int) -> None:
    done = 0
    while done < data.nbytes:
        done += os.pwrite(fd, data[done:], offset + done)
