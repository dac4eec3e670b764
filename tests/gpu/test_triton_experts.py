"""The Triton kernels on a CUDA GPU: the definition's rows, the same bits in any company. `make test-gpu`."""

from __future__ import annotations

import pytest
import torch
from expert_arena import (
    ACTIVATIONS,
    TOLERANCE,
    expected_rows,
    fill,
    random_arena,
    random_call,
    relative_error,
    slot_bytes,
)

from moespac.kernels.experts import ExpertWork
from moespac.kernels.gpu.experts import TritonExperts
from moespac.kernels.layout import FORMATS, GATES, ExpertLayout

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
CUDA = torch.device("cuda:0")


def check(layout: ExpertLayout, dtype: torch.dtype, *calls: tuple[int, ...]) -> None:
    arena = random_arena(layout, slots=5).to(CUDA)
    kernel = TritonExperts(layout, dtype, arena)
    for sizes in calls:
        slots = [4, 0, 2, 3][: len(sizes)]
        hidden, work = random_call(layout, dtype, arena, slots, sizes, tokens=320)
        error = relative_error(kernel.rows(hidden, work), expected_rows(layout, hidden, work))
        assert error < TOLERANCE[dtype], sizes


@pytest.mark.parametrize("stored", FORMATS)
@pytest.mark.parametrize("dtype", [F32, BF16, F16])
@pytest.mark.parametrize("shape", [(72, 40), (2048, 768)])
def test_formats(stored, dtype, shape):
    check(ExpertLayout(*shape, stored, "silu"), dtype, (1,), (1, 4, 8, 16), (32, 3), (300, 1, 64))


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("stored", ["bfloat16", "int4-g32"])
@pytest.mark.parametrize("bias", [False, True])
def test_gates(gate, stored, bias):
    layout = ExpertLayout(256, 120, stored, "silu", gate, gate_limit=0.8, gate_alpha=1.7, bias=bias)
    check(layout, F32, (1, 5), (40, 2))
    check(layout, BF16, (1, 5), (40, 2))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation):
    check(ExpertLayout(64, 40, "float32", activation), F32, (1, 5))


@pytest.mark.parametrize("stored", FORMATS)
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_a_row_is_the_same_bits_whatever_else_is_in_the_call(stored, dtype):
    layout = ExpertLayout(2048, 768, stored, "silu")
    arena = random_arena(layout, slots=4).to(CUDA)
    kernel = TritonExperts(layout, dtype, arena)
    hidden, work = random_call(layout, dtype, arena, [1, 3, 0], [9, 32, 2])
    together = kernel.rows(hidden, work).split([9, 32, 2])
    for one, rows in zip(work, together, strict=True):
        for at in range(len(rows)):
            alone = ExpertWork(one.block, one.token_rows[at : at + 1], one.router_weights[at : at + 1])
            assert torch.equal(kernel.rows(hidden, [alone])[0], rows[at])


@pytest.mark.parametrize(("stored", "arena_bytes"), [("int4-g32", 2**31), ("bfloat16", 2**32)])
def test_slots_beyond_2_31_elements(stored, arena_bytes):
    layout = ExpertLayout(2048, 768, stored, "silu")
    size = slot_bytes(layout)
    arena = torch.empty((arena_bytes // size + 9, size), dtype=torch.uint8, device=CUDA)
    block = torch.empty(size, dtype=torch.uint8)
    fill(layout, block, torch.Generator().manual_seed(0))
    arena[-1] = block.to(CUDA)
    hidden, work = random_call(layout, BF16, arena, [len(arena) - 1], [2])
    rows = TritonExperts(layout, BF16, arena).rows(hidden, work)
    assert relative_error(rows, expected_rows(layout, hidden, work)) < TOLERANCE[BF16]


def test_a_call_does_not_wait_for_the_device():
    layout = ExpertLayout(2048, 768, "bfloat16", "silu")
    arena = random_arena(layout, slots=4).to(CUDA)
    kernel = TritonExperts(layout, BF16, arena)
    hidden, work = random_call(layout, BF16, arena, [0, 2], [3, 1])
    torch.cuda.set_sync_debug_mode("error")
    try:
        kernel.rows(hidden, work)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_blocks_outside_the_arena_are_refused():
    layout = ExpertLayout(64, 40, "bfloat16", "silu")
    arena = random_arena(layout, slots=2).to(CUDA)
    kernel = TritonExperts(layout, BF16, arena)
    hidden, (one,) = random_call(layout, BF16, arena, [1], [1])
    for block in (arena[1].clone(), arena[1].cpu(), arena[1, 64:]):
        with pytest.raises(ValueError, match="not a slot of this kernel's arena"):
            kernel.rows(hidden, [ExpertWork(block, one.token_rows, one.router_weights)])
