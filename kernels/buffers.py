"""Tensors over memory that somebody else owns and that must not be written."""

from __future__ import annotations

import numpy as np
import torch


class _Untagged:
    """The same memory without numpy's read-only mark; keeps its owner alive."""

    def __init__(self, array: np.ndarray):
        self.owner = array
        address, _ = array.__array_interface__["data"]
        self.__array_interface__ = {**array.__array_interface__, "data": (address, False)}


def tensor_view(array: np.ndarray) -> torch.Tensor:
    """A tensor over `array`'s memory; copies nothing, and keeps the array alive.

    torch knows no read-only tensors and warns of read-only arrays, by a process-wide switch that threads
    cannot silence safely. Whoever takes such a view promises not to write to it: a write to a read-only
    mapping kills the process, a write to received bytes changes what others read.
    """
    return torch.from_numpy(array if array.flags.writeable else np.asarray(_Untagged(array)))
