"""Attention of few tokens without copies of keys and values equals eager transformers'."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from tiny_models import make_deepseek_v2, make_qwen3_dense, make_qwen3_moe
from transformers import AutoModelForCausalLM, GptOssConfig, GptOssForCausalLM
from transformers.models.qwen3_moe.modeling_qwen3_moe import eager_attention_forward

from moespac.actors.gpu_device import attention
from moespac.actors.gpu_device.attention import IMPLEMENTATION, grouped_attention, use_grouped_attention
from moespac.kernels.cpu import library

MAKERS = {"qwen3_moe": make_qwen3_moe, "qwen3": make_qwen3_dense, "deepseek_v2": make_deepseek_v2}
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-2}


def _operands(tokens: int, heads: int, kv_heads: int, dtype: torch.dtype, positions: int = 23, batch: int = 1):
    generator = torch.Generator().manual_seed(tokens)

    def random(count: int, length: int, width: int) -> torch.Tensor:
        return torch.randn(batch, count, length, width, generator=generator).to(dtype)

    # As the model passes them: query heads are a transposed view.
    query = random(tokens, heads, 8).transpose(1, 2)
    hidden = torch.ones(tokens, positions, dtype=torch.bool).triu(positions - tokens + 1)
    mask = torch.zeros(1, 1, tokens, positions, dtype=dtype).masked_fill(hidden, torch.finfo(dtype).min)
    return query, random(kv_heads, positions, 8), random(kv_heads, positions, 6), mask


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("heads", "kv_heads"), [(8, 2), (4, 4), (6, 1)])
@pytest.mark.parametrize(("tokens", "batch"), [(1, 1), (5, 1), (5, 2), (16, 1), (17, 1)])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("kernel", [True, False])
def test_outputs_and_weights_are_eagers(dtype, heads, kv_heads, tokens, batch, masked, kernel, monkeypatch):
    monkeypatch.setattr(attention, "_kernel_runs", lambda: kernel and library.unavailable() is None)
    query, key, value, mask = _operands(tokens, heads, kv_heads, dtype, batch=batch)
    module = SimpleNamespace(num_key_value_groups=heads // kv_heads, training=False)
    arguments = (module, query, key, value, mask if masked else None, 0.3)
    for ours, theirs in zip(grouped_attention(*arguments), eager_attention_forward(*arguments), strict=True):
        if ours is None and kernel:
            continue  # the kernel does not keep weights
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype and ours.is_contiguous()
        torch.testing.assert_close(ours, theirs, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_a_mask_that_differs_between_heads_is_obeyed():
    query, key, value, mask = _operands(3, 4, 2, torch.float32)
    mask = mask.repeat(1, 4, 1, 1)
    mask[:, 2, :, 0] = torch.finfo(torch.float32).min
    arguments = (SimpleNamespace(num_key_value_groups=2, training=False), query, key, value, mask, 0.3)
    assert torch.equal(grouped_attention(*arguments)[0], eager_attention_forward(*arguments)[0])


@pytest.mark.parametrize("family", MAKERS)
def test_logits_of_a_model_are_eagers(family, tmp_path):
    checkpoint = MAKERS[family](tmp_path)
    ours, theirs = (
        AutoModelForCausalLM.from_pretrained(
            checkpoint, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
        ).eval()
        for _ in range(2)
    )
    assert use_grouped_attention(ours) and ours.config._attn_implementation == IMPLEMENTATION
    tokens = torch.arange(40)[None] % 300
    found, caches = [], []
    with torch.inference_mode():
        for model in (ours, theirs):
            out = model(tokens[:, :20], use_cache=True)
            later = [model(tokens[:, a:b], past_key_values=out.past_key_values).logits for a, b in [(20, 21), (21, 26)]]
            found.append(torch.cat([out.logits, *later], dim=1))
            caches.append(out.past_key_values.get_seq_length())
    assert caches == [26, 26]
    # Without a causal mask a model of random weights is far from this.
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)


def test_attention_with_sinks_is_left_alone():
    config = GptOssConfig(
        vocab_size=32,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        intermediate_size=8,
        num_local_experts=2,
        attn_implementation="eager",
    )
    model = GptOssForCausalLM(config)
    assert not use_grouped_attention(model)
    assert model.config._attn_implementation == "eager"
