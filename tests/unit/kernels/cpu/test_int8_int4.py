"""The CPU kernels on quantised weights against torch on the same weights dequantised."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from moespac.kernels.cpu import library
from moespac.kernels.cpu.experts import CpuExperts
from moespac.kernels.cpu.linear import PackedLinear
from moespac.kernels.experts import ExpertWork
from moespac.kernels.layout import ExpertLayout
from moespac.kernels.quantise import dequantise, quantise
from moespac.kernels.reference import expert_rows

if reason := library.unavailable():
    pytest.skip(reason, allow_module_level=True)

FORMATS = [("int8", "float16"), *((f"int4-g{g}", s) for g in (32, 128) for s in ("float16", "bfloat16"))]
# Whole groups, runs cut short, and last groups of one to four runs.
COLUMNS = (1, 31, 32, 40, 96, 100, 127, 128, 130, 256, 300)
EXPERTS, TOKENS = 3, 5
every_isa = pytest.mark.parametrize("isa", library.available())
every_format = pytest.mark.parametrize("format, scale_dtype", FORMATS)
# Float32: rounding of sums alone. Bfloat16: rounding of the result, 2^-9, and of activations to 8 bits where
# a kernel does that: up to 1/254 of the widest of 32, 0.6 % of a row's norm where they are normal.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 0.012}
every_type = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


def made(format: str, scale_dtype: str, rows: int, columns: int, dtype: torch.dtype, isa: str):
    """(linear, its weight dequantised, 16 tokens)"""
    generator = torch.Generator().manual_seed(columns)
    payload, scales = quantise(torch.randn(rows, columns, generator=generator) * 0.02, format, scale_dtype)
    linear = PackedLinear.quantised(payload, scales, format, columns, isa=isa)
    weight = dequantise(payload, scales, format, columns)
    return linear, weight, torch.randn(16, columns, generator=generator).to(dtype)


def distance(ours: torch.Tensor, expected: torch.Tensor) -> float:
    return float((ours.double() - expected.double()).norm() / expected.double().norm())


@every_isa
@every_format
@every_type
def test_products_are_those_of_the_dequantised_weights(format, scale_dtype, dtype, isa) -> None:
    for columns in COLUMNS:
        linear, weight, x = made(format, scale_dtype, 37, columns, dtype, isa)
        error = distance(linear(x), x.double() @ weight.double().T)
        assert error <= TOLERANCE[dtype], columns


@every_isa
@every_format
@every_type
def test_a_row_has_the_same_bits_whatever_the_tokens_and_threads(format, scale_dtype, dtype, isa) -> None:
    before = library.threads()
    linear, _, x = made(format, scale_dtype, 67, 300, dtype, isa)
    try:
        library.configure(1)
        expected = linear(x)
        for threads in (1, 2):
            library.configure(threads)
            for m in (1, 2, 3, 4, 7, 16):
                for first in (0, 16 - m):
                    assert torch.equal(linear(x[first : first + m]), expected[first : first + m])
    finally:
        library.configure(before)


@cache
def blocks(layout: ExpertLayout) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(EXPERTS):
        block = torch.zeros(layout.expert_bytes, dtype=torch.uint8)
        views = layout.views(block)
        for name, rows, columns in (
            ("gate_up", layout.gate_up_rows, layout.hidden_size),
            ("down", layout.hidden_size, layout.intermediate_size),
        ):
            weight = torch.randn(rows, columns, generator=generator) * 0.1
            payload, scales = quantise(weight, layout.format, layout.scale_dtype)
            views[name].copy_(payload)
            views[f"{name}_scales"].copy_(scales)
        made.append(block)
    return tuple(made)


@every_isa
@every_format
@every_type
def test_experts_are_those_of_the_dequantised_store(format, scale_dtype, dtype, isa) -> None:
    layout = ExpertLayout(136, 100, format, "silu", scale_dtype=scale_dtype)
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(TOKENS, layout.hidden_size, generator=generator).to(dtype)
    work, expected = [], []
    for expert, block in enumerate(blocks(layout)):
        rows = torch.arange(expert, TOKENS)
        router = torch.rand(len(rows), generator=generator)
        work.append(ExpertWork(block, rows, router))
        # In float32 throughout: what the kernels' own rounding adds is what is measured.
        expected.append(expert_rows(layout, layout.weights(block), hidden[rows].float(), router))
    kernel = CpuExperts(layout, dtype, isa)
    ours = kernel.rows(hidden, work)
    assert distance(ours, torch.cat(expected)) <= 2 * TOLERANCE[dtype]
    alone = [kernel.rows(hidden, [ExpertWork(w.block, w.token_rows[-1:], w.router_weights[-1:])]) for w in work]
    ends = torch.tensor([len(w.token_rows) for w in work]).cumsum(0) - 1
    assert torch.equal(torch.cat(alone), ours[ends])
