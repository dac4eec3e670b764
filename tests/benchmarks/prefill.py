"""Prompt chunks through a stack of layers of real size, with and without streaming experts over an emulated link.

    python tests/benchmarks/prefill.py [--json] [--bandwidth GB/s] [--pairs N] [--folder DIR]

Experts of Qwen3-30B-A3B's shape (hidden 2048, intermediate 768, bfloat16, 9.4 MB) with random weights, 3 layers of 32,
top-2, so that a chunk of 256 tokens gives an expert 16 as it does there with top-8 of 128. A quarter is resident, all
are in host memory, a worker on the same machine computes with one thread, the device with another. A pass is the
routed experts of all layers, no trunk. With streaming four buffers are added to the same residents. Passes of the two
take turns on the same hidden states and routing, which of them goes first alternates; the costs that shares follow are
those measured in the passes before. Needs 3 GB of memory and 2 GB of disk in the folder, which it leaves empty.

No figure is of a real device; two stand for one:

* `shared`: copies are made, and the device's experts computed, by the cores that the worker uses too. A device has
  its own for both. So the speed-up is bounded by the core that is idle without streaming (2.0 were copies for nothing,
  on two idle cores; none on a busy machine), and a link faster than a core copies is as fast as that core.
* `timed`: link and device take their time (the link's bandwidth; an expert read at 300 GB/s and 2 % of that for each
  pair, `DEVICE_PRIOR`), without the work: what they give is not computed. The worker and all that shares out, hands
  over and joins are real. What it says depends on those constants, and on how fast the worker's core is beside them.

`m256_speedup_KIND` (and `m8_`, a decoding window of 8 tokens): [first quartile, median, third quartile] of a pair's
time without streaming over its time with it. `_with_ms`, `_without_ms`: quartiles of the passes. `_streamed`: share of
the missing experts that were copied. `_hidden`: share of the copies' time in which the device computed. `_copy_gb_s`:
what the link really gave.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import torch
from generated import write_checkpoint

# transformers asks whether there is a package `kernels`, and would take the benchmark of that name for it.
sys.path.remove(str(Path(__file__).parent))

from moespac.actors.core import ExpertKey
from moespac.actors.cpu_worker.actor import CpuWorkerActor
from moespac.actors.gpu_device.layer import LayerExecutor
from moespac.actors.gpu_device.link import EmulatedLink, Transfer, Wanted
from moespac.actors.gpu_device.loading import assumed_costs
from moespac.actors.gpu_device.measured_costs import MeasuredCosts
from moespac.actors.gpu_device.misses import Workers
from moespac.actors.gpu_device.passes import Pass
from moespac.actors.gpu_device.slots import ExpertSlots, slot_bytes
from moespac.actors.gpu_device.staging import MOST_BUFFERS, Staging
from moespac.actors.policy.cost import DEVICE_PRIOR
from moespac.actors.policy.link import SerialLink
from moespac.actors.policy.overlap import busy_seconds, overlap_seconds
from moespac.actors.prefetcher.convert import convert
from moespac.actors.prefetcher.source import ExpertSource
from moespac.actors.prefetcher.store import ExpertStore
from moespac.actors.transport.calls import ExpertCaller
from moespac.actors.transport.endpoint import Endpoint, PeerUnknown
from moespac.actors.transport.peers import Peers
from moespac.configs import CpuDeviceConfig, Deployment, GpuDeviceConfig, LinkConfig, ModelConfig, PrefetcherConfig
from moespac.kernels.choose import choose_kernel
from moespac.kernels.experts import ExpertWork
from moespac.kernels.threads import use_threads

HIDDEN, INNER, LAYERS, EXPERTS, TOP_K = 2048, 768, 3, 32, 2
PASSES = {256: 6, 8: 80}
"""Tokens of a pass: passes of each before any counts; costs must have been learned, decoding's from many small ones."""
MEMORY = 2 << 30
LATENCY_S = 20e-6
KINDS = ("shared", "timed")


class TimedLink:
    """Takes the time of a link that copies without the processor."""

    def __init__(self, config: LinkConfig):
        self._clock, self._lock = SerialLink(config.bandwidth, config.latency), threading.Lock()

    def move(self, block: np.ndarray, slot: torch.Tensor, read_last: torch.cuda.Event | None, wanted: Wanted) -> int:
        with self._lock:
            finish = self._clock.finish_time(time.monotonic(), block.nbytes)
        time.sleep(max(0.0, finish - time.monotonic()))
        return block.nbytes

    def close(self) -> None: ...


class TimedKernel:
    """Takes the time of a device."""

    name = "timed"

    def __init__(self, expert_bytes: int):
        self._expert_s = expert_bytes / DEVICE_PRIOR.bytes_per_s

    def rows(self, hidden: torch.Tensor, work: Sequence[ExpertWork]) -> torch.Tensor:
        pairs = sum(len(one.token_rows) for one in work)
        time.sleep(DEVICE_PRIOR.call_s + self._expert_s * (len(work) + DEVICE_PRIOR.pair_share * pairs))
        return torch.zeros((pairs, hidden.shape[1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--bandwidth", type=float, default=25.0, help="of the emulated link, GB/s")
    parser.add_argument("--pairs", type=int, default=15, help="passes of each at every setting")
    parser.add_argument("--folder", type=Path, help="where checkpoint and store are written meanwhile")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        serve(options.worker)
        return
    result: dict[str, object] = {"emulated": True, "link_gb_s": options.bandwidth}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder, torch.inference_mode():
        checkpoint = write_checkpoint(Path(folder) / "checkpoint", LAYERS, EXPERTS, HIDDEN, INNER)
        store = Path(folder) / "store"
        convert(checkpoint, store)
        use_threads(1)
        with worker(store) as endpoint:
            for kind in KINDS:
                result |= measure(store, endpoint, kind, options.bandwidth, options.pairs)
    for name, value in result.items():
        print(f"{name:28} {value}")
    if options.json:
        print(json.dumps(result))


def measure(store: Path, endpoint: Endpoint, kind: str, bandwidth: float, pairs: int) -> dict[str, object]:
    """All figures of devices of a kind behind a link of `bandwidth` GB/s."""
    with ExitStack() as undo:
        opened = ExpertStore.open(store)
        undo.callback(opened.close)
        source = ExpertSource.own(opened, MEMORY)
        undo.callback(source.close)
        for layer in opened.shape.layer_ids:
            source.with_experts(layer, range(EXPERTS), lambda _blocks: None)
        peers = Peers({endpoint.name: endpoint}.__getitem__)
        undo.callback(peers.close)
        link = LinkConfig(bandwidth=bandwidth * 1e9, latency=LATENCY_S)
        devices = {
            name: undo.enter_context(device(opened, source, peers, kind, link, buffers))
            for name, buffers in (("with", MOST_BUFFERS), ("without", 0))
        }
        result: dict[str, object] = {}
        for tokens, before in PASSES.items():
            found = compared(devices, tokens, before, pairs)
            result |= {f"m{tokens}_{name}_{kind}": value for name, value in found.items()}
        return result


def compared(devices: dict[str, LayerExecutor], tokens: int, before: int, pairs: int) -> dict[str, object]:
    """Figures of `pairs` pairs of passes, after `before` that do not count."""
    generator = torch.Generator().manual_seed(tokens)
    times: dict[str, list[float]] = {name: [] for name in devices}
    runs: list[Pass] = []
    copies: list[Transfer] = []
    for number in range(before + pairs):
        hidden = torch.randn((tokens, HIDDEN), generator=generator).bfloat16()
        routing = [router(tokens, generator) for _ in range(LAYERS)]
        for name in list(devices) if number % 2 else reversed(devices):
            executor = devices[name]
            executor.slots.transfers.take()
            run = Pass(executor.shape, ("prefill",), trace=True)
            started = time.perf_counter()
            one_pass(executor, run, hidden, routing)
            took = time.perf_counter() - started
            if number >= before:
                times[name].append(took)
                if name == "with":
                    runs.append(run)
                    copies += executor.slots.transfers.take()
    missing = sum(used - hit for run in runs for used, hit in zip(run.used, run.hits, strict=True))
    computing = [(s.start_ns, s.end_ns) for run in runs for s in run.spans if s.row.endswith("experts")]
    moving = [(copy.start_ns, copy.end_ns) for copy in copies]
    busy_s = busy_seconds(moving)
    ratios = [without / streamed for without, streamed in zip(times["without"], times["with"], strict=True)]
    return {
        "speedup": quartiles(ratios, 1.0),
        **{f"{name}_ms": quartiles(seen, 1e3) for name, seen in times.items()},
        "streamed": round(sum(run.streamed_experts for run in runs) / missing, 2),
        "hidden": round(overlap_seconds(moving, computing) / busy_s, 2) if copies else None,
        "copy_gb_s": round(sum(copy.bytes for copy in copies) / busy_s / 1e9, 1) if copies else None,
    }


def one_pass(executor: LayerExecutor, run: Pass, hidden: torch.Tensor, routing: list[tuple]) -> None:
    compute = executor.bound_to(run)
    for layer, (index, weights) in zip(run.shape.layer_ids, routing, strict=True):
        hidden = torch.nn.functional.rms_norm(hidden + compute(layer, hidden, index, weights), (HIDDEN,))


def router(tokens: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """A choice of TOP_K experts for each token, with a mild skew, and its weights."""
    scores = torch.randn((tokens, EXPERTS), generator=generator) + torch.linspace(0, 0.5, EXPERTS)
    weights, index = scores.softmax(1).topk(TOP_K)
    return index, (weights / weights.sum(1, keepdim=True)).bfloat16()


@contextmanager
def device(
    store: ExpertStore, source: ExpertSource, peers: Peers, kind: str, link_config: LinkConfig, buffers: int
) -> Iterator[LayerExecutor]:
    """A device of the kind with a quarter of the experts resident, and `buffers` besides."""
    shape, cpu = store.shape, torch.device("cpu")
    resident = [ExpertKey(layer, e) for layer in shape.layer_ids for e in range(0, EXPERTS, 4)]
    timed = kind == "timed"
    link, budget = (
        TimedLink(link_config) if timed else EmulatedLink(link_config),
        (len(resident) + buffers) * slot_bytes(shape),
    )
    config = GpuDeviceConfig(name="gpu-0", torch_device="emulated", expert_memory=budget, kv_memory=0, link=link_config)
    slots = ExpertSlots(shape, budget, cpu, link, buffers)
    staging = None
    if buffers:
        staging = Staging(slots.buffers, shape.expert_bytes, source, link, slots.transfers, slots.right_of_way)
    costs = MeasuredCosts(assumed_costs(config, cpu, shape), slots.transfers)
    workers = Workers(ExpertCaller(peers, store.fingerprint), ["cpu-0"], costs)
    chosen = choose_kernel(store.layout, torch.bfloat16, cpu, slots.memory).kernel
    kernel = TimedKernel(shape.expert_bytes) if timed else chosen
    try:
        for key in resident:
            slots.fill(source, key, 1, 0)
        yield LayerExecutor("gpu-0", shape, kernel, kernel, slots, source, costs, workers, staging)
    finally:
        if staging is not None:
            staging.close()
        slots.close()


@contextmanager
def worker(store: Path) -> Iterator[Endpoint]:
    """A worker in a process of its own, one thread, with all experts in memory."""
    command = [sys.executable, __file__, "--worker", str(store)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        for line in process.stdout:
            if line.startswith("at "):
                break
        yield Endpoint("cpu-0", "cpu_worker", line.split()[1], pid=process.pid)
    finally:
        process.kill()
        process.communicate()


def serve(store: Path) -> None:
    """The worker's process, until its standard input ends."""

    def nobody(name: str) -> Endpoint:
        raise PeerUnknown(f"no actor {name}")

    deployment = Deployment(
        model=ModelConfig(target=store, compute_dtype="bfloat16"),
        devices=(
            GpuDeviceConfig(name="gpu-0", torch_device="cpu", expert_memory=0, kv_memory=0),
            CpuDeviceConfig(name="cpu-0", arena="own", memory=MEMORY),
        ),
        prefetcher=PrefetcherConfig(host_memory=MEMORY),
    )
    actor = CpuWorkerActor("cpu-0", deployment, store, "prefetcher", "127.0.0.1", nobody)
    try:
        while not actor.ready():
            time.sleep(0.05)
        print(f"at {actor.endpoint().address}", flush=True)
        sys.stdin.read()
    finally:
        actor.stop()


def quartiles(seen: list[float], scale: float) -> list[float]:
    return [round(scale * value, 2) for value in statistics.quantiles(seen, n=4, method="inclusive")]


if __name__ == "__main__":
    main()
