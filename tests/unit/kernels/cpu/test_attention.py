"""Attention over keys and values where they lie, against plain float64 arithmetic."""

from __future__ import annotations

import math

import pytest
import torch

from moespac.kernels.cpu import library
from moespac.kernels.cpu.attention import attention, suits

pytestmark = pytest.mark.skipif(library.unavailable() is not None, reason="no CPU kernels")
SHAPES = [(4, 2, 32, 32), (8, 1, 40, 24), (3, 3, 17, 5), (6, 2, 128, 64)]
"""(query heads, heads of keys and values, features of keys, of values)"""


def inputs(shape, tokens, positions, dtype, capacity=None, seed=0):
    heads, kv_heads, size, value_size = shape
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(1, tokens, heads, size, generator=generator).to(dtype).transpose(1, 2)
    capacity = capacity or positions
    key = torch.randn(1, kv_heads, capacity, size, generator=generator).to(dtype)[..., :positions, :]
    value = torch.randn(1, kv_heads, capacity, value_size, generator=generator).to(dtype)[..., :positions, :]
    return query, key, value


def causal(tokens, positions, dtype):
    later = torch.ones(tokens, positions, dtype=torch.bool).triu(positions - tokens + 1)
    return torch.zeros(tokens, positions, dtype=dtype).masked_fill(later, torch.finfo(dtype).min)[None, None]


def expected(query, key, value, mask, scaling):
    group = query.shape[1] // key.shape[1]
    key, value = (t.double().repeat_interleave(group, dim=1) for t in (key, value))
    scores = query.double() @ key.transpose(2, 3) * scaling
    weights = torch.softmax(scores if mask is None else scores + mask.double(), dim=-1)
    return (weights @ value).transpose(1, 2)


@pytest.mark.parametrize("isa", library.available() if library.unavailable() is None else ())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_is_softmax_of_scaled_and_masked_products_times_values(shape, dtype, isa, monkeypatch):
    monkeypatch.setenv(library.ISA_VARIABLE, isa)
    for tokens, positions in [(1, 1), (1, 70), (5, 5), (16, 99)]:
        query, key, value = inputs(shape, tokens, positions, dtype, capacity=positions + 7)
        for mask in (None, causal(tokens, positions, dtype)):
            assert suits(query, key, value, mask)
            found, scaling = attention(query, key, value, mask, 1 / math.sqrt(shape[2])), 1 / math.sqrt(shape[2])
            close = 2e-6 if dtype == torch.float32 else 1e-2
            wanted = expected(query, key, value, mask, scaling)
            torch.testing.assert_close(found.double(), wanted, rtol=close, atol=close)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_tokens_row_is_the_same_alone_and_among_others(dtype):
    tokens, positions = 9, 61
    query, key, value = inputs((8, 2, 64, 64), tokens, positions, dtype)
    together = attention(query, key, value, causal(tokens, positions, dtype), 0.125)
    for token in range(tokens):
        seen = positions - tokens + token + 1
        alone = attention(query[:, :, token : token + 1], key[..., :seen, :], value[..., :seen, :], None, 0.125)
        assert torch.equal(alone[0, 0], together[0, token])


def test_what_the_kernel_cannot_take_is_said_not_to_suit():
    query, key, value = inputs((4, 2, 32, 32), 2, 8, torch.float32)
    assert suits(query, key, value, causal(2, 8, torch.float32))
    assert not suits(query.double(), key.double(), value.double(), None)
    assert not suits(query, key.bfloat16(), value, None)
    assert not suits(query, key, value, causal(2, 8, torch.float32).expand(1, 4, 2, 8))
    assert not suits(torch.cat([query, query]), torch.cat([key, key]), torch.cat([value, value]), None)
    assert not suits(query, key.transpose(2, 3).contiguous().transpose(2, 3), value, None)
