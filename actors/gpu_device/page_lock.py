"""Page-locks the mapped host arena, so that a CUDA device can read it directly."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

_REGISTER_READ_ONLY = 0x08  # cudaHostRegisterReadOnly: the mapping is PROT_READ
_SUCCESS = 0


class PageLock:
    """Keeps the arena attached now registered with CUDA. Not thread-safe."""

    def __init__(self, arena: Callable[[], np.ndarray]):
        """`arena`: the whole mapping, another one after a restart of its owner."""
        self._arena = arena
        # The registered array is held: memory must not be unmapped while CUDA knows it as page-locked.
        self._memory: np.ndarray | None = None
        self._locked = False

    def covers(self, block: np.ndarray) -> bool:
        """Whether `block` lies in page-locked memory; registers the arena first if it is a new one.

        False where the driver refuses (not every one can lock a read-only mapping): copy through a buffer then.
        """
        memory = self._arena()
        if memory is not self._memory:
            self.release()
            self._memory = memory
            code = torch.cuda.cudart().cudaHostRegister(memory.ctypes.data, memory.nbytes, _REGISTER_READ_ONLY)
            self._locked = int(code) == _SUCCESS
        start = memory.ctypes.data
        return self._locked and start <= block.ctypes.data and block.ctypes.data + block.nbytes <= start + memory.nbytes

    def release(self) -> None:
        if self._locked and self._memory is not None:
            torch.cuda.cudart().cudaHostUnregister(self._memory.ctypes.data)
        self._memory, self._locked = None, False
