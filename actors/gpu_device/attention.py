"""Attention of few tokens without copies of the KV cache, which eager transformers repeats for every query head.

On the CPU our kernel computes it in float32, rounding only the result. Elsewhere, and where the kernel does not run,
heads that share keys are multiplied as rows of one matrix: the same products, scaled, masked and rounded in the same
order.
"""

from __future__ import annotations

import sys
from functools import cache
from types import CodeType

import torch
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen3_moe.modeling_qwen3_moe import eager_attention_forward, repeat_kv

from ...kernels.cpu import library
from ...kernels.cpu.attention import attention, suits

IMPLEMENTATION = "moespac_grouped"
MOST_TOKENS = 16
"""Above it the copies no longer count."""


def use_grouped_attention(model: PreTrainedModel) -> bool:
    """Makes `model` attend through `grouped_attention`, if its own eager attention is the plain one; returns whether.

    Attention with sinks, soft caps and the like has other code in its modelling file and is left alone.
    """
    ours = sys.modules[eager_attention_forward.__module__]
    # The class may be derived from transformers' own, whose file holds the functions.
    theirs = sys.modules[type(model).__module__]
    for name in (eager_attention_forward.__name__, repeat_kv.__name__):
        if not _same_code(getattr(ours, name), getattr(theirs, name, None)):
            return False
    ALL_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, grouped_attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, eager_mask)
    model.set_attn_implementation(IMPLEMENTATION)
    return True


def grouped_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: object,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Output [B, T, heads, V] of `query` [B, heads, T, D] over `key` [B, kv heads, S, D], `value` [B, kv heads, S, V].

    `attention_mask` is added to the scores, [B or 1, 1, T, S] or None. Also the weights, [B, heads, T, S]; None where
    the kernel computes, which does not keep them.
    """
    batch, heads, tokens, _ = query.shape
    alike = attention_mask is None or attention_mask.shape[1] == 1
    if tokens > MOST_TOKENS or dropout or not alike:
        return eager_attention_forward(module, query, key, value, attention_mask, scaling, dropout, **kwargs)
    if suits(query, key, value, attention_mask) and _kernel_runs():
        return attention(query, key, value, attention_mask, scaling), None
    kv_heads, positions = key.shape[1:3]
    # Query heads that share keys are neighbours.
    rows = query.reshape(batch, kv_heads, -1, query.shape[-1])
    scores = torch.matmul(rows, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        scores = scores.view(batch, heads, tokens, positions) + attention_mask
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    output = torch.matmul(weights.view(batch, kv_heads, -1, positions), value)
    output = output.view(batch, heads, tokens, -1).transpose(1, 2).contiguous()
    return output, weights.view(batch, heads, tokens, positions)


@cache
def _kernel_runs() -> bool:
    return library.unavailable() is None


def _same_code(one, other) -> bool:
    """Whether two functions do the same; their documentation and annotations may differ."""
    return hasattr(other, "__code__") and _essence(one) == _essence(other)


def _essence(function) -> tuple:
    code: CodeType = function.__code__
    constants = tuple(value for value in code.co_consts if value != function.__doc__)
    return code.co_code, constants, code.co_names, code.co_varnames, function.__defaults__
