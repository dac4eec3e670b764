"""The torch reference: one expert's gated feed-forward, operation for operation as in transformers."""

from __future__ import annotations

from functools import cache

import torch
from torch.nn.functional import linear
from transformers.activations import ACT2FN

from .layout import ExpertLayout, ExpertWeights


@cache
def _activation(name: str) -> torch.nn.Module:
    # ACT2FN makes a new module at every look-up.
    return ACT2FN[name]


def expert_rows(
    layout: ExpertLayout, weights: ExpertWeights, tokens: torch.Tensor, router_weights: torch.Tensor
) -> torch.Tensor:
    """One expert's output for its tokens, weighted by the router.

    `tokens` [M, H] in the compute type, on the weights' device; `router_weights` [M]; returns [M, H] in the
    compute type. y = (act(x Wg^T) * (x Wu^T)) Wd^T * w, weights cast to the compute type first: a store in
    bfloat16 computed in float32 equals the float32 model loaded from it.
    """
    gate, up = linear(tokens, weights.gate_up.to(tokens.dtype)).chunk(2, dim=-1)
    out = linear(_activation(layout.activation)(gate) * up, weights.down.to(tokens.dtype))
    return out * router_weights.to(out.dtype)[:, None]
