import ctypes
import mmap
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import psutil
import pytest

from moespac.actors.core import ExpertKey, ModelShape
from moespac.actors.prefetcher.arena import Arena, ArenaError, ArenaLocation, ArenaReader, ArenaUnreachable
from moespac.actors.transport.endpoint import host_id

SHAPE = ModelShape((1, 2), 4, 2, 32, 16, expert_bytes=20_000)
STRIDE = 20_480


@pytest.fixture
def arena():
    arena = Arena.create(SHAPE, 3 * STRIDE + 1)
    yield arena
    arena.close()


@pytest.fixture
def reader(arena):
    reader = ArenaReader.attach(arena.location, SHAPE)
    yield reader
    reader.close()


def put(arena, key, block, value):
    arena.write_slot(block)[:] = bytes([value]) * STRIDE
    arena.publish(key, block)


def test_budget_becomes_blocks(arena):
    assert (arena.blocks, arena.stride) == (3, STRIDE)
    everything = Arena.create(SHAPE, 2**30)
    assert everything.blocks == 8
    assert everything.location.bytes < 9 * STRIDE + 8192
    everything.close()


def test_smaller_than_one_expert():
    with pytest.raises(ArenaError, match=r"host_memory of 20,479 bytes does not hold one expert \(20,480 bytes\)"):
        Arena.create(SHAPE, STRIDE - 1)


def test_larger_than_the_machine():
    total = psutil.virtual_memory().total
    shape = ModelShape((0,), 2, 1, 32, 16, expert_bytes=total)
    with pytest.raises(ArenaError, match="more than this machine's"):
        Arena.create(shape, 3 * total)


def test_publish_invalidate_and_validity(arena, reader):
    a, b = ExpertKey(1, 0), ExpertKey(2, 3)
    assert reader.view(a) is None
    put(arena, a, 0, 7)
    view = reader.view(a)
    assert view.data.nbytes == SHAPE.expert_bytes and set(view.data.tolist()) == {7}
    assert reader.still_valid(view)
    put(arena, b, 1, 8)
    assert reader.still_valid(view), "another expert's block is no concern of this one"
    arena.invalidate(a)
    assert not reader.still_valid(view) and reader.view(a) is None
    put(arena, a, 0, 7)
    assert not reader.still_valid(view), "gone and come back is not the same"
    assert reader.still_valid(reader.view(a))


def test_record_being_changed_is_absent(arena, reader):
    key = ExpertKey(1, 1)
    put(arena, key, 0, 1)
    arena._directory[arena._geometry.record(key), 0] += 1  # a writer that stopped between the two
    assert reader.view(key) is None


def test_unknown_experts(arena, reader):
    for key in (ExpertKey(0, 0), ExpertKey(1, 4), ExpertKey(1, -1)):
        with pytest.raises(KeyError):
            reader.view(key)
    with pytest.raises(IndexError):
        arena.write_slot(3)
    with pytest.raises(IndexError):
        arena.publish(ExpertKey(1, 0), -1)


def test_readers_cannot_write(arena, reader):
    put(arena, ExpertKey(1, 0), 0, 1)
    view = reader.view(ExpertKey(1, 0))
    with pytest.raises(ValueError, match="read-only"):
        view.data[0] = 9
    with pytest.raises(ValueError):
        view.data.flags.writeable = True
    # Not even by asking the kernel: the mapping's file was opened read-only,
    libc = ctypes.CDLL(None, use_errno=True)
    mapping = ctypes.c_void_p(reader.memory.ctypes.data)
    assert libc.mprotect(mapping, ctypes.c_size_t(4096), mmap.PROT_READ | mmap.PROT_WRITE) == -1
    assert ctypes.get_errno() == 13
    # and the memory is sealed against whoever opens it otherwise.
    fd = os.open(f"/proc/{arena.location.pid}/fd/{arena.location.fd}", os.O_RDWR)
    try:
        with pytest.raises(PermissionError):
            os.pwrite(fd, b"x", 0)
        with pytest.raises(PermissionError):
            mmap.mmap(fd, 4096, mmap.MAP_SHARED, mmap.PROT_WRITE)
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 0)
    finally:
        os.close(fd)
    assert reader.still_valid(view) and view.data[0] == 1


def test_unreachable(arena):
    there = arena.location
    elsewhere = ArenaLocation("another-boot/pid:[1]", there.pid, there.fd, there.bytes)
    with pytest.raises(ArenaUnreachable, match="another host"):
        ArenaReader.attach(elsewhere, SHAPE)
    dead = subprocess.Popen(["true"])
    dead.wait()
    with pytest.raises(ArenaUnreachable, match="has gone"):
        ArenaReader.attach(ArenaLocation(host_id(), dead.pid, there.fd, there.bytes), SHAPE)
    with pytest.raises(ArenaUnreachable, match="instead of"):
        ArenaReader.attach(ArenaLocation(host_id(), there.pid, there.fd, there.bytes + 1), SHAPE)
    with pytest.raises(ArenaUnreachable, match="another model: n_experts 4, not 5"):
        ArenaReader.attach(there, ModelShape((1, 2), 5, 2, 32, 16, expert_bytes=20_000))
    with open("/dev/null") as other, pytest.raises(ArenaUnreachable, match="is not an arena"):
        ArenaReader.attach(ArenaLocation(host_id(), os.getpid(), other.fileno(), there.bytes), SHAPE)


def test_closed_reader_finds_nothing(arena):
    put(arena, ExpertKey(1, 0), 0, 5)
    reader = ArenaReader.attach(arena.location, SHAPE)
    view = reader.view(ExpertKey(1, 0))
    reader.close()
    assert reader.view(ExpertKey(1, 0)) is None and not reader.still_valid(view)
    assert view.data[0] == 5, "the memory stays while a view needs it"


# Owns an arena with two experts and waits: `python -c …`; prints its location.
OWNER = """
import sys
from moespac.actors.core import ExpertKey, ModelShape
from moespac.actors.prefetcher.arena import Arena
shape = ModelShape((1, 2), 4, 2, 32, 16, expert_bytes=20_000)
arena = Arena.create(shape, 3 * 20_480)
for block, key in enumerate((ExpertKey(1, 0), ExpertKey(2, 3))):
    arena.write_slot(block)[:] = bytes([10 + block]) * arena.stride
    arena.publish(key, block)
print(arena.location.pid, arena.location.fd, arena.location.bytes, flush=True)
sys.stdin.readline()
"""


def test_from_another_process_whose_owner_then_dies():
    owner = subprocess.Popen([sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    pid, fd, size = map(int, owner.stdout.readline().split())
    reader = ArenaReader.attach(ArenaLocation(host_id(), pid, fd, size), SHAPE)
    before = reader.view(ExpertKey(2, 3))
    assert set(before.data.tolist()) == {11} and reader.owner_alive()
    owner.send_signal(signal.SIGKILL)
    owner.communicate()
    assert not reader.owner_alive()
    assert reader.still_valid(before) and set(reader.view(ExpertKey(1, 0)).data.tolist()) == {10}
    with pytest.raises(ArenaUnreachable):
        ArenaReader.attach(reader.location, SHAPE)
    reader.close()


def pattern(key, size):
    """Bytes that tell an expert from every other, at every position."""
    return (np.arange(size) * 7 + key.layer * 101 + key.expert * 13).astype(np.uint8)


# Verifies contents while they are overwritten: prints "valid torn-but-noticed" and fails on any torn read that passes.
VERIFIER = """
import sys, time
import numpy as np
from moespac.actors.core import ExpertKey, ModelShape
from moespac.actors.prefetcher.arena import ArenaLocation, ArenaReader
from moespac.actors.transport.endpoint import host_id
pid, fd, size = map(int, sys.argv[1:4])
shape = ModelShape((1, 2), 4, 2, 32, 16, expert_bytes=20_000)
reader = ArenaReader.attach(ArenaLocation(host_id(), pid, fd, size), shape)
keys = shape.keys()
expected = {k: (np.arange(20_000) * 7 + k.layer * 101 + k.expert * 13).astype(np.uint8) for k in keys}
valid = noticed = 0
print("reading", flush=True)
end = time.monotonic() + float(sys.argv[4])
while time.monotonic() < end:
    for key in keys:
        view = reader.view(key)
        if view is None:
            continue
        right = bool((view.data == expected[key]).all())
        if reader.still_valid(view):
            assert right, f"torn read of {key} passed"
            valid += 1
        else:
            noticed += not right
print(valid, noticed)
"""


def test_no_torn_read_passes_while_blocks_are_overwritten(arena):
    """One writer moves eight experts through three blocks without pause; two processes check all they read."""
    location = arena.location
    command = [sys.executable, "-c", VERIFIER, *map(str, (location.pid, location.fd, location.bytes, 1.5))]
    readers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    stop = threading.Event()

    def overwrite():
        patterns = {key: pattern(key, STRIDE).tobytes() for key in SHAPE.keys()}  # noqa: SIM118
        lies = [None] * arena.blocks
        keys, turn = SHAPE.keys(), 0
        while not stop.is_set():
            key, block = keys[turn * 5 % 8], turn % 3
            turn += 1
            if key in lies:
                continue
            if lies[block] is not None:
                arena.invalidate(lies[block])
            slot = arena.write_slot(block)
            half = STRIDE // 2
            slot[:half] = patterns[key][:half]
            slot[half:] = patterns[key][half:]
            arena.publish(key, block)
            lies[block] = key
            time.sleep(0)

    writer = threading.Thread(target=overwrite)
    writer.start()
    try:
        results = [process.communicate(timeout=60)[0].split() for process in readers]
    finally:
        stop.set()
        writer.join()
    assert [process.returncode for process in readers] == [0, 0]
    valid, noticed = (sum(int(result[i]) for result in results) for i in (1, 2))
    assert valid > 100, "readers starved: the test showed nothing"
    assert noticed > 0, "no block was overwritten under a reader's eyes: the test showed nothing"
