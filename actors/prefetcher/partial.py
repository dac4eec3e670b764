"""The directory in which a store grows until it is complete: one conversion at a time, kept when its process dies."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .store_format import StoreError


@contextmanager
def growing(store: Path) -> Iterator[Path]:
    """The directory beside `store` that becomes it (see `put_in_place`); it belongs to this process alone meanwhile.

    Waits for another conversion to the same place. The lock is the kernel's, so it dies with its process. What a killed
    or interrupted conversion (KeyboardInterrupt, SystemExit) had done is still there for the next one; after an error,
    the directory is gone, so that it takes no space from whoever has to mend the cause. Raises StoreError for an
    OSError of the target.
    """
    partial = partial_of(store)
    try:
        store.parent.mkdir(parents=True, exist_ok=True)
        lock = _lock_directory(partial)
    except OSError as error:
        raise _refused(store, error) from error
    try:
        yield partial
    except OSError as error:
        _remove(partial, lock)
        raise _refused(store, error) from error
    except Exception:
        _remove(partial, lock)
        raise
    else:
        _remove(partial, lock)  # nothing was to be done; else it has been renamed
    finally:
        os.close(lock)


def partial_of(store: Path) -> Path:
    """Where a store grows."""
    return store.with_name(f".{store.name}.partial")


def clear(directory: Path) -> None:
    """Removes the files in `directory`."""
    for entry in directory.iterdir():
        entry.unlink()


def put_in_place(partial: Path, store: Path) -> None:
    """`partial` becomes `store`, and what was there goes. On disk when this returns."""
    sync_directory(partial)
    replaced = store.with_name(f".{store.name}.replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    if store.exists():
        store.rename(replaced)
    partial.rename(store)
    sync_directory(store.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def sync_directory(path: Path) -> None:
    """What the directory lists is on disk afterwards."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _lock_directory(path: Path) -> int:
    while True:
        path.mkdir(exist_ok=True)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
        except BaseException:
            os.close(fd)
            raise
        # Whoever held the lock may have renamed or removed the directory that we waited for.
        if path.exists() and os.stat(path).st_ino == os.fstat(fd).st_ino:
            return fd
        os.close(fd)


def _remove(partial: Path, lock: int) -> None:
    if partial.exists() and os.stat(partial).st_ino == os.fstat(lock).st_ino:
        shutil.rmtree(partial)


def _refused(store: Path, error: OSError) -> StoreError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreError(store, "the disk is full", "free space or set `store` to another disk")
    return StoreError(store, f"cannot be written ({error})", "set `store` to a directory you may write to")
