"""The torch reference: one expert's feed-forward, operation for operation as in transformers' eager experts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch.nn.functional import linear
from transformers.activations import ACT2FN

from .experts import ExpertWork
from .layout import ExpertLayout, ExpertWeights


@cache
def _activation(name: str) -> torch.nn.Module:
    # ACT2FN makes a new module at every look-up.
    return ACT2FN[name]


def gated(layout: ExpertLayout, projected: torch.Tensor) -> torch.Tensor:
    """[M, I] of the first projection's [M, 2·I] (gate columns first), or of its [M, I] where there is no gate."""
    activation, limit = _activation(layout.activation), layout.gate_limit
    if layout.gate == "none":
        return activation(projected)
    gate, up = projected.chunk(2, dim=-1)
    if layout.gate == "glu":
        return activation(gate) * up
    up = up.clamp(min=-limit, max=limit)
    if layout.gate == "clamped_after":
        return activation(gate).clamp(max=limit) * up
    gate = gate.clamp(max=limit)
    if layout.gate == "clamped":
        return activation(gate) * up
    if layout.gate == "clamped_sigmoid":
        return (up + 1) * (gate * torch.sigmoid(gate * layout.gate_alpha))
    raise ValueError(f"gate: {layout.gate} has no formula")


def scaled_rms_norm(rows: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """`rows` [M, H] scaled by 1 + `weight` [H], then divided by their root mean square: muse_spark's norm.

    Scaled before, unlike in other RMS norms: the weight moves the mean square too.
    """
    # Rounded to the compute type between scaling and norm, as the family's own code does.
    scaled = (rows.float() * (1.0 + weight).float()).to(rows.dtype).float()
    return (scaled * torch.rsqrt(scaled.pow(2).mean(-1, keepdim=True) + eps)).to(rows.dtype)


def expert_rows(
    layout: ExpertLayout, weights: ExpertWeights, tokens: torch.Tensor, router_weights: torch.Tensor
) -> torch.Tensor:
    """One expert's output for its tokens, weighted by the router.

    `tokens` [M, H] in the compute type, on the weights' device; `router_weights` [M]; returns [M, H] in the wider of
    the two types, as eager experts multiply: routers that give float32 weights keep them. Expert weights and biases
    are cast to the compute type first: a store in bfloat16 computed in float32 equals the float32 model loaded from it.
    """
    dtype = tokens.dtype
    out = linear(tokens, weights.gate_up.to(dtype))
    # Added after the product was rounded, as eager experts do; `linear` with a bias rounds once.
    if weights.gate_up_bias is not None:
        out = out + weights.gate_up_bias.to(dtype)
    out = linear(gated(layout, out), weights.down.to(dtype))
    if weights.down_bias is not None:
        out = out + weights.down_bias.to(dtype)
    if weights.norm is not None:
        out = scaled_rms_norm(out, weights.norm.to(dtype), layout.norm_eps)
    return out * router_weights[:, None]


class TorchExperts:
    """Experts computed by torch, on the CPU or a GPU: where there is no kernel made for them, and to compare with.

    Each expert's tokens go through one matrix product, as in eager transformers, so the last bits of a row may depend
    on how many tokens its expert has; they do not depend on the other experts of the call.
    """

    name = "torch"

    def __init__(self, layout: ExpertLayout, compute_dtype: torch.dtype) -> None:
        self._layout, self._compute_dtype = layout, compute_dtype

    def rows(self, hidden: torch.Tensor, work: Sequence[ExpertWork]) -> torch.Tensor:
        """See ExpertKernel."""
        if hidden.dtype != self._compute_dtype:
            raise ValueError(f"hidden: {hidden.dtype}, but these experts compute in {self._compute_dtype}")
        rows = [
            expert_rows(self._layout, self._layout.weights(w.block), hidden[w.token_rows], w.router_weights).float()
            for w in work
        ]
        return torch.cat(rows) if rows else hidden.new_empty((0, hidden.shape[1]), dtype=torch.float32)
