"""Attention of a few tokens over keys and values where they lie: for a KV cache that is longer than the pass."""

from __future__ import annotations

import ctypes

import torch

from . import library

STRIDES = ("query_head", "query_token", "key_head", "key", "value_head", "value", "mask")


class Arguments(ctypes.Structure):
    """abi.h's MoeAttention."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("query", "keys", "values", "mask", "out")),
        *((name, ctypes.c_int64) for name in ("heads", "kv_heads", "tokens", "positions", "size", "value_size")),
        *((f"{name}_stride", ctypes.c_int64) for name in STRIDES),
        ("scale", ctypes.c_float),
        ("compute", ctypes.c_int32),
    )


def suits(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None) -> bool:
    """Whether `attention` takes these: on the CPU, one request, float32 or bfloat16 alike, features contiguous."""
    tensors = [query, key, value] if mask is None else [query, key, value, mask]
    return (
        query.dtype in library.COMPUTE
        and len(query) == 1
        and all(t.dtype is query.dtype and t.device.type == "cpu" and t.stride(-1) == 1 for t in tensors)
        and (mask is None or mask.shape == (1, 1, query.shape[2], key.shape[2]))
    )


def attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scaling: float
) -> torch.Tensor:
    """softmax(query keyᵀ · scaling + mask) value: [1, T, heads, V] in the type of the arguments.

    `query` [1, heads, T, D]; `key`, `value` [1, kv heads, S, D or V], neighbouring heads sharing one of theirs; `mask`
    [1, 1, T, S] or None; as `suits` wants them. Sums are float32, in an order that depends neither on T nor on how many
    of the last positions are masked.
    """
    _, heads, tokens, size = query.shape
    out = torch.empty(1, tokens, heads, value.shape[-1], dtype=query.dtype)
    arguments = Arguments(
        query.data_ptr(),
        key.data_ptr(),
        value.data_ptr(),
        None if mask is None else mask.data_ptr(),
        out.data_ptr(),
        heads,
        key.shape[1],
        tokens,
        key.shape[2],
        size,
        value.shape[-1],
        query.stride(1),
        query.stride(2),
        key.stride(1),
        key.stride(2),
        value.stride(1),
        value.stride(2),
        0 if mask is None else mask.stride(2),
        scaling,
        library.COMPUTE[query.dtype],
    )
    library.check(library.load().moespac_attention(library.ISAS.index(library.choose()), ctypes.byref(arguments)))
    return out
