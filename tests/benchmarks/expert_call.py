"""The round trip of an expert call between two processes of one host: gRPC against the shared-memory lane.

    python tests/benchmarks/expert_call.py [--seconds 20] [--only small|layer] [--json]

A CPU worker in a process of its own, with one thread, and a caller here, as a device makes its calls: from the hidden
states to the rows of every expert. Runs of ten calls over gRPC and over the lane take turns, in an order drawn anew
each time. Times are [10th percentile, median, 90th percentile] in microseconds; ratios are of medians.

* `grpc_call_us`, `lane_call_us`, `lane_over_grpc`: one token of 2048 float32 and one expert of 2048 x 16, which takes a
  few microseconds to compute: what a call costs by itself.
* `grpc_layer_m*_us`, `lane_layer_m*_us`, `lane_over_grpc_layer_m*`: a layer of Qwen3-30B-A3B in bfloat16: 8 of 32
  experts of 2048 x 768, drawn anew for each call, which 1, 5 or 9 tokens all chose. Their weights push everything
  else out of the caches, which a call pays for.
* `*_outside_us`: what is left of a call's time without the worker's time for computing.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import structlog
import torch
from generated import write_checkpoint

# transformers asks whether there is a package `kernels`, and would take the benchmark of that name for it.
sys.path.remove(str(Path(__file__).parent))

from moespac.actors.cpu_worker.actor import CpuWorkerActor
from moespac.actors.prefetcher.convert import convert
from moespac.actors.prefetcher.store import ExpertStore
from moespac.actors.transport.calls import ExpertCaller
from moespac.actors.transport.endpoint import Endpoint, PeerUnknown
from moespac.actors.transport.peers import Peers
from moespac.cluster.machine import cpu_model
from moespac.configs import CpuDeviceConfig, Deployment, GpuDeviceConfig, ModelConfig, PrefetcherConfig

HIDDEN, INNER, SMALL_INNER = 2048, 768, 16
EXPERTS, CHOSEN = 32, 8
TOKENS = (1, 5, 9)
DEADLINE_S = 30.0
RUN = 10
"""Calls one way in a row. One more before them does not count: gRPC's threads are not done when a call is."""
WARM_UP = 4
"""Runs each way before those that count: experts come from disk, pages are touched, gRPC connects."""


@contextmanager
def caller_to(worker: Endpoint, fingerprint: str, way: str) -> Iterator[ExpertCaller]:
    """One whose calls all go `way`."""
    peers = Peers(lambda name: worker)
    caller = ExpertCaller(peers, fingerprint, here=None if way == "lane" else "another host")
    refusal = caller.lanes.open(worker.name)
    assert (way == "lane") == (refusal is None), refusal
    try:
        yield caller
    finally:
        caller.close()
        peers.close()


def timed(caller: ExpertCaller, way: str, hidden: torch.Tensor, pairs: list) -> tuple[float, float]:
    """Microseconds of one call: all of it, and all but computing."""
    started = time.perf_counter()
    call = caller.start("cpu-0", 0, 1, ["request"], hidden, pairs, DEADLINE_S)
    call.result()
    took = 1e6 * (time.perf_counter() - started)
    (part,) = call.served
    assert part.way == way
    return took, took - 1e-3 * (part.finished_ns - part.started_ns)


def compare(callers: dict[str, ExpertCaller], tokens: int, experts: int, seconds: float) -> dict[str, list]:
    """For each way its calls' times."""
    times: dict[str, list] = {way: [] for way in callers}
    hidden = torch.randn(tokens, HIDDEN, generator=torch.Generator().manual_seed(tokens))
    draw, rows, weights = random.Random(tokens), torch.arange(tokens), torch.full((tokens,), 1 / experts)
    end = time.monotonic() + 3600
    while time.monotonic() < end:
        for way in draw.sample(list(callers), len(callers)):
            for number in range(RUN + 1):
                pairs = [(expert, rows, weights) for expert in sorted(draw.sample(range(EXPERTS), experts))]
                took = timed(callers[way], way, hidden, pairs)
                if number:
                    times[way].append(took)
        if len(times["lane"]) == WARM_UP * RUN:
            end = time.monotonic() + seconds
    return {way: seen[WARM_UP * RUN :] for way, seen in times.items()}


def spread(values: Sequence[float]) -> list[float]:
    """Their 10th percentile, median and 90th percentile."""
    deciles = statistics.quantiles(values, n=10)
    return [round(value, 1) for value in (deciles[0], deciles[4], deciles[-1])]


def measure(only: str | None, seconds: float) -> dict[str, object]:
    """All figures by name."""
    result: dict[str, object] = {"cpu": cpu_model(), "calls": {}}
    cases = [("small", SMALL_INNER, (1,), 1), ("layer", INNER, TOKENS, CHOSEN)]
    for case, inner, sizes, experts in cases:
        if only not in (None, case):
            continue
        with tempfile.TemporaryDirectory() as folder, ExitStack() as undo:
            store = Path(folder, "store")
            convert(write_checkpoint(Path(folder, "target"), 1, EXPERTS, HIDDEN, inner), store)
            worker = undo.enter_context(worker_process(store))
            opened = ExpertStore.open(store)
            fingerprint = opened.fingerprint
            opened.close()
            callers = {way: undo.enter_context(caller_to(worker, fingerprint, way)) for way in ("grpc", "lane")}
            for tokens in sizes:
                times = compare(callers, tokens, experts, seconds / 4)
                name = "call" if case == "small" else f"layer_m{tokens}"
                result["calls"][name] = len(times["lane"])
                medians = {}
                for way, seen in times.items():
                    totals, outside = zip(*seen, strict=True)
                    result[f"{way}_{name}_us"], medians[way] = spread(totals), statistics.median(totals)
                    result[f"{way}_{name}_outside_us"] = spread(outside)
                key = "lane_over_grpc" if case == "small" else f"lane_over_grpc_{name}"
                result[key] = round(medians["lane"] / medians["grpc"], 3)
    return result


@contextmanager
def worker_process(store: Path) -> Iterator[Endpoint]:
    """`cpu-0` on `store`, serving, in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, __file__, "--worker", str(store)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield Endpoint("cpu-0", "cpu_worker", process.stdout.readline().strip(), pid=process.pid)
    finally:
        process.communicate()  # it ends with its input


def serve(store: Path) -> None:
    """The worker's process."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))  # the address alone goes to stdout

    def nobody(name: str) -> Endpoint:
        raise PeerUnknown(f"no actor {name}")

    deployment = Deployment(
        model=ModelConfig(target=store.parent / "target", compute_dtype="bfloat16"),
        devices=(
            GpuDeviceConfig(name="gpu-0", torch_device="cpu", expert_memory=0, kv_memory=2**20),
            CpuDeviceConfig(name="cpu-0", arena="own", memory=2**30),
        ),
        prefetcher=PrefetcherConfig(host_memory=2**20),
    )
    actor = CpuWorkerActor("cpu-0", deployment, store, "prefetcher", "127.0.0.1", nobody)
    try:
        while not actor.ready():
            if actor.failure():
                sys.exit(actor.failure())
            time.sleep(0.01)
        print(actor.endpoint().address, flush=True)
        sys.stdin.read()
    finally:
        actor.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="of calls, all sizes together")
    parser.add_argument("--only", choices=("small", "layer"))
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        serve(options.worker)
        return
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    torch.set_num_threads(1)
    result = measure(options.only, options.seconds)
    for name, value in result.items():
        print(f"{name:28} {value}", file=sys.stderr if options.json else sys.stdout)
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
