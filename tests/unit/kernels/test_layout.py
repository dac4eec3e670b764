"""Views of an expert share memory with its block, whoever owns it."""

import gc
import mmap
import warnings

import numpy as np
import pytest
import torch

from moespac.kernels.layout import ExpertLayout

LAYOUT = ExpertLayout(hidden_size=4, intermediate_size=3, dtype="float32", activation="silu")


def numbered_block() -> np.ndarray:
    return np.arange(3 * 4 * 3, dtype=np.float32).view(np.uint8).copy()


def test_gate_up_and_down_lie_one_after_another() -> None:
    weights = LAYOUT.weights(numbered_block())
    assert torch.equal(weights.gate_up, torch.arange(24.0).view(6, 4))
    assert torch.equal(weights.down, torch.arange(24.0, 36.0).view(4, 3))


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_views_share_memory_with_the_block(kind: str) -> None:
    block = numbered_block()
    weights = LAYOUT.weights(block if kind == "numpy" else torch.from_numpy(block))
    block.view(np.float32)[[0, 35]] = (-7, -8)
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
    [np.zeros(143, dtype=np.uint8), np.zeros((2, 144), dtype=np.uint8), np.zeros(36, dtype=np.float32)],
    ids=["short", "two-dimensional", "floats"],
)
def test_a_wrong_block_is_refused_with_its_size(block: np.ndarray) -> None:
    with pytest.raises(ValueError, match="an expert is 144 bytes"):
        LAYOUT.weights(block)
