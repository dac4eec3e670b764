"""The CPU kernels against the memory's bandwidth and torch, at the shape of Qwen3-30B-A3B's experts.

    python tests/benchmarks/kernels.py [--threads 2] [--only experts|trunk|gpu] [--trunk-format stored] [--json]

Experts of 2048 x 768 in memory, far more than the caches hold, each used once a sweep, eight a call, M tokens each.
Sweeps of all contenders take turns. `*_stream`: bytes of weights per second over those of the best of several loops
that only read the same memory; `*_vs_torch`: time of `torch.nn.functional.linear` in bfloat16 (gate and up, SiLU, down)
over ours, an expert each; int4 is held against torch in bfloat16 too. Times are [first quartile, median, third
quartile] in milliseconds an expert; ratios are of medians. Trunk and GPU figures come from `trunk_layer.py` and
`gpu_kernels.py`.
"""

from __future__ import annotations

import argparse
import json
import mmap
import platform
import statistics
import time
from collections.abc import Callable

import gpu_kernels
import numpy as np
import torch
import trunk_layer
from torch.nn import functional as F

from moespac.actors.hardware import cpu_model
from moespac.kernels.cpu import library
from moespac.kernels.cpu.experts import CpuExperts
from moespac.kernels.experts import ExpertWork
from moespac.kernels.layout import ExpertLayout

HIDDEN, INNER, A_CALL = 2048, 768, 8
MEMORY = 1536 << 20
"""Bytes of experts: several times the largest last-level cache in use."""
TOKENS = (1, 4, 8)
FORMATS = {"bf16": "bfloat16", "int8": "int8", "int4g32": "int4-g32"}
ROUNDS, READ_LOOPS = 7, 6


def measure(threads: int) -> dict[str, object]:
    """All figures of the expert kernels by name."""
    torch.set_num_threads(threads)
    library.configure(threads)
    memory = weights_in_memory()
    contenders: dict[str, tuple[Callable[[], None], int]] = {}  # a sweep, and how many experts it computes
    for loop in range(READ_LOOPS):
        contenders[f"read{loop}"] = (lambda loop=loop: library.load().moespac_read(memory.data_ptr(), MEMORY, loop), 1)
    for short, stored in FORMATS.items():
        for tokens in TOKENS:
            contenders[f"{short}_m{tokens}"] = ours(memory, stored, tokens)
    for tokens in TOKENS:
        contenders[f"torch_bf16_m{tokens}"] = torchs(memory, tokens)
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(ROUNDS + 1):
        for name, (sweep, experts) in contenders.items():
            started = time.perf_counter()
            sweep()
            if turn:  # the first is for warming up
                times[name].append((time.perf_counter() - started) / experts)
    median = {name: statistics.median(seen) for name, seen in times.items()}
    read = max(MEMORY / median[f"read{loop}"] for loop in range(READ_LOOPS))
    result: dict[str, object] = {"stream_read_gb_s": round(read / 1e9, 1)}
    for short, stored in FORMATS.items():
        size = ExpertLayout(HIDDEN, INNER, stored, "silu").expert_bytes
        for tokens in TOKENS:
            name = f"{short}_m{tokens}"
            result[f"{name}_stream"] = round(size / median[name] / read, 3)
            against = f"{name}_vs_torch" if short == "bf16" else f"{name}_vs_torch_bf16"
            result[against] = round(median[f"torch_bf16_m{tokens}"] / median[name], 2)
            result[f"{name}_ms"] = quartiles(times[name])
    return result | {f"torch_bf16_m{tokens}_ms": quartiles(times[f"torch_bf16_m{tokens}"]) for tokens in TOKENS}


def weights_in_memory() -> torch.Tensor:
    """Bytes that are ordinary bfloat16 weights; as integers or nibbles, and their scales, any bytes will do."""
    area = mmap.mmap(-1, MEMORY)
    area.madvise(mmap.MADV_HUGEPAGE)
    memory = torch.from_numpy(np.frombuffer(area, np.uint8))
    piece = (torch.randn(4 << 20) * 0.02).bfloat16().view(torch.uint8)
    for at in range(0, MEMORY, piece.numel()):
        memory[at : at + piece.numel()] = piece[: MEMORY - at]
    return memory


def blocks(memory: torch.Tensor, layout: ExpertLayout) -> list[torch.Tensor]:
    stride = -(-layout.expert_bytes // 4096) * 4096
    count = MEMORY // stride // A_CALL * A_CALL
    return [memory[i * stride : (i + 1) * stride] for i in range(count)]


def ours(memory: torch.Tensor, stored: str, tokens: int) -> tuple[Callable[[], None], int]:
    """A sweep in bfloat16."""
    layout = ExpertLayout(HIDDEN, INNER, stored, "silu")
    kernel, hidden = CpuExperts(layout, torch.bfloat16), torch.randn(tokens, HIDDEN).bfloat16()
    rows, router = torch.arange(tokens), torch.ones(tokens)
    found = blocks(memory, layout)
    calls = [
        [ExpertWork(block, rows, router) for block in found[at : at + A_CALL]] for at in range(0, len(found), A_CALL)
    ]

    def sweep() -> None:
        for call in calls:
            kernel.rows(hidden, call)

    return sweep, len(found)


def torchs(memory: torch.Tensor, tokens: int) -> tuple[Callable[[], None], int]:
    """The same experts by torch. Fewer where it is slow: each is still used once."""
    layout = ExpertLayout(HIDDEN, INNER, "bfloat16", "silu")
    hidden = torch.randn(tokens, HIDDEN).bfloat16()
    found = [layout.weights(block) for block in blocks(memory, layout)]

    @torch.inference_mode()
    def sweep() -> None:
        for weights in found:
            gate, up = F.linear(hidden, weights.gate_up).chunk(2, dim=-1)
            F.linear(F.silu(gate) * up, weights.down)

    return sweep, len(found)


def quartiles(seconds: list[float]) -> list[float]:
    return [round(1e3 * t, 4) for t in statistics.quantiles(seconds, n=4, method="inclusive")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2, help="threads of kernels and torch (2)")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--only", choices=("experts", "trunk", "gpu"), help="one part of the three")
    parser.add_argument("--trunk-format", default="stored", choices=("stored", "int8", "int4-g32", "int4-g128"))
    options = parser.parse_args()
    reason = library.unavailable()
    result: dict[str, object] = {
        "cpu": cpu_model(),
        "isa": None if reason else library.choose(),
        "threads": options.threads,
        "torch": torch.__version__,
        "system": platform.platform(),
    }
    wanted = {options.only} if options.only else {"experts", "trunk", "gpu"}
    if "experts" in wanted:
        result |= {"experts": f"not measured: {reason}"} if reason else measure(options.threads)
    if "trunk" in wanted:
        result |= trunk_layer.measure(options.threads, options.trunk_format)
    if "gpu" in wanted:
        result |= gpu_kernels.measure()
    for name, value in result.items():
        print(f"{name:32} {value}")
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
