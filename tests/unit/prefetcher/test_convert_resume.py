"""Conversions that are killed, and the ones that take over."""

import shutil
import signal
import subprocess
import sys

import pytest
from tiny_models import make_qwen3_moe

from moespac.actors.prefetcher import journal
from moespac.actors.prefetcher.checkpoint import Checkpoint
from moespac.actors.prefetcher.convert import convert
from moespac.actors.prefetcher.partial import partial_of

EXPERTS = 24
# Converts to every STORE at once, each conversion halting for good after so many experts, which are on disk by then:
# `python -c … CHECKPOINT STORE EXPERTS…`. The journal is written after every expert instead of every 256 MiB.
HALTING = """
import os, sys, threading, time
from moespac.actors.prefetcher import journal
from moespac.actors.prefetcher.convert import convert

journal.BATCH_BYTES = 1

def start(store, experts):
    def progress(done, total):
        if done == int(experts) * total // 24:
            file = os.path.join(os.path.dirname(store), "." + os.path.basename(store) + ".partial", "journal")
            while int(experts) and open(file, "rb").read().count(b"\\n") < 1 + int(experts):
                time.sleep(0.01)
            os.write(1, b"halted\\n")  # whole, whatever the other threads write
            threading.Event().wait()
    thread = threading.Thread(target=convert, args=(sys.argv[1], store, progress, sys.argv[2]))
    thread.start()
    return thread

for thread in [start(*asked) for asked in zip(sys.argv[3::2], sys.argv[4::2])]:
    thread.join()
"""


def bytes_of(store):
    return {file.name: file.read_bytes() for file in store.iterdir()}


def kill_after(checkpoint, format, experts_by_store):
    """Converts to every store at once and kills the process when each has done as many experts as it says."""
    asked = [str(word) for pair in experts_by_store.items() for word in pair]
    command = [sys.executable, "-c", HALTING, str(checkpoint), format, *asked]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert [child.stdout.readline() for _ in experts_by_store] == ["halted\n"] * len(experts_by_store)
    child.send_signal(signal.SIGKILL)
    child.communicate()


@pytest.fixture
def experts_read(monkeypatch):
    """Keys of the experts that were read from a checkpoint in this process, in order."""
    read, expert = [], Checkpoint.expert

    def counting(self, key):
        read.append(key)
        return expert(self, key)

    monkeypatch.setattr(Checkpoint, "expert", counting)
    return read


@pytest.mark.parametrize(
    ("killed_after", "again"), [((1, 12), False), pytest.param((0, 1, 5, 12, 23, 24), True, marks=pytest.mark.slow)]
)
def test_killed_conversions_are_taken_over_wherever_they_were(
    killed_after, again, checkpoint, stores, tmp_path, experts_read
):
    expected = bytes_of(stores("int4-g32"))
    points = {tmp_path / f"after-{experts}": experts for experts in killed_after}
    replaced = tmp_path / "after-12"
    convert(make_qwen3_moe(tmp_path / "checkpoint", seed=5), replaced)
    before = bytes_of(replaced)
    kill_after(checkpoint, "int4-g32", points)
    if again:  # one that took over is killed as well
        points[tmp_path / "after-5"] = 17
        kill_after(checkpoint, "int4-g32", {tmp_path / "after-5": 17})
    assert bytes_of(replaced) == before
    for store, experts in points.items():
        assert (store == replaced or not store.exists()) and partial_of(store).exists()
        experts_read.clear()
        reported = []
        made = convert(checkpoint, store, lambda done, total, seen=reported: seen.append((done, total)), "int4-g32")
        assert (made.experts, made.taken_over) == (EXPERTS, experts)
        assert len(experts_read) == EXPERTS - experts, "work was repeated"
        assert reported[0][0] == 0 and reported[-1][0] == reported[-1][1]
        assert bytes_of(store) == expected
    whole = convert(checkpoint, tmp_path / "whole", None, "int4-g32")
    assert made.weight_errors == whole.weight_errors, "errors come from the journal too"
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == sorted(["checkpoint", "whole", *(store.name for store in points)])


@pytest.fixture
def halfway(checkpoint, tmp_path, monkeypatch):
    """Where a store would be, whose conversion was interrupted after 12 experts."""
    monkeypatch.setattr(journal, "BATCH_BYTES", 3 * 3072)
    store = tmp_path / "store"

    def interrupt(done, total):
        if done == total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(checkpoint, store, interrupt)
    assert [path.name for path in tmp_path.iterdir()] == [".store.partial"]
    return store


def test_interrupted_conversion_goes_on(checkpoint, store_path, halfway, experts_read):
    assert convert(checkpoint, halfway).taken_over == 12 == len(experts_read)
    assert bytes_of(halfway) == bytes_of(store_path)


def test_what_the_journal_claims_is_read_back(checkpoint, store, store_path, halfway, experts_read):
    """A disk that lost what it had promised: those experts are done again."""
    with (partial_of(halfway) / "experts.safetensors").open("r+b") as stream:
        for index in (2, 7):
            stream.seek(store.manifest.data_offset + index * store.manifest.stride + 1_000)
            stream.write(b"\0\1\2\3")
    assert convert(checkpoint, halfway).taken_over == 10
    keys = store.shape.keys()
    assert experts_read == [keys[2], keys[7], *keys[12:]]
    assert bytes_of(halfway) == bytes_of(store_path)


@pytest.mark.parametrize("cut", [2, 30, 150])
def test_torn_journal(checkpoint, store_path, halfway, cut):
    file = partial_of(halfway) / "journal"
    lines = file.read_bytes()
    file.write_bytes(lines[:-cut])
    assert 9 <= convert(checkpoint, halfway).taken_over < 12
    assert bytes_of(halfway) == bytes_of(store_path)


def test_truncated_data(checkpoint, store, store_path, halfway):
    with (partial_of(halfway) / "experts.safetensors").open("r+b") as stream:
        stream.truncate(store.manifest.data_offset + 4 * store.manifest.stride + 100)
    assert convert(checkpoint, halfway).taken_over == 4
    assert bytes_of(halfway) == bytes_of(store_path)


def test_nothing_is_taken_over_from_another_source_or_format(checkpoint, stores, halfway, tmp_path):
    half_done = shutil.copytree(partial_of(halfway), tmp_path / "kept")
    assert convert(checkpoint, halfway, None, "int8").taken_over == 0
    assert bytes_of(halfway) == bytes_of(stores("int8"))
    other = make_qwen3_moe(tmp_path / "other", seed=3)
    convert(other, tmp_path / "expected")
    shutil.copytree(half_done, partial_of(halfway))
    assert convert(other, halfway).taken_over == 0
    assert bytes_of(halfway)["experts.safetensors"] == bytes_of(tmp_path / "expected")["experts.safetensors"]


def test_after_an_error_nothing_is_left_to_take_over(checkpoint, halfway):
    """It would take the space that the user has to free."""

    def fail(done, total):
        if done == total - 3072:
            raise OSError(28, "No space left on device")

    with pytest.raises(Exception, match="the disk is full"):
        convert(checkpoint, halfway, fail)
    assert list(halfway.parent.iterdir()) == []
