"""What an unfinished conversion has done already, so that the next one need not repeat it.

The journal lies beside the growing file. Its first line says what is being made of what; each further line is one
expert: its checksum, and how far its weights moved. Lines are written after the data that they speak of is on disk,
many experts at a time, so that waiting for the disk does not rule the pace. A journal is still not believed: the next
conversion reads back every expert that it claims, at the speed of the disk (far cheaper than converting again, and the
only thing that also notices what a dying disk or a power cut has lost), and repeats those that differ.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import xxhash

from .store_format import StoreError, digest

JOURNAL_FILE = "journal"
BATCH_BYTES = 256 << 20
"""Of experts that go to disk together: what a killed conversion has to repeat at most twice."""


@dataclass(frozen=True)
class Done:
    """One expert that is written. The last two are sums over the weights that were compared, 0 where none were."""

    index: int
    """In the order of the model's keys."""
    checksum: int
    squared_error: float = 0.0
    squared_weights: float = 0.0

    def line(self) -> bytes:
        fields = (f"{self.index}", f"{self.checksum:016x}", self.squared_error.hex(), self.squared_weights.hex())
        text = " ".join(fields).encode()
        return text + b" " + digest(text).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Done | None:
        """None for a line that was torn or damaged."""
        text, _, check = line.rpartition(b" ")
        if digest(text) != check.decode(errors="replace"):
            return None
        index, checksum, error, weights = text.decode().split(" ")
        return cls(int(index), int(checksum, 16), float.fromhex(error), float.fromhex(weights))


def claims(partial: Path, identity: str) -> list[Done]:
    """What the journal in `partial` says is done; nothing, where it is missing or of a conversion of another kind."""
    try:
        first, *lines = (partial / JOURNAL_FILE).read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    if first != identity.encode():
        return []
    return [done for line in lines if (done := Done.from_line(line)) is not None]


class Journal:
    """Writes the journal of the file `data` in `partial`. One thread may use it."""

    def __init__(self, partial: Path, data: int, identity: str, kept: Iterable[Done]) -> None:
        """Begins anew with the experts in `kept`, which are on disk. `data`: descriptor of the growing file."""
        self._data = data
        self._batch: list[bytes] = []
        self._bytes = 0
        # On disk under another name first: at no time is there less of a journal than before.
        fresh = partial / f"{JOURNAL_FILE}.new"
        self._fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self._writing: Future[None] | None = None
        try:
            self._commit([identity.encode() + b"\n", *(done.line() for done in kept)])
            fresh.rename(partial / JOURNAL_FILE)
        except BaseException:
            self.close()
            raise

    def add(self, done: Done, size: int) -> None:
        """Notes an expert of `size` bytes that has been written. Raises OSError when an earlier batch failed."""
        self._batch.append(done.line())
        self._bytes += size
        if self._bytes >= BATCH_BYTES:
            self._send()

    def finish(self) -> None:
        """Everything noted is on disk afterwards."""
        self._send()
        if self._writing is not None:
            self._writing.result()

    def close(self) -> None:
        """Ends the thread; what was not finished may be lost."""
        self._thread.shutdown()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _send(self) -> None:
        if self._writing is not None:
            self._writing.result()  # one batch on its way to the disk at a time
        self._writing = self._thread.submit(self._commit, self._batch)
        self._batch, self._bytes = [], 0

    def _commit(self, lines: list[bytes]) -> None:
        os.fdatasync(self._data)
        write_all(self._fd, memoryview(b"".join(lines)), None)
        os.fdatasync(self._fd)


def verified(file: Path, start: int, stride: int, payload: int, claimed: Iterable[Done]) -> Iterable[Done]:
    """Those of `claimed` whose blocks in `file` have the checksum claimed; reads 8 MiB at a time."""
    buffer = memoryview(bytearray(8 << 20))
    try:
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        for done in claimed:
            state, at = xxhash.xxh3_64(), 0
            while at < payload:
                count = os.preadv(fd, [buffer[: min(len(buffer), payload - at)]], start + done.index * stride + at)
                if count == 0:
                    break
                state.update(buffer[:count])
                at += count
            if at == payload and state.intdigest() == done.checksum:
                yield done
    except OSError as error:
        raise StoreError(file, f"cannot be read back ({error})", "check the disk, then convert again") from error
    finally:
        os.close(fd)


def write_all(fd: int, data: memoryview, offset: int | None) -> None:
    """Writes all of `data` at `offset`; None: at the file's own position."""
    done = 0
    while done < data.nbytes:
        done += os.write(fd, data[done:]) if offset is None else os.pwrite(fd, data[done:], offset + done)
