"""Experts computed by the C++ kernels."""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Sequence
from functools import cache

import torch

from ..experts import ExpertWork
from ..layout import GATES, ExpertLayout
from . import library

ACTIVATIONS = {
    "silu": 0,
    "swish": 0,
    "gelu": 1,
    "gelu_pytorch_tanh": 2,
    "gelu_new": 2,
    "gelu_fast": 2,
    "relu": 3,
    "relu2": 4,
    "sigmoid": 5,
    "tanh": 6,
    "linear": 7,
}
"""Numbers in abi.h of names in transformers' ACT2FN; several are one formula."""
PARTS = ("gate_up", "down", "gate_up_scales", "down_scales", "gate_up_bias", "down_bias", "norm")


class Layer(ctypes.Structure):
    """abi.h's MoeLayout."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("hidden", "inner", *PARTS)),
        *((name, ctypes.c_int32) for name in ("format", "scales_are_bf16", "activation", "gate")),
        *((name, ctypes.c_float) for name in ("gate_limit", "gate_alpha", "norm_eps")),
    )


def supports(layout: ExpertLayout, compute_dtype: torch.dtype, isa: str | None = None) -> str | None:
    """Why experts of `layout` cannot be computed here; None: they can."""
    if compute_dtype not in (torch.float32, torch.bfloat16):
        return f"no CPU kernel computes in {str(compute_dtype).removeprefix('torch.')}"
    if layout.activation not in ACTIVATIONS:
        return f"no CPU kernel has the activation {layout.activation}"
    if layout.gate not in GATES:
        return f"no CPU kernel has the gate {layout.gate}"
    try:
        library.choose(isa)
    except library.LibraryError as error:
        return str(error)
    return None


class CpuExperts:
    """Computes experts of `layout` with the process's pool of threads.

    A row's additions have one order, whatever else is in the call. In float32 weights are expanded, and the result is
    the float32 model's. In bfloat16 sums are float32; CPUs with the instructions for it multiply pairs of bfloat16, and
    integer weights with activations rounded to 8 bits, of which 32 share a scale. Raises LibraryError where `supports`
    gives a reason.
    """

    def __init__(self, layout: ExpertLayout, compute_dtype: torch.dtype, isa: str | None = None) -> None:
        if reason := supports(layout, compute_dtype, isa):
            raise library.LibraryError(f"{reason}: use the torch kernel")
        self.layout, self.compute_dtype = layout, compute_dtype
        self.isa = library.choose(isa)
        self.name = f"cpu {self.isa}"
        self._isa = library.ISAS.index(self.isa)
        self._call = library.load().moespac_experts
        self._layer = _layer(layout)
        self._layer_at = ctypes.addressof(self._layer)
        self._array = cache(lambda count: ctypes.c_int64 * (4 * count))

    def rows(self, hidden: torch.Tensor, work: Sequence[ExpertWork]) -> torch.Tensor:
        """Rows weighted by the router, float32 [sum of m, H], expert after expert in the order of `work`."""
        if hidden.dtype != self.compute_dtype or hidden.dim() != 2 or hidden.shape[1] != self.layout.hidden_size:
            raise ValueError(
                f"hidden: want {self.compute_dtype} [T, {self.layout.hidden_size}], not {hidden.dtype} of shape "
                f"{tuple(hidden.shape)}"
            )
        hidden = hidden.contiguous()
        if not work:
            return torch.empty(0, self.layout.hidden_size)
        # Whatever had to be converted lives until the call is over.
        numbers, kept, total = [], [hidden], 0
        for item in work:
            rows, weights, block = item.token_rows, item.router_weights, item.block
            if rows.dtype != torch.int64 or not rows.is_contiguous():
                kept.append(rows := rows.to(torch.int64).contiguous())
            if weights.dtype != torch.float32 or not weights.is_contiguous():
                kept.append(weights := weights.float().contiguous())
            count = rows.numel()
            if weights.numel() != count:
                raise ValueError(f"router_weights: {weights.numel()} for {count} token_rows: one each")
            tensor = isinstance(block, torch.Tensor)
            if (block.numel() if tensor else block.nbytes) < self.layout.expert_bytes:
                raise ValueError(f"block: an expert is {self.layout.expert_bytes} bytes: pass the whole slot")
            at = block.data_ptr() if tensor else block.__array_interface__["data"][0]
            numbers += (at, rows.data_ptr(), weights.data_ptr(), count)
            total += count
        out = torch.empty(total, self.layout.hidden_size, dtype=torch.float32)
        status = self._call(
            self._isa,
            self._layer_at,
            library.COMPUTE[self.compute_dtype],
            hidden.data_ptr(),
            len(hidden),
            self._array(len(work))(*numbers),
            len(work),
            out.data_ptr(),
        )
        if status == errno.ERANGE:
            raise ValueError(f"token_rows: a row lies outside the call's {len(hidden)} hidden states")
        library.check(status)
        return out


def _layer(layout: ExpertLayout) -> Layer:
    offsets = {part.name: part.offset for part in layout.parts}
    return Layer(
        hidden=layout.hidden_size,
        inner=layout.intermediate_size,
        **{name: offsets.get(name, -1) for name in PARTS},
        format=library.FORMATS[layout.format],
        scales_are_bf16=layout.scale_dtype == "bfloat16",
        activation=ACTIVATIONS[layout.activation],
        gate=GATES.index(layout.gate),
        gate_limit=layout.gate_limit,
        gate_alpha=layout.gate_alpha,
        norm_eps=layout.norm_eps or 0.0,
    )
