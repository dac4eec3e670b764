"""Which kernel computes the experts of a layout on a device, and why not a faster one."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .experts import ExpertKernel
from .layout import ExpertLayout
from .reference import TorchExperts


@dataclass(frozen=True)
class Choice:
    """A kernel. `reason`: why it is torch's reference; None where it is one of the kernels made for the purpose."""

    kernel: ExpertKernel
    reason: str | None = None


def choose_kernel(
    layout: ExpertLayout, compute_dtype: torch.dtype, device: torch.device, arena: torch.Tensor | None = None
) -> Choice:
    """The fastest kernel there is for experts on `device`; torch's reference is always there.

    `arena`: uint8 [slots, slot_bytes], the memory that all blocks lie in; a GPU kernel needs it.
    """
    if device.type == "cpu":
        # Only here: importing the library compiles nothing, but it is not needed for GPUs.
        from .cpu.experts import CpuExperts
        from .cpu.experts import supports as cpu_supports

        reason = cpu_supports(layout, compute_dtype)
        if reason is None:
            return Choice(CpuExperts(layout, compute_dtype))
    elif arena is None:
        reason = "blocks outside the slots"
    else:
        from .gpu.experts import TritonExperts
        from .gpu.experts import supports as gpu_supports

        reason = gpu_supports(layout, compute_dtype)
        if reason is None:
            return Choice(TritonExperts(layout, compute_dtype, arena))
    return Choice(TorchExperts(layout, compute_dtype), reason)
