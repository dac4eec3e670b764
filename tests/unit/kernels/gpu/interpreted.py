"""Checks of the Triton kernels on CPU tensors, by Triton's interpreter. Run by test_interpreted.py in a process of its
own: the interpreter is chosen when Triton is imported, and other tests may want the compiler."""

from __future__ import annotations

import numpy as np
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

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
DECODE, PROMPT = (1, 5, 17), (40, 2)
RAGGED = {"hidden_size": 72, "intermediate_size": 40, "activation": "silu"}


def check(layout: ExpertLayout, dtype: torch.dtype, sizes: tuple[int, ...]) -> None:
    arena = random_arena(layout, slots=5)
    slots = [4, 0, 2][: len(sizes)]
    hidden, work = random_call(layout, dtype, arena, slots, sizes)
    rows = TritonExperts(layout, dtype, arena).rows(hidden, work)
    assert rows.dtype == F32 and rows.shape == (sum(sizes), layout.hidden_size)
    assert relative_error(rows, expected_rows(layout, hidden, work)) < TOLERANCE[dtype]


@pytest.mark.parametrize(
    ("stored", "dtype"),
    [
        ("float32", F32),
        ("bfloat16", BF16),
        ("float16", F16),
        ("bfloat16", F32),
        ("int8", F32),
        ("int8", BF16),
        ("int4-g32", F32),
        ("int4-g32", BF16),
        ("int4-g128", F16),
    ],
)
@pytest.mark.parametrize("sizes", [DECODE, PROMPT])
def test_formats(stored, dtype, sizes):
    check(ExpertLayout(format=stored, **RAGGED), dtype, sizes)


@pytest.mark.parametrize("stored", ["int4-g32", "int4-g128"])
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_several_groups_and_tiles_of_the_inner_dimension(stored, dtype):
    check(ExpertLayout(272, 40, stored, "silu", scale_dtype="bfloat16"), dtype, (3,))


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("bias", [False, True])
def test_gates(gate, bias):
    # A limit that much of what is clamped exceeds.
    check(ExpertLayout(64, 40, "float32", "silu", gate, gate_limit=0.8, gate_alpha=1.7, bias=bias), F32, (1, 5))


def test_biases_and_a_custom_gate_over_int4():
    check(
        ExpertLayout(64, 40, "int4-g32", "silu", "clamped_sigmoid", gate_limit=0.8, gate_alpha=1.7, bias=True),
        BF16,
        (1, 5),
    )


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation):
    check(ExpertLayout(64, 40, "float32", activation), F32, (1, 5))


@pytest.fixture
def rows_alike(monkeypatch):
    """The interpreter multiplies tiles by a BLAS, whose additions may depend on a row's place; a GPU's do not."""
    multiply = np.matmul

    def row_by_row(a, b, **options):
        return np.concatenate([multiply(a[at : at + 1], b, **options) for at in range(len(a))])

    monkeypatch.setattr(np, "matmul", row_by_row)


@pytest.mark.usefixtures("rows_alike")
@pytest.mark.parametrize("stored", ["bfloat16", "int4-g32"])
def test_a_row_is_the_same_bits_whatever_else_is_in_the_call(stored):
    layout = ExpertLayout(format=stored, **RAGGED)
    arena = random_arena(layout, slots=4)
    kernel = TritonExperts(layout, F32, arena)
    hidden, work = random_call(layout, F32, arena, [1, 3, 0], [9, 24, 2])
    together = kernel.rows(hidden, work).split([9, 24, 2])
    for one, rows in zip(work, together, strict=True):
        alone = ExpertWork(one.block, one.token_rows[-1:], one.router_weights[-1:])
        assert torch.equal(kernel.rows(hidden, [alone])[0], rows[-1])


def test_slots_beyond_2_31_elements():
    # Packed in bytes: with wider types the index of an element stays below 2^31 for longer.
    layout = ExpertLayout(format="int4-g32", **RAGGED)
    size = slot_bytes(layout)
    # Reserved but not touched, except for the last slot: costs no memory.
    arena = torch.empty((2**31 // size + 9, size), dtype=torch.uint8)
    fill(layout, arena[-1], torch.Generator().manual_seed(0))
    hidden, work = random_call(layout, F32, arena, [len(arena) - 1], [2])
    rows = TritonExperts(layout, F32, arena).rows(hidden, work)
    assert relative_error(rows, expected_rows(layout, hidden, work)) < TOLERANCE[F32]


def test_no_work_is_no_rows():
    layout = ExpertLayout(format="bfloat16", **RAGGED)
    assert TritonExperts(layout, F32, random_arena(layout, 1)).rows(torch.zeros(3, 72), []).shape == (0, 72)


def test_an_arena_without_slots_is_accepted():
    layout = ExpertLayout(format="bfloat16", **RAGGED)
    assert TritonExperts(layout, F32, random_arena(layout, 0)).rows(torch.zeros(3, 72), []).shape == (0, 72)


@pytest.mark.parametrize(
    "block_of",
    [
        lambda arena: arena[0].clone(),
        lambda arena: arena[0, 64:],
        lambda arena: arena[0, :64],
        lambda arena: arena[0].view(torch.int8),
        lambda arena: arena[:1],
        lambda arena: arena[0].numpy(),
        lambda arena: np.zeros(8, np.uint8),
    ],
)
def test_a_block_that_is_no_slot_is_refused(block_of):
    layout = ExpertLayout(format="bfloat16", **RAGGED)
    arena = random_arena(layout, 2)
    work = ExpertWork(block_of(arena), torch.zeros(1, dtype=torch.int64), torch.ones(1))
    with pytest.raises(ValueError, match=r"not a slot of this kernel's arena: pass arena\[slot\]"):
        TritonExperts(layout, F32, arena).rows(torch.zeros(1, 72), [work])


@pytest.mark.parametrize(
    "hidden", [torch.zeros(2, 72, dtype=BF16), torch.zeros(2, 70), torch.zeros(72), torch.zeros(72, 2).T]
)
def test_other_hidden_states_are_refused(hidden):
    layout = ExpertLayout(format="bfloat16", **RAGGED)
    with pytest.raises(ValueError, match=r"hidden: .*\[T, 72\]"):
        TritonExperts(layout, F32, random_arena(layout, 1)).rows(hidden, [])


@pytest.mark.parametrize(
    "arena_of",
    [
        lambda size: torch.zeros(2, size - 64, dtype=torch.uint8),
        lambda size: torch.zeros(2, size + 8, dtype=torch.uint8),
        lambda size: torch.zeros(2, size, dtype=torch.int8),
        lambda size: torch.zeros(size, dtype=torch.uint8),
        lambda size: torch.zeros(2, 2 * size, dtype=torch.uint8)[:, :size],
    ],
)
def test_another_arena_is_refused(arena_of):
    layout = ExpertLayout(64, 64, "bfloat16", "silu")
    with pytest.raises(ValueError, match=r"arena: .*slot_bytes a multiple of 64 and at least"):
        TritonExperts(layout, F32, arena_of(layout.expert_bytes))


@pytest.mark.slow
@pytest.mark.parametrize("stored", FORMATS)
@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("shape", [(130, 33), (256, 128)])
def test_everything_with_everything(stored, dtype, gate, shape):
    layout = ExpertLayout(*shape, stored, "gelu", gate, gate_limit=0.8, gate_alpha=1.7, bias=True)
    check(layout, dtype, (1, 16, 33))
    check(layout, dtype, (4, 32))
