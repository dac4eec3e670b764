"""Integer formats of weight matrices: int8 with a scale a row, int4 with a scale a group of input features."""

from __future__ import annotations

import torch

INT4_RUN = 32
"""Input features whose nibbles are packed together: byte j of a run's 16 holds features j (low) and j + 16 (high)."""
CHUNK = 1 << 18
"""Weights quantised at a time: small enough that the search over scales stays in a core's cache."""
WIDEST = 2.0**60
"""Of int4's weights: the squared errors of a whole group stay finite in float32."""
SHRINK = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75)
"""Of the widest value: clipping it leaves finer steps for the rest of its group."""


def quantise(
    weight: torch.Tensor, format: str, scale_dtype: torch.dtype | str = torch.float16
) -> tuple[torch.Tensor, torch.Tensor]:
    """Payload and scales of `weight` [R, K], any float type on the CPU; `format` is int8, int4-g32 or int4-g128.

    int8: payload int8 [R, K] of -127..127, scales float32 [R]. int4: payload uint8 [R, ceil(K / 32) · 16], two nibbles
    a byte, value = (nibble - 8) · scale; scales [R, ceil(K / group)] in `scale_dtype`, of either sign: the widest value
    of a group takes -8, the step that has no positive twin. Features past K hold nibble 8, which is zero.
    `scale_dtype`: float16 or bfloat16, as torch's type or by name; int8 has no use for it.

    Raises ValueError for weights that are not finite, and for weights beyond the range of `scale_dtype`.
    """
    if weight.dim() != 2 or not weight.is_floating_point():
        raise ValueError(f"weight: want floats of two dimensions, not {weight.dtype} of shape {tuple(weight.shape)}")
    widest = weight.abs().amax(dim=1).float() if weight.numel() else weight.new_zeros(len(weight)).float()
    # NaN and infinities survive amax.
    if not widest.isfinite().all():
        row = int((~widest.isfinite()).nonzero()[0])
        raise ValueError(f"weight: row {row} holds NaN or infinity, which no integer format can: fix the checkpoint")
    if format == "int8":
        return _int8(weight, widest)
    if format not in ("int4-g32", "int4-g128"):
        raise ValueError(f"format: {format} is not int8, int4-g32 or int4-g128")
    if isinstance(scale_dtype, str):
        scale_dtype = getattr(torch, scale_dtype, scale_dtype)
    if scale_dtype not in (torch.float16, torch.bfloat16):
        raise ValueError(f"scale_dtype: {scale_dtype} is not float16 or bfloat16")
    limit = min(8 * torch.finfo(scale_dtype).max, WIDEST)
    if (widest > limit).any():
        row = int((widest > limit).nonzero()[0])
        raise ValueError(
            f"weight: row {row} holds {widest[row]:.6g}, beyond {limit:.6g}, the widest that int4 with "
            f"{scale_dtype} scales can hold: use bfloat16 scales or int8"
        )
    return _int4(weight, int(format.removeprefix("int4-g")), scale_dtype)


def dequantise(payload: torch.Tensor, scales: torch.Tensor, format: str, columns: int) -> torch.Tensor:
    """float32 [R, columns] from what `quantise` made."""
    if format == "int8":
        return payload.float() * scales.float()[:, None]
    group = int(format.removeprefix("int4-g"))
    runs = payload.view(len(payload), -1, INT4_RUN // 2)
    values = torch.cat([runs & 15, runs >> 4], dim=-1).flatten(1)[:, :columns].float() - 8
    return values * scales.float().repeat_interleave(group, dim=1)[:, :columns]


def _int8(weight: torch.Tensor, widest: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scales = widest / 127
    # A row of zeros, or one so small that its scale underflows, is all zeros.
    steps = torch.where(scales == 0, torch.inf, scales)[:, None]
    payload = torch.empty(weight.shape, dtype=torch.int8)
    for rows in _chunks(weight):
        payload[rows] = (weight[rows].float() / steps[rows]).round_().clamp_(-127, 127).to(torch.int8)
    return payload, scales


def _int4(weight: torch.Tensor, group: int, scale_dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    rows, columns = weight.shape
    groups, width = -(-columns // group), -(-columns // INT4_RUN) * INT4_RUN
    payload = torch.empty(rows, width // 2, dtype=torch.uint8)
    scales = torch.empty(rows, groups, dtype=scale_dtype)
    for chunk in _chunks(weight):
        values = weight[chunk].float()
        values = torch.nn.functional.pad(values, (0, groups * group - columns)).view(len(values), groups, group)
        best = _int4_scales(values, scale_dtype)
        scales[chunk] = best[..., 0].to(scale_dtype)
        steps = _int4_steps(values, best).flatten(1)[:, :width].add_(8).to(torch.uint8)
        low, high = steps.view(len(steps), -1, 2, INT4_RUN // 2).unbind(2)
        payload[chunk] = (low | high << 4).flatten(1)
    return payload, scales


def _int4_scales(values: torch.Tensor, scale_dtype: torch.dtype) -> torch.Tensor:
    """The scale of each group of `values` [R, G, group] with the least squared error, as float32 [R, G, 1]."""
    low, high = values.amin(dim=-1, keepdim=True), values.amax(dim=-1, keepdim=True)
    signed = torch.where(-low > high, low, high)
    # A start for groups so wide that all errors are infinite.
    best, least = _rounded(signed / -8, scale_dtype), torch.full_like(signed, torch.inf)

    def attempt(scale: torch.Tensor) -> None:
        nonlocal best, least
        scale = _rounded(scale, scale_dtype)
        steps = _int4_steps(values, scale)
        error = torch.addcmul(values, steps, scale, value=-1).square_().sum(dim=-1, keepdim=True)
        better = error < least
        best, least = torch.where(better, scale, best), torch.where(better, error, least)

    for shrink in SHRINK:
        attempt(signed * (shrink / -8))
    # Where both ends are equally wide, -7..7 fits better than -8..7.
    attempt(signed / 7)
    # The best scale for the steps that the best so far gives.
    steps = _int4_steps(values, best)
    attempt((values * steps).sum(-1, keepdim=True) / steps.square().sum(-1, keepdim=True).clamp_(min=1))
    return best


def _int4_steps(values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """-8..7, as floats."""
    return (values / torch.where(scale == 0, torch.inf, scale)).round_().clamp_(-8, 7)


def _rounded(scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`scale` as `dtype` holds it, in float32: never infinite, and zero only where it was."""
    limits = torch.finfo(dtype)
    size = scale.abs().clamp(min=limits.smallest_normal * limits.eps, max=limits.max).to(dtype).float()
    return torch.where(scale == 0, 0.0, size.copysign(scale))


def _chunks(weight: torch.Tensor) -> list[slice]:
    """Slices of rows."""
    count = max(1, CHUNK // max(1, weight.shape[1]))
    return [slice(at, at + count) for at in range(0, len(weight), count)]
