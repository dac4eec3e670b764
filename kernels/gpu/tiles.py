"""Tile sizes: what one Triton program computes. A fixed table, as measuring candidates would make requests wait.

At decode sizes time is reading weights: small tiles, so that there are several programs a multiprocessor already for
a few experts, each with several tiles of weights on their way. A prompt's tiles are large: weights are used often.
The tile of the inner dimension is one for all token counts: it fixes the order of additions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..layout import GROUP_SIZES, ExpertLayout

DECODE_PAIRS = 32
"""Most pairs of one expert for which decode tiles are taken: a second tile finds its weights in the L2 cache."""


@dataclass(frozen=True)
class Tile:
    """Sizes of a program's tile, and how it runs."""

    block_m: int
    """(token, expert) pairs; at least 16, the least that matrix instructions take."""
    block_n: int
    """Rows of the matrix."""
    block_k: int
    """Input features at a time."""
    warps: int
    stages: int
    """Tiles in flight from memory, and one."""

    def options(self) -> dict[str, int]:
        """Keyword arguments of a launch."""
        return {
            "BLOCK_M": self.block_m,
            "BLOCK_N": self.block_n,
            "BLOCK_K": self.block_k,
            "num_warps": self.warps,
            "num_stages": self.stages,
        }

    def cut(self, slots: Sequence[int], sizes: Sequence[int]) -> np.ndarray:
        """Every tile's slot, first pair and number of pairs, int32 [tiles, 3], of experts with `sizes` pairs each."""
        tiles, first = [], 0
        for slot, size in zip(slots, sizes, strict=True):
            tiles += [(slot, first + at, min(self.block_m, size - at)) for at in range(0, size, self.block_m)]
            first += size
        return np.array(tiles, np.int32).reshape(-1, 3)


def tile_for(layout: ExpertLayout, compute_dtype: torch.dtype, most_pairs: int) -> Tile:
    """The tile for a call in which no expert has more than `most_pairs` pairs."""
    decode = most_pairs <= DECODE_PAIRS
    if compute_dtype == torch.float32:
        # Without matrix instructions every step is unrolled: longer ones and larger tiles run out of registers.
        if layout.format in GROUP_SIZES:
            return Tile(16, 32, 64, warps=4, stages=4)
        return Tile(16, 32, 32, warps=4, stages=4) if decode else Tile(32, 64, 32, warps=4, stages=2)
    # 64 or 128 bytes of a row: whole sectors, and a whole group of int4's scales.
    block_k = 128 if layout.quantised else 64
    if decode:
        return Tile(16, 32, block_k, warps=4, stages=5)
    return Tile(64, 64 if layout.quantised else 128, block_k, warps=4, stages=3)
