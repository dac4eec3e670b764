"""How one routed expert lies in memory, whatever the layout of the checkpoint that it came from.

A block holds, each part starting on a multiple of 64 bytes: gate and up rows (gate first; up alone where there is no
gate), down rows, then where the layout has them their scales, biases and the norm after the expert. Transposed and
interleaved checkpoints are put into this order when the store is made, so that no kernel knows of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from .buffers import tensor_view
from .quantise import INT4_RUN, dequantise

FLOAT_FORMATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Formats without scales, and their torch types."""
GROUP_SIZES = {"int4-g32": 32, "int4-g128": 128}
"""Input features that share a scale."""
FORMATS = (*FLOAT_FORMATS, "int8", *GROUP_SIZES)
SCALE_DTYPES = ("float16", "bfloat16")
GATES = ("glu", "none", "clamped", "clamped_after", "clamped_sigmoid")
ALIGNMENT = 64
"""Bytes; a cache line, and the widest vector that kernels load."""


@dataclass(frozen=True)
class Part:
    """One tensor within an expert's block."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    offset: int
    """Bytes from the block's start."""

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape)) * self.dtype.itemsize


@dataclass(frozen=True)
class ExpertWeights:
    """One expert, ready to compute with.

    `gate_up` [2·I, H] (gate rows first; [I, H] without a gate), `down` [H, I], `gate_up_bias` [2·I] or [I],
    `down_bias` [H], `norm` [H]: w of the RMS norm on the expert's output y, which is y·(1 + w) divided by the root mean
    square of that product: w moves the divisor too, and 1 is added here, not in what is stored.
    """

    gate_up: torch.Tensor
    down: torch.Tensor
    gate_up_bias: torch.Tensor | None = None
    down_bias: torch.Tensor | None = None
    norm: torch.Tensor | None = None


@dataclass(frozen=True)
class ExpertLayout:
    """Shape, type and arithmetic of every routed expert of a model."""

    hidden_size: int
    intermediate_size: int
    format: str
    """As stored; one of `FORMATS`."""
    activation: str
    """Name in transformers' ACT2FN."""
    gate: str = "glu"
    """With g, u the gate and up projections and L the limit. glu: act(g)·u. none: act(u). clamped: act(min(g, L)) ·
    clamp(u, ±L). clamped_after: min(act(g), L) · clamp(u, ±L). clamped_sigmoid: g·sigmoid(alpha·g) · (u + 1) of g and u
    clamped as before (gpt-oss)."""
    gate_limit: float = 0.0
    """L above."""
    gate_alpha: float = 0.0
    """alpha above."""
    bias: bool = False
    """Whether both projections add a bias (stored in float32)."""
    norm_eps: float | None = None
    """Of the RMS norm after each expert; None: there is none."""
    scale_dtype: str = "float16"
    """Of int4's scales; int8's are float32, one a row."""

    def stored_as(self, format: str | None, scale_dtype: str) -> ExpertLayout:
        """The same experts in another format; None: as they are."""
        return self if format is None else replace(self, format=format, scale_dtype=scale_dtype)

    @property
    def quantised(self) -> bool:
        return self.format not in FLOAT_FORMATS

    @property
    def gate_up_rows(self) -> int:
        """Rows of the first projection."""
        return self.intermediate_size * (1 if self.gate == "none" else 2)

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """All tensors of a block, in order."""
        hidden, inner, rows = self.hidden_size, self.intermediate_size, self.gate_up_rows
        wanted = [self._weight("gate_up", rows, hidden), self._weight("down", hidden, inner)]
        if self.quantised:
            wanted += [self._scales("gate_up", rows, hidden), self._scales("down", hidden, inner)]
        if self.bias:
            wanted += [("gate_up_bias", (rows,), torch.float32), ("down_bias", (hidden,), torch.float32)]
        if self.norm_eps is not None:
            wanted.append(("norm", (hidden,), torch.float32))
        parts, at = [], 0
        for name, shape, dtype in wanted:
            parts.append(Part(name, shape, dtype, at))
            at = -(-(at + parts[-1].nbytes) // ALIGNMENT) * ALIGNMENT
        return tuple(parts)

    @cached_property
    def expert_bytes(self) -> int:
        """Bytes of one expert, with its scales and biases, without padding after them."""
        return self.parts[-1].offset + self.parts[-1].nbytes

    def views(self, block: np.ndarray | torch.Tensor) -> dict[str, torch.Tensor]:
        """The parts as they lie in `block`, a one-dimensional uint8 buffer of at least `expert_bytes`; copies nothing.

        A read-only numpy buffer is accepted: nothing here writes to weights.
        """
        tensor = block if isinstance(block, torch.Tensor) else tensor_view(block)
        if tensor.dtype != torch.uint8 or tensor.dim() != 1 or tensor.numel() < self.expert_bytes:
            raise ValueError(
                f"block: an expert is {self.expert_bytes} bytes in one uint8 dimension, not "
                f"{tensor.dtype} of shape {tuple(tensor.shape)}: pass the whole slot of the expert"
            )
        return {
            part.name: tensor[part.offset : part.offset + part.nbytes].view(part.dtype).view(part.shape)
            for part in self.parts
        }

    def weights(self, block: np.ndarray | torch.Tensor) -> ExpertWeights:
        """The expert in `block`: views where it is stored in a float format, else dequantised to float32."""
        views = self.views(block)
        matrices = {
            name: dequantise(views[name], views[f"{name}_scales"], self.format, columns)
            if self.quantised
            else views[name]
            for name, columns in (("gate_up", self.hidden_size), ("down", self.intermediate_size))
        }
        return ExpertWeights(
            **matrices, **{name: views[name] for name in ("gate_up_bias", "down_bias", "norm") if name in views}
        )

    def _weight(self, name: str, rows: int, columns: int) -> tuple[str, tuple[int, ...], torch.dtype]:
        if self.format == "int8":
            return name, (rows, columns), torch.int8
        if self.format in GROUP_SIZES:
            return name, (rows, -(-columns // INT4_RUN) * INT4_RUN // 2), torch.uint8
        return name, (rows, columns), FLOAT_FORMATS[self.format]

    def _scales(self, name: str, rows: int, columns: int) -> tuple[str, tuple[int, ...], torch.dtype]:
        if self.format == "int8":
            return f"{name}_scales", (rows,), torch.float32
        return f"{name}_scales", (rows, -(-columns // GROUP_SIZES[self.format])), FLOAT_FORMATS[self.scale_dtype]
