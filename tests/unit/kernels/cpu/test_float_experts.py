"""Experts in float formats: torch's reference on every instruction set, and bits that depend on nothing but the row."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moespac.kernels.cpu import library
from moespac.kernels.cpu.experts import CpuExperts, supports
from moespac.kernels.experts import ExpertWork
from moespac.kernels.layout import FLOAT_FORMATS, GATES, ExpertLayout
from moespac.kernels.reference import TorchExperts

if reason := library.unavailable():
    pytest.skip(reason, allow_module_level=True)

every_isa = pytest.mark.parametrize("isa", library.available())
SHAPES = ((64, 32), (100, 37), (7, 130))


def block_of(layout: ExpertLayout, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    block = torch.zeros(layout.expert_bytes, dtype=torch.uint8)
    for view in layout.views(block).values():
        view.copy_((torch.randn(view.shape, generator=generator) * 0.2).to(view.dtype))
    return block


def call(layout: ExpertLayout, sizes: list[int], dtype: torch.dtype) -> tuple[torch.Tensor, list[ExpertWork]]:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(max(sizes) + 3, layout.hidden_size, generator=generator).to(dtype)
    work = [
        ExpertWork(
            block_of(layout, seed),
            torch.randperm(len(hidden), generator=generator)[:m],
            torch.rand(m, generator=generator),
        )
        for seed, m in enumerate(sizes)
    ]
    return hidden, work


def close(got: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype) -> bool:
    return bool((got - wanted).norm() <= (2e-6 if dtype == torch.float32 else 1e-2) * wanted.norm())


@every_isa
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("format", FLOAT_FORMATS)
def test_rows_are_the_references(format, dtype, isa):
    for hidden_size, inner in SHAPES:
        for gate in GATES:
            for extras in ({}, {"bias": True, "norm_eps": 1e-5}):
                layout = ExpertLayout(hidden_size, inner, format, "silu", gate, 1.5, 1.7, **extras)
                hidden, work = call(layout, [1, 7, 19], dtype)
                got = CpuExperts(layout, dtype, isa).rows(hidden, work)
                wanted = TorchExperts(layout, torch.float32).rows(hidden.float(), work)
                assert close(got, wanted, dtype), (layout, (got - wanted).norm() / wanted.norm())


@every_isa
@pytest.mark.parametrize(
    "activation", ["silu", "gelu", "gelu_pytorch_tanh", "gelu_new", "relu", "relu2", "sigmoid", "tanh", "linear"]
)
def test_activations_are_transformers(activation, isa):
    layout = ExpertLayout(64, 48, "float32", activation)
    hidden, work = call(layout, [5], torch.float32)
    got = CpuExperts(layout, torch.float32, isa).rows(hidden * 4, work)
    assert close(got, TorchExperts(layout, torch.float32).rows(hidden * 4, work), torch.float32)


@every_isa
@settings(max_examples=8, deadline=None, database=None, derandomize=True)
@given(
    format=st.sampled_from(list(FLOAT_FORMATS)),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    hidden_size=st.integers(1, 140),
    inner=st.integers(1, 90),
    m=st.integers(2, 20),
)
def test_a_rows_bits_do_not_depend_on_the_call(isa, format, dtype, hidden_size, inner, m):
    layout = ExpertLayout(hidden_size, inner, format, "silu")
    kernel = CpuExperts(layout, dtype, isa)
    hidden, work = call(layout, [m, 3], dtype)
    threads = library.threads()
    try:
        library.configure(1)
        whole = kernel.rows(hidden, work)
        library.configure(2)
        assert torch.equal(kernel.rows(hidden, work), whole)
    finally:
        library.configure(threads)
    first = work[0]
    for t in range(m):
        alone = ExpertWork(first.block, first.token_rows[t : t + 1], first.router_weights[t : t + 1])
        assert torch.equal(kernel.rows(hidden, [alone])[0], whole[t])


def test_what_has_no_kernel_is_said():
    assert "float16" in supports(ExpertLayout(8, 8, "float32", "silu"), torch.float16)
    assert "mish" in supports(ExpertLayout(8, 8, "float32", "mish"), torch.float32)
    with pytest.raises(library.LibraryError, match="no instruction set: one of"):
        library.choose("sse9")
    with pytest.raises(library.LibraryError, match="none that this process may use"):
        library.configure(1, [100_000])


def test_work_that_does_not_fit_is_refused():
    layout = ExpertLayout(16, 8, "float32", "silu")
    kernel, (hidden, work) = CpuExperts(layout, torch.float32), call(layout, [2], torch.float32)
    with pytest.raises(ValueError, match="hidden"):
        kernel.rows(hidden.double(), work)
    with pytest.raises(ValueError, match="token_rows"):
        kernel.rows(hidden[:1], [ExpertWork(work[0].block, torch.tensor([1]), torch.ones(1))])
    with pytest.raises(ValueError, match="block"):
        kernel.rows(hidden, [ExpertWork(work[0].block[:-1], work[0].token_rows, work[0].router_weights)])
    assert kernel.rows(hidden, []).shape == (0, 16)
