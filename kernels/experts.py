"""What computes a layer's share of experts on a device: the contract, and the choice of who fulfils it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch


@dataclass(frozen=True)
class ExpertWork:
    """One expert of a call."""

    block: np.ndarray | torch.Tensor
    """uint8 [>= expert_bytes] laid out as ExpertLayout says, on the kernel's device; not written to."""
    token_rows: torch.Tensor
    """int64 [m], m >= 1: rows of the call's hidden states, on the kernel's device."""
    router_weights: torch.Tensor
    """[m], on the kernel's device."""


class ExpertKernel(Protocol):
    """Computes experts of one layout on one device. Thread-safe."""

    name: str
    """What `moespac doctor` and the logs call it, such as `cpu avx512-bf16`, `triton`, `torch`."""

    def rows(self, hidden: torch.Tensor, work: Sequence[ExpertWork]) -> torch.Tensor:
        """Rows weighted by the router, float32 [sum of m, H], expert after expert in the order of `work`.

        `hidden` [T, H] in the compute type, contiguous. A row's bits do not depend on the other experts of the call; on
        how many tokens its own expert has they may, where the kernel does not promise more, as torch's does not. For
        CUDA the work is queued on the current stream, not waited for.
        """
        ...
