"""Arenas of random experts, calls over them, and what they must give: for kernels that read experts from slots."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from moespac.kernels.experts import ExpertWork
from moespac.kernels.layout import ALIGNMENT, ExpertLayout

ACTIVATIONS = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
}
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Largest difference allowed, as a fraction of the largest value, by compute type."""


def slot_bytes(layout: ExpertLayout) -> int:
    """A slot with room after the expert."""
    return (layout.expert_bytes // ALIGNMENT + 2) * ALIGNMENT


def random_arena(layout: ExpertLayout, slots: int, seed: int = 0) -> torch.Tensor:
    """uint8 [slots, slot_bytes] on the CPU; what is no part of an expert is NaN in every float type."""
    arena = torch.full((slots, slot_bytes(layout)), 0xFF, dtype=torch.uint8)
    generator = torch.Generator().manual_seed(seed)
    for block in arena:
        fill(layout, block, generator)
    return arena


def fill(layout: ExpertLayout, block: torch.Tensor, generator: torch.Generator) -> None:
    """Writes a random expert into `block`; every row of it has other scales."""
    for name, view in layout.views(block).items():
        if view.dtype in (torch.int8, torch.uint8):
            # int8 never holds -128, int4 all that fits in a byte.
            low, high = (-127, 128) if view.dtype == torch.int8 else (0, 256)
            view.copy_(torch.randint(low, high, view.shape, generator=generator))
        elif name.endswith("_scales"):
            size = 0.003 if layout.format == "int8" else 0.04
            view.copy_(size * (0.5 + torch.rand(view.shape, generator=generator)))
        else:
            view.copy_(torch.randn(view.shape, generator=generator) * (0.5 if name.endswith("_bias") else 0.2))


def random_call(
    layout: ExpertLayout,
    dtype: torch.dtype,
    arena: torch.Tensor,
    slots: Sequence[int],
    sizes: Sequence[int],
    tokens: int = 48,
    seed: int = 1,
) -> tuple[torch.Tensor, list[ExpertWork]]:
    """Hidden states [tokens, H] and, for each of `slots`, as many pairs as `sizes` says, on the arena's device."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, layout.hidden_size, generator=generator).to(dtype)
    work = [
        ExpertWork(
            arena[slot],
            torch.randperm(tokens, generator=generator)[:size].to(arena.device),
            torch.rand(size, generator=generator).to(arena.device, dtype),
        )
        for slot, size in zip(slots, sizes, strict=True)
    ]
    return hidden.to(arena.device), work


def expected_rows(layout: ExpertLayout, hidden: torch.Tensor, work: Sequence[ExpertWork]) -> torch.Tensor:
    """float64 [pairs, H] on the CPU: the definition, nothing rounded on the way."""
    rows = []
    for one in work:
        weights = layout.weights(one.block.cpu())
        x = F.linear(
            hidden.cpu()[one.token_rows.cpu()].double(), weights.gate_up.double(), _double(weights.gate_up_bias)
        )
        out = F.linear(_gated(layout, x), weights.down.double(), _double(weights.down_bias))
        rows.append(out * one.router_weights.cpu().double()[:, None])
    return torch.cat(rows)


def relative_error(rows: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference as a fraction of the largest value; NaN if there is one in `rows`."""
    return float((rows.cpu().double() - expected).abs().max() / expected.abs().max())


def _double(bias: torch.Tensor | None) -> torch.Tensor | None:
    return None if bias is None else bias.double()


def _gated(layout: ExpertLayout, x: torch.Tensor) -> torch.Tensor:
    act, limit = ACTIVATIONS[layout.activation], layout.gate_limit
    if layout.gate == "none":
        return act(x)
    gate, up = x.chunk(2, dim=-1)
    if layout.gate == "glu":
        return act(gate) * up
    up = up.clamp(-limit, limit)
    if layout.gate == "clamped":
        return act(gate.clamp(max=limit)) * up
    if layout.gate == "clamped_after":
        return act(gate).clamp(max=limit) * up
    gate = gate.clamp(max=limit)
    return gate * torch.sigmoid(layout.gate_alpha * gate) * (up + 1)
