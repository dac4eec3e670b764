"""The Triton expert kernels at decode sizes against the memory's speed and torch's grouped_mm.

    python tests/benchmarks/gpu_kernels.py [--json]

Experts of Qwen3-30B-A3B's shape (2048 x 768), 128 slots; a call computes 8 of them for M tokens each, and every call
takes other experts than the 15 calls before it, so that none is found in a cache. GPU time between CUDA events around
each call; the calls are queued behind a busy wait, or starting them would be what is measured. `*_copy_fraction`: bytes
of weights read per second, as a fraction of the bytes that a large copy on the device reads and writes per second, in
the same run. `*_whole_call_us`: with the call's tables brought to the device. `*_vs_grouped_mm`: time of gather,
torch's grouped_mm twice, activation and router weights (as transformers computes experts) over ours. Without a GPU:
{"gpu": "not measured"}.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch.nn import functional as F

from moespac.kernels.experts import ExpertWork
from moespac.kernels.gpu.experts import TritonExperts, supports
from moespac.kernels.layout import ExpertLayout

HIDDEN, INNER, EXPERTS, ACTIVE = 2048, 768, 128, 8
TOKENS = (1, 4, 8, 16)
FORMATS = {"bf16": "bfloat16", "int8": "int8", "int4g32": "int4-g32"}
ROUNDS = 8
COPY_BYTES = 2 << 30
BUSY_CYCLES = 40_000_000
"""Of the wait that calls are queued behind: about 20 ms."""


def measure() -> dict[str, object]:
    """All figures by name; times in microseconds as [first quartile, median, third quartile]."""
    if not torch.cuda.is_available():
        return {"gpu": "not measured"}
    device = torch.device("cuda", torch.cuda.current_device())
    result: dict[str, object] = {"gpu": torch.cuda.get_device_name(device), "torch": torch.__version__}
    copy = copy_bandwidth(device)
    result["copy_gb_s"] = round(copy / 1e9, 1)
    for short, stored in FORMATS.items():
        layout = ExpertLayout(HIDDEN, INNER, stored, "silu")
        if (reason := supports(layout, torch.bfloat16)) is not None:
            result[short] = f"not measured: {reason}"
            continue
        arena = make_arena(layout, device)
        kernel = TritonExperts(layout, torch.bfloat16, arena)
        for tokens in TOKENS:
            found = measure_calls(layout, arena, kernel, tokens, copy)
            result |= {f"{short}_m{tokens}_{name}": value for name, value in found.items()}
    return result


def measure_calls(
    layout: ExpertLayout, arena: torch.Tensor, kernel: TritonExperts, tokens: int, copy: float
) -> dict[str, object]:
    """Figures of calls with `tokens` tokens an expert; `copy`: bytes per second of the large copy."""
    hidden = torch.randn(tokens, HIDDEN, device=arena.device, dtype=torch.bfloat16)
    works = calls_over(arena, tokens)
    ours = gpu_times([partial(kernel.compute, hidden, kernel.prepare(work)) for work in works])
    median = statistics.median(ours)
    found: dict[str, object] = {
        "us": quartiles(ours),
        "whole_call_us": quartiles(gpu_times([partial(kernel.rows, hidden, work) for work in works])),
        "copy_fraction": round(ACTIVE * layout.expert_bytes / median / copy, 3),
    }
    if layout.format == "bfloat16":
        theirs = grouped_mm_times(layout, arena, hidden, works, kernel)
        found["grouped_mm_us"] = quartiles(theirs)
        found["vs_grouped_mm"] = round(statistics.median(theirs) / median, 2)
    return found


def make_arena(layout: ExpertLayout, device: torch.device) -> torch.Tensor:
    """All experts alike: what they hold takes no time, where they lie does."""
    slot_bytes = -(-layout.expert_bytes // 256) * 256
    block = torch.zeros(slot_bytes, dtype=torch.uint8, device=device)
    for name, view in layout.views(block).items():
        if name.endswith("_scales"):
            view.fill_(0.002)
        elif view.is_floating_point():
            view.normal_(std=0.02)
        else:
            view.random_(-127, 128) if view.dtype == torch.int8 else view.random_(0, 256)
    return block.repeat(EXPERTS, 1)


def calls_over(arena: torch.Tensor, tokens: int) -> list[list[ExpertWork]]:
    """Calls of `ACTIVE` experts and all tokens each, which together go through the whole arena."""
    rows = torch.arange(tokens, device=arena.device)
    weights = torch.full((tokens,), 1 / ACTIVE, device=arena.device, dtype=torch.bfloat16)
    calls = [range(first, first + ACTIVE) for first in range(0, EXPERTS, ACTIVE)]
    return [[ExpertWork(arena[slot], rows, weights) for slot in slots] for slots in calls]


def grouped_mm_times(
    layout: ExpertLayout,
    arena: torch.Tensor,
    hidden: torch.Tensor,
    works: Sequence[Sequence[ExpertWork]],
    kernel: TritonExperts,
) -> list[float]:
    """Seconds of the same calls by torch, over the same weights; checks that both compute the same."""
    views = [layout.views(slot) for slot in arena]
    # Copied: grouped_mm wants one tensor [E, N, K], the arena holds an expert's matrices together.
    gate_up, down = (torch.stack([view[name] for view in views]) for name in ("gate_up", "down"))
    tokens = len(hidden)
    rows = torch.arange(tokens, device=hidden.device).repeat(ACTIVE)
    weights = torch.cat([work.router_weights for work in works[0]])[:, None]
    ends = []
    for first in range(0, EXPERTS, ACTIVE):
        counts = torch.zeros(EXPERTS, dtype=torch.int32)
        counts[first : first + ACTIVE] = tokens
        ends.append(counts.cumsum(0, dtype=torch.int32).to(hidden.device))

    def compute(offsets: torch.Tensor) -> torch.Tensor:
        gate, up = F.grouped_mm(hidden[rows], gate_up.transpose(1, 2), offs=offsets).chunk(2, dim=-1)
        return F.grouped_mm(F.silu(gate) * up, down.transpose(1, 2), offs=offsets) * weights

    ours, theirs = kernel.rows(hidden, works[3]), compute(ends[3]).float()
    difference = float((ours - theirs).abs().max() / theirs.abs().max())
    if not difference < 0.03:
        raise SystemExit(
            f"the kernels and grouped_mm differ by {difference:.3g} of the largest value: nothing measured"
        )
    return gpu_times([partial(compute, offsets) for offsets in ends])


def gpu_times(calls: Sequence[Callable[[], object]]) -> list[float]:
    """Seconds that the GPU takes for each of `calls`, `ROUNDS` times over."""
    for call in calls:
        call()
    times = []
    for _ in range(ROUNDS):
        torch.cuda.synchronize()
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(len(calls) + 1)]
        torch.cuda._sleep(BUSY_CYCLES)
        marks[0].record()
        for call, mark in zip(calls, marks[1:], strict=True):
            call()
            mark.record()
        if marks[0].query():
            raise SystemExit("the GPU did not wait for the calls to be queued: raise BUSY_CYCLES")
        torch.cuda.synchronize()
        times += [a.elapsed_time(b) / 1e3 for a, b in pairwise(marks)]
    return times


def copy_bandwidth(device: torch.device) -> float:
    """Bytes read and written per second by a large copy within the device's memory; the median."""
    source = torch.zeros(COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * COPY_BYTES / statistics.median(gpu_times([partial(target.copy_, source)] * 4))


def quartiles(seconds: Sequence[float]) -> list[float]:
    return [round(value * 1e6, 2) for value in statistics.quantiles(seconds, n=4)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object, nothing else")
    options = parser.parse_args()
    result = measure()
    if options.json:
        print(json.dumps(result))
        return
    if result["gpu"] == "not measured":
        print("not measured: torch sees no CUDA device")
        return
    for name, value in result.items():
        print(f"{name:32} {value}")


if __name__ == "__main__":
    main()
