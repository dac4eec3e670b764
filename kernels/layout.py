"""How one routed expert lies in memory: gate rows, up rows, down rows, in this order, in the stored type."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from .buffers import tensor_view

STORED_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class ExpertWeights:
    """Views of one expert: `gate_up` [2·I, H] (gate rows first), `down` [H, I]."""

    gate_up: torch.Tensor
    down: torch.Tensor


@dataclass(frozen=True)
class ExpertLayout:
    """Shape and type of every routed expert of a model."""

    hidden_size: int
    intermediate_size: int
    dtype: str
    """As stored; a key of `STORED_DTYPES`."""
    activation: str
    """Name in transformers' ACT2FN."""

    @property
    def torch_dtype(self) -> torch.dtype:
        return STORED_DTYPES[self.dtype]

    @property
    def expert_bytes(self) -> int:
        """Payload of one expert, without padding."""
        return 3 * self.hidden_size * self.intermediate_size * self.torch_dtype.itemsize

    def weights(self, block: np.ndarray | torch.Tensor) -> ExpertWeights:
        """Views into `block`, a one-dimensional uint8 buffer of at least `expert_bytes`; copies nothing.

        A read-only numpy buffer is accepted: nothing here writes to weights.
        """
        tensor = block if isinstance(block, torch.Tensor) else tensor_view(block)
        if tensor.dtype != torch.uint8 or tensor.dim() != 1 or tensor.numel() < self.expert_bytes:
            raise ValueError(
                f"block: an expert is {self.expert_bytes} bytes in one uint8 dimension, not "
                f"{tensor.dtype} of shape {tuple(tensor.shape)}: pass the whole slot of the expert"
            )
        flat = tensor[: self.expert_bytes].view(self.torch_dtype)
        split = 2 * self.intermediate_size * self.hidden_size
        return ExpertWeights(
            gate_up=flat[:split].view(2 * self.intermediate_size, self.hidden_size),
            down=flat[split:].view(self.hidden_size, self.intermediate_size),
        )
