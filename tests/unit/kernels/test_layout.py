"""Views of an expert share memory with its block, whoever owns it."""

import gc
import mmap
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from moespac.kernels.layout import ALIGNMENT, FORMATS, ExpertLayout
from moespac.kernels.quantise import dequantise, quantise

LAYOUT = ExpertLayout(hidden_size=4, intermediate_size=3, format="float32", activation="silu")
# Gate and up fill 96 bytes, down 48: it starts at the next multiple of 64.
DOWN, SIZE = 128, 176


def numbered_block() -> np.ndarray:
    block = np.zeros(SIZE, dtype=np.uint8)
    block.view(np.float32)[:24] = np.arange(24)
    block.view(np.float32)[DOWN // 4 :] = np.arange(24, 36)
    return block


def filled_block(layout: ExpertLayout, values: dict[str, torch.Tensor]) -> np.ndarray:
    block = torch.full((layout.expert_bytes,), 0xAB, dtype=torch.uint8)
    for name, view in layout.views(block).items():
        view.copy_(values[name])
    return block.numpy()


def test_gate_up_and_down_lie_at_aligned_offsets() -> None:
    assert LAYOUT.expert_bytes == SIZE
    weights = LAYOUT.weights(numbered_block())
    assert torch.equal(weights.gate_up, torch.arange(24.0).view(6, 4))
    assert torch.equal(weights.down, torch.arange(24.0, 36.0).view(4, 3))


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_views_share_memory_with_the_block(kind: str) -> None:
    block = numbered_block()
    weights = LAYOUT.weights(block if kind == "numpy" else torch.from_numpy(block))
    block.view(np.float32)[[0, 43]] = (-7, -8)
    assert weights.gate_up[0, 0] == -7
    assert weights.down[3, 2] == -8


def test_a_read_only_mapping_is_accepted_without_a_warning_and_outlives_its_name() -> None:
    mapping = mmap.mmap(-1, 4096)
    mapping.write(numbered_block().tobytes())
    block = np.frombuffer(memoryview(mapping).toreadonly(), dtype=np.uint8)
    assert not block.flags.writeable
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        weights = LAYOUT.weights(block)
    del block, mapping
    gc.collect()
    assert torch.equal(weights.down, torch.arange(24.0, 36.0).view(4, 3))


def test_padding_after_the_expert_is_ignored() -> None:
    block = np.concatenate([numbered_block(), np.full(100, 255, dtype=np.uint8)])
    assert torch.equal(LAYOUT.weights(block).down, torch.arange(24.0, 36.0).view(4, 3))


@pytest.mark.parametrize(
    "block",
    [np.zeros(175, dtype=np.uint8), np.zeros((2, 176), dtype=np.uint8), np.zeros(44, dtype=np.float32)],
    ids=["short", "two-dimensional", "floats"],
)
def test_a_wrong_block_is_refused_with_its_size(block: np.ndarray) -> None:
    with pytest.raises(ValueError, match="an expert is 176 bytes"):
        LAYOUT.weights(block)


@pytest.mark.parametrize("gate", ["glu", "none"])
@pytest.mark.parametrize("extras", [False, True])
@pytest.mark.parametrize("format", FORMATS)
def test_parts_are_aligned_in_order_and_apart(format: str, extras: bool, gate: str) -> None:
    layout = ExpertLayout(40, 24, format, "silu", gate, bias=extras, norm_eps=1e-6 if extras else None)
    names = ["gate_up", "down"]
    names += ["gate_up_scales", "down_scales"] if format.startswith("int") else []
    names += ["gate_up_bias", "down_bias", "norm"] if extras else []
    assert [part.name for part in layout.parts] == names
    end = 0
    for part in layout.parts:
        assert part.offset % ALIGNMENT == 0
        assert end <= part.offset < end + ALIGNMENT
        end = part.offset + part.nbytes
    assert layout.expert_bytes == end
    assert layout.views(np.zeros(end, dtype=np.uint8))["gate_up"].shape[0] == (24 if gate == "none" else 48)


@pytest.mark.parametrize("scale_dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("format", ["int8", "int4-g32", "int4-g128"])
def test_a_quantised_expert_is_dequantised_with_its_extras(format: str, scale_dtype: str) -> None:
    layout = ExpertLayout(40, 24, format, "silu", bias=True, norm_eps=1e-6, scale_dtype=scale_dtype)
    generator = torch.Generator().manual_seed(0)
    values = {"gate_up_bias": torch.arange(48.0), "down_bias": torch.arange(40.0), "norm": torch.full((40,), 0.5)}
    expected = {}
    for name, rows, columns in (("gate_up", 48, 40), ("down", 40, 24)):
        payload, scales = quantise(torch.randn(rows, columns, generator=generator), format, scale_dtype)
        values |= {name: payload, f"{name}_scales": scales}
        expected[name] = dequantise(payload, scales, format, columns)
    weights = layout.weights(filled_block(layout, values))
    for name in ("gate_up", "down"):
        assert getattr(weights, name).dtype == torch.float32
        assert torch.equal(getattr(weights, name), expected[name])
    for name in ("gate_up_bias", "down_bias", "norm"):
        assert torch.equal(getattr(weights, name), values[name])


def test_an_expert_without_extras_has_none() -> None:
    weights = LAYOUT.weights(numbered_block())
    assert weights.gate_up_bias is None and weights.down_bias is None and weights.norm is None


def test_stored_as_changes_the_format_alone() -> None:
    assert LAYOUT.stored_as(None, "bfloat16") is LAYOUT
    assert LAYOUT.stored_as("int4-g32", "bfloat16") == replace(LAYOUT, format="int4-g32", scale_dtype="bfloat16")
