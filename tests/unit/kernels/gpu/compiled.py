"""Compiles the Triton kernels for GPUs that need not be there, and prints what they take as JSON, a line a kernel.

Run by test_compiled.py in a process of its own: Triton must not have been told to interpret."""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from moespac.kernels.gpu import grouped
from moespac.kernels.gpu.experts import constants, element_types
from moespac.kernels.gpu.tiles import tile_for
from moespac.kernels.layout import ExpertLayout

POINTERS = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int8: "*i8",
    torch.uint8: "*u8",
}
CASES = [
    (90, "bfloat16", torch.bfloat16),
    (90, "int8", torch.bfloat16),
    (90, "int4-g32", torch.bfloat16),
    (90, "int4-g32", torch.float32),
    (80, "bfloat16", torch.bfloat16),
    (80, "bfloat16", torch.float32),
    (80, "int4-g128", torch.float16),
    (89, "int8", torch.float16),
    (120, "bfloat16", torch.bfloat16),
]
"""Compute capability times ten, stored format, compute type."""


def compiled(name: str, layout: ExpertLayout, dtype: torch.dtype, pairs: int, capability: int):
    """One kernel for a GPU of `capability` and the tile of `pairs` pairs an expert, as Triton keeps it."""
    kernel, tile = getattr(grouped, name), tile_for(layout, dtype, pairs)
    slot_bytes = -(-layout.expert_bytes // 256) * 256
    fixed = constants(layout, slot_bytes, name) | tile.options()
    options = {key: fixed.pop(key) for key in ("num_warps", "num_stages")}
    types = {argument: POINTERS[kind] for argument, kind in element_types(layout).items()}
    types |= {"tiles": "*i32", "token_rows": "*i64", "router_weights": "*fp32", "out": "*fp32"}
    types |= {"hidden": POINTERS[dtype], "inner": POINTERS[dtype]}
    names = kernel.arg_names
    source = ASTSource(
        kernel,
        {argument: types.get(argument, "constexpr") for argument in names},
        {(names.index(key),): value for key, value in fixed.items()},
        {(at,): [["tt.divisibility", 16]] for at, argument in enumerate(names) if argument in types},
    )
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def spilled_bytes(ptx: str, capability: int) -> int:
    """What ptxas, which comes with Triton, could not keep in registers."""
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        tool = (
            Path(triton.__file__).parent / "backends/nvidia/bin" / ("ptxas-blackwell" if capability >= 100 else "ptxas")
        )
        architecture = f"sm_{capability}{'a' if capability >= 90 else ''}"
        command = [str(tool), "-v", f"--gpu-name={architecture}", file.name, "-o", "/dev/null"]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return int(re.search(r"(\d+) bytes spill stores", report)[1])


def main() -> None:
    for capability, stored, dtype in CASES:
        layout = ExpertLayout(2048, 768, stored, "silu")
        for pairs in (1, 64):
            for name in ("gate_up", "down"):
                kernel = compiled(name, layout, dtype, pairs, capability)
                ptx = kernel.asm["ptx"]
                facts = {
                    "kernel": f"{name} {stored} {dtype} pairs={pairs} sm_{capability}",
                    "shared_bytes": kernel.metadata.shared,
                    "spilled_bytes": spilled_bytes(ptx, capability),
                    "matrix_instructions": len(re.findall(r"mma\.sync|wgmma\.mma_async", ptx)),
                    "tf32": "tf32" in ptx,
                    "wide_copies": len(re.findall(r"cp\.async\.cg\.shared\.global \[[^]]*\], \[[^]]*\], 0x10", ptx)),
                }
                print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    main()
