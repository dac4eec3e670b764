"""How fast the expert store is read and made, and whether it notices damage.

    python tests/benchmarks/store.py [--json] [--convert] [--folder DIR] [--only PART ...]

Needs some 5 GB of free disk in the folder, 12 GB with --convert; leaves nothing behind. See README.md here.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

from generated import write_checkpoint
from rich.console import Console
from rich.table import Table

# transformers asks whether there is a package `kernels`, and would take the benchmark of that name for it.
sys.path.remove(str(Path(__file__).parent))

from moespac.actors.core import ExpertKey
from moespac.actors.prefetcher.convert import convert
from moespac.actors.prefetcher.store import ExpertStore, StoreCorrupt, aligned_buffer

EXPERTS, MANIFEST = "experts.safetensors", "manifest.json"
MIB = 1 << 20
READ_SHAPES = {"9.4MB": (2048, 768), "2.4MB": (1024, 384)}
"""Expert size and (hidden, intermediate) of bfloat16 experts that have it."""
REFERENCES = [(16 * MIB, 1), (16 * MIB, 2), (16 * MIB, 4), (64 * MIB, 2)]
"""(bytes of a read, reads in flight) of the sequential reads compared with."""
READERS = (8, 4, 2)
"""Threads reading experts (`prefetcher.readers` of a deployment); the first is what counts."""
ARENA_BYTES = 256 * MIB
"""Memory read into, in turn, as a host arena is: a buffer used again and again would stay in the processor's caches."""

# Converts, and prints a line for each expert done: `python -c … CHECKPOINT STORE FORMAT BATCH_BYTES`.
CONVERTING = """
import sys
from moespac.actors.prefetcher import journal
from moespac.actors.prefetcher.convert import convert

journal.BATCH_BYTES = int(sys.argv[4])
made = convert(sys.argv[1], sys.argv[2], lambda done, total: print(done / total, flush=True), sys.argv[3])
print("taken over", made.taken_over, flush=True)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--convert", action="store_true", help="also convert a 5 GB checkpoint (minutes)")
    parser.add_argument("--convert-gb", type=float, default=5.1, help="size of that checkpoint")
    parser.add_argument("--folder", type=Path, help="where to put the files; on the disk to be measured")
    parser.add_argument("--only", nargs="+", choices=["reads", "flips", "resume"], default=["reads", "flips", "resume"])
    parser.add_argument("--file-gib", type=float, default=2.0, help="size of the files read")
    parser.add_argument("--repetitions", type=int, default=9)
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="moespac-benchmark-", dir=asked.folder))
    try:
        found: dict[str, object] = {"hardware": hardware(folder)}
        table = Table("figure", "value", title="expert store", show_lines=False)
        if "reads" in asked.only:
            fractions = {}
            for label, shape in READ_SHAPES.items():
                measured = measure_reads(folder, *shape, round(asked.file_gib * (1 << 30)), asked.repetitions)
                found[f"reads_{label}"] = measured
                found[f"direct_read_fraction_{label}"] = fractions[label] = measured["fraction"]
            found["direct_read_fraction"] = min(fractions.values())
        if "flips" in asked.only:
            found["bitflips_injected"], found["bitflips_caught"] = measure_flips(folder, 200)
        if "resume" in asked.only:
            found |= measure_resume(folder)
        if asked.convert:
            found |= measure_conversion(folder, asked.convert_gb)
    finally:
        shutil.rmtree(folder)
    for name, value in found.items():
        table.add_row(name, json.dumps(value))
    Console().print(table)
    if asked.json:
        print(json.dumps(found))


def measure_reads(folder: Path, hidden: int, inner: int, file_bytes: int, repetitions: int) -> dict[str, object]:
    """GB/s of experts read in random order and verified, and of plain sequential direct reads of the same file."""
    experts = file_bytes // (6 * hidden * inner) // 2
    checkpoint = write_checkpoint(folder / "checkpoint", 2, experts, hidden, inner)
    convert(checkpoint, folder / "store")
    shutil.rmtree(checkpoint)
    store = ExpertStore.open(folder / "store")
    fd = os.open(folder / "store" / EXPERTS, os.O_RDONLY | os.O_DIRECT)
    chance, keys, amount = random.Random(0), store.shape.keys(), 512 * MIB
    arena = aligned_buffer(ARENA_BYTES)
    arena[:] = bytes(ARENA_BYTES)  # has its pages now
    variants: dict[str, Callable[[], float]] = {}
    for size, flight in REFERENCES:
        # Each time another stretch of the file.
        def plain(size: int = size, flight: int = flight) -> float:
            first = chance.randrange((store.manifest.file_bytes - amount) // size + 1) * size
            places = iter(range(first, first + amount, size))
            return amount / timed(places, flight, arena, size, lambda at, buffer: read_plain(fd, at, buffer))

        variants[f"sequential {size // MIB} MiB x {flight}"] = plain
    for readers in READERS:

        def ours(readers: int = readers) -> float:
            some = chance.sample(keys, amount // store.shape.expert_bytes)
            seconds = timed(iter(some), readers, arena, store.manifest.stride, store.read_into)
            return len(some) * store.shape.expert_bytes / seconds

        variants[f"experts x {readers}"] = ours
    rates: dict[str, list[float]] = {name: [] for name in variants}
    order = list(variants)
    for _ in range(repetitions):
        chance.shuffle(order)
        for name in order:
            rates[name].append(variants[name]() / 1e9)
    direct = store.direct
    os.close(fd)
    store.close()
    shutil.rmtree(folder / "store")
    medians = {name: statistics.median(values) for name, values in rates.items()}
    best = max((name for name in medians if name.startswith("sequential")), key=lambda name: medians[name])
    mine = f"experts x {READERS[0]}"
    paired = [ours / reference for ours, reference in zip(rates[mine], rates[best], strict=True)]
    return {
        "expert_bytes": 6 * hidden * inner,
        "direct": direct,
        "fraction": round(medians[mine] / medians[best], 3),
        "best_reference": best,
        "fraction_of_pairs": {"min": round(min(paired), 3), "max": round(max(paired), 3)},
        "gb_per_s": {
            name: {
                "median": round(medians[name], 3),
                "min": round(min(rates[name]), 3),
                "max": round(max(rates[name]), 3),
            }
            for name in variants
        },
    }


def read_plain(fd: int, at: int, buffer: memoryview) -> None:
    if os.preadv(fd, [buffer], at) != buffer.nbytes:
        raise OSError(f"short read at {at}")


def timed(
    work: Iterator, flight: int, arena: memoryview, slot_bytes: int, do: Callable[[Any, memoryview], None]
) -> float:
    """Seconds until `flight` threads have done all `work`, each piece with the next slot of the arena."""
    lock, errors = threading.Lock(), []
    slots = cycle(range(0, arena.nbytes - slot_bytes + 1, slot_bytes))

    def go() -> None:
        try:
            while True:
                with lock:
                    item, slot = next(work, None), next(slots)
                if item is None:
                    return
                do(item, arena[slot : slot + slot_bytes])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=go) for _ in range(flight)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return time.perf_counter() - started


def measure_flips(folder: Path, count: int) -> tuple[int, int]:
    """(bits flipped one at a time in a quantised store, those that its reader reported at the right place)."""
    checkpoint = write_checkpoint(folder / "checkpoint", 2, 8, 512, 256)
    convert(checkpoint, folder / "store", None, "int4-g32")
    store = ExpertStore.open(folder / "store")
    manifest, parts = store.manifest, store.layout.parts
    store.close()
    chance, caught = random.Random(0), 0
    for number in range(count):
        where = ("payload", "scales", "header", "manifest")[number % 4]
        key: ExpertKey | None = None
        file = folder / "store" / (MANIFEST if where == "manifest" else EXPERTS)
        if where in ("header", "manifest"):
            at = chance.randrange(manifest.data_offset if where == "header" else file.stat().st_size)
        else:
            index = chance.randrange(len(manifest.checksums))
            key = manifest.shape.keys()[index]
            part = chance.choice([part for part in parts if part.name.endswith("_scales") == (where == "scales")])
            at = manifest.data_offset + index * manifest.stride + part.offset + chance.randrange(part.nbytes)
        bit = chance.randrange(8)
        flip(file, at, bit)
        caught += reported(folder / "store") == [(file, key)]
        flip(file, at, bit)
    if reported(folder / "store"):
        raise RuntimeError("the store is damaged although every bit was flipped back")
    shutil.rmtree(checkpoint)
    shutil.rmtree(folder / "store")
    return count, caught


def flip(file: Path, at: int, bit: int) -> None:
    with file.open("r+b") as stream:
        stream.seek(at)
        value = stream.read(1)[0]
        stream.seek(at)
        stream.write(bytes([value ^ (1 << bit)]))


def reported(path: Path) -> list[tuple[Path, ExpertKey | None]]:
    """All damage that opening the store and reading every expert of it reports."""
    try:
        store = ExpertStore.open(path)
    except StoreCorrupt as error:
        return [(error.file, error.key)]
    found, buffer = [], aligned_buffer(store.manifest.stride)
    for key in store.shape.keys():  # noqa: SIM118
        try:
            store.read_into(key, buffer)
        except StoreCorrupt as error:
            found.append((error.file, error.key))
    store.close()
    return found


def measure_resume(folder: Path) -> dict[str, object]:
    """Kills a conversion again and again; is the result the same, and was no work repeated but the last batch?"""
    checkpoint = write_checkpoint(folder / "checkpoint", 2, 40, 1024, 384)
    identical, taken = True, []
    for format in ("bfloat16", "int4-g32"):
        convert(checkpoint, folder / "whole", None, format)
        batch = (folder / "whole" / EXPERTS).stat().st_size // 40
        command = [sys.executable, "-c", CONVERTING, str(checkpoint), str(folder / "store"), format, str(batch)]
        for fraction in (0.1, 0.35, 0.6, 0.95):
            child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            for line in child.stdout:
                if float(line) >= fraction:
                    break
            child.send_signal(signal.SIGKILL)
            child.communicate()
            identical &= child.returncode == -signal.SIGKILL and not (folder / "store").exists()
        last = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
        taken.append(int(last.removeprefix("taken over ")))
        names = sorted(file.name for file in (folder / "store").iterdir())
        identical &= names == [EXPERTS, MANIFEST]
        identical &= all((folder / "whole" / n).read_bytes() == (folder / "store" / n).read_bytes() for n in names)
        shutil.rmtree(folder / "store")
        shutil.rmtree(folder / "whole")
    shutil.rmtree(checkpoint)
    return {"resume_identical": identical, "resume_kills": 8, "resume_experts": 80, "resume_taken_over": taken}


def measure_conversion(folder: Path, gigabytes: float) -> dict[str, object]:
    """Converts a checkpoint of that size with the command as users have it; peak anonymous memory, throughput."""
    checkpoint = write_checkpoint(folder / "checkpoint", 5, round(gigabytes * 1e9 / 5 / (6 * 2048 * 768)), 2048, 768)
    size = sum(file.stat().st_size for file in checkpoint.iterdir())
    run = [sys.executable, "-c", "from moespac.cluster.cli import main; main()", "convert", str(checkpoint)]
    result: dict[str, object] = {"convert_checkpoint_gb": round(size / 1e9, 2)}
    peaks = []
    for format in ("bfloat16", "int8", "int4-g32"):
        os.sync()
        started = time.perf_counter()
        child = subprocess.Popen([*run, str(folder / "store"), "--experts", format], stdout=subprocess.DEVNULL)
        peak = 0
        while child.poll() is None:
            peak = max(peak, anonymous_kib(child.pid))
            time.sleep(0.01)
        if child.returncode:
            raise RuntimeError(f"moespac convert ended with status {child.returncode}")
        peaks.append(peak / 1024)
        result[f"convert_gb_per_s_{format}"] = round(size / 1e9 / (time.perf_counter() - started), 3)
        result[f"convert_rss_mib_{format}"] = round(peak / 1024)
        shutil.rmtree(folder / "store")
    return result | {"convert_rss_mib": round(max(peaks))}


def anonymous_kib(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon:")), 0)


def hardware(folder: Path) -> str:
    """Processor, cores, kernel, and the disk that `folder` is on."""
    processor = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        os.uname().machine,
    )
    device = os.stat(folder).st_dev
    disk = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve().name
    return f"{processor}, {os.cpu_count()} cores, Linux {os.uname().release}, disk {disk}"


if __name__ == "__main__":
    main()
