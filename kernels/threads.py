"""The threads that compute in a process: torch's and the kernels', never more of each than the deployment gives."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .cpu import library


def use_threads(threads: int, cores: Sequence[int] | None = None) -> None:
    """To be called in the thread that computes: `threads` including itself, pinned to `cores`, one each, if given.

    Raises LibraryError for cores that this process may not use.
    """
    torch.set_num_threads(threads)
    # Without the library torch computes everything; what chooses kernels says why.
    if library.unavailable() is None:
        library.configure(threads, cores)
