"""Experts computed on a CUDA device from their slots: two launches for all that a layer needs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch

from ..experts import ExpertWork
from ..layout import ALIGNMENT, GROUP_SIZES, ExpertLayout
from .tiles import DECODE_PAIRS, Tile, tile_for

COMPUTE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LEAST_CAPABILITY = (8, 0)
"""The first with bfloat16 and asynchronous copies."""
ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
}
"""Names in ACT2FN, and the kernel's."""


def supports(layout: ExpertLayout, compute_dtype: torch.dtype) -> str | None:
    """Why `TritonExperts` cannot compute experts of this layout here; None where it can."""
    if compute_dtype not in COMPUTE_DTYPES:
        return f"computing in {compute_dtype}: the Triton kernels know float32, bfloat16 and float16"
    if layout.activation not in ACTIVATIONS:
        return f"activation {layout.activation!r}: the Triton kernels know {', '.join(ACTIVATIONS)}"
    if layout.norm_eps is not None:
        return "a norm after each expert: the Triton kernels have none"
    if layout.expert_bytes >= 2**31:
        return f"experts of {layout.expert_bytes:,} bytes: the Triton kernels address less than 2 GiB within one"
    try:
        from . import grouped  # noqa: F401
    except ImportError as error:
        return f"Triton cannot be imported ({error}); it comes with torch's CUDA builds for Linux"
    if _interpreted():
        return None
    capabilities = [torch.cuda.get_device_capability(device) for device in range(torch.cuda.device_count())]
    if capabilities and min(capabilities) < LEAST_CAPABILITY:
        return f"a GPU of compute capability {min(capabilities)}: the Triton kernels need {LEAST_CAPABILITY} or later"
    if not _compiler():
        return "Triton needs a C compiler to start its kernels: install gcc or clang, or point CC at one"
    return None


def element_types(layout: ExpertLayout) -> dict[str, torch.dtype]:
    """The types as which the kernels see the arena, by the name of the argument."""
    parts = {part.name: part.dtype for part in layout.parts}
    scales = parts["gate_up_scales"] if layout.format in GROUP_SIZES else torch.float32
    return {"weights": parts["gate_up"], "scales": scales, "floats": torch.float32}


def constants(layout: ExpertLayout, slot_bytes: int, projection: str) -> dict[str, object]:
    """What the kernel `projection` ("gate_up" or "down") is compiled for, the tile's sizes apart."""
    at = {part.name: part.offset // part.dtype.itemsize for part in layout.parts}
    found = {
        "HIDDEN": layout.hidden_size,
        "INNER": layout.intermediate_size,
        "WEIGHTS_AT": at[projection],
        "SCALES_AT": at.get(f"{projection}_scales", 0),
        "BIAS_AT": at.get(f"{projection}_bias", -1),
        **{f"{name.upper()}_STRIDE": slot_bytes // kind.itemsize for name, kind in element_types(layout).items()},
        "FORMAT": "int4" if layout.format in GROUP_SIZES else "int8" if layout.format == "int8" else "float",
        "GROUP": GROUP_SIZES.get(layout.format, 0),
    }
    if projection == "gate_up":
        found |= {
            "GATE": layout.gate,
            "ACTIVATION": ACTIVATIONS[layout.activation],
            "LIMIT": float(layout.gate_limit),
            "ALPHA": float(layout.gate_alpha),
        }
    return found


@dataclass(frozen=True)
class Prepared:
    """A call's share of experts, on the device."""

    tile: Tile
    tiles: torch.Tensor
    """int32 [tiles, 3]: slot, first pair, number of pairs."""
    token_rows: torch.Tensor
    """int64 [pairs], expert after expert."""
    router_weights: torch.Tensor
    """[pairs]"""


class TritonExperts:
    """`ExpertKernel` of experts that lie in the slots of one arena.

    A row's bits depend on its token, expert and router weight, and on which of two tile sizes computed it: that for
    decoding where no expert of the call has more than 32 tokens, else that for prompts. Both add in the same order,
    but GPUs with other matrix instructions for large tiles than for small ones (Hopper, Blackwell's B200) may differ in
    the last bits between the two.
    """

    name = "triton"

    def __init__(self, layout: ExpertLayout, compute_dtype: torch.dtype, arena: torch.Tensor):
        """`arena`: uint8 [slots, slot_bytes] on the device, each slot starting on a multiple of 64 bytes.

        Compiles both tile sizes, some seconds where Triton's cache has not got them, so that no request waits for it.
        Raises ValueError for a layout that `supports` refuses and for an arena of another kind.
        """
        if (reason := supports(layout, compute_dtype)) is not None:
            raise ValueError(f"no Triton kernel for {reason}; use TorchExperts")
        _check_arena(arena, layout)
        from . import grouped

        self._grouped, self._layout, self._compute_dtype, self._arena = grouped, layout, compute_dtype, arena
        types = element_types(layout)
        self._memory = tuple(arena.view(types[name]) for name in ("weights", "scales", "floats"))
        self._constants = {name: constants(layout, arena.shape[1], name) for name in ("gate_up", "down")}
        if arena.is_cuda and len(arena):
            self._compile()

    def rows(self, hidden: torch.Tensor, work: Sequence[ExpertWork]) -> torch.Tensor:
        """As `ExpertKernel.rows`. Raises ValueError for a block that is no slot of the arena, and for hidden states of
        another kind."""
        return self.compute(hidden, self.prepare(work))

    def prepare(self, work: Sequence[ExpertWork]) -> Prepared:
        """What the kernels need of a call besides the hidden states: queued on the current stream, not waited for."""
        slots, sizes = [self._slot(w.block) for w in work], [len(w.token_rows) for w in work]
        tile = tile_for(self._layout, self._compute_dtype, max(sizes, default=0))
        if not work:
            nothing = torch.empty(0, dtype=torch.int64, device=self._arena.device)
            return Prepared(tile, nothing, nothing, nothing)
        with self._on_device():
            return Prepared(
                tile,
                self._to_device(tile.cut(slots, sizes)),
                torch.cat([w.token_rows for w in work]),
                torch.cat([w.router_weights for w in work]),
            )

    def compute(self, hidden: torch.Tensor, call: Prepared) -> torch.Tensor:
        """The rows: two launches."""
        self._check_hidden(hidden)
        layout, tile, pairs = self._layout, call.tile, len(call.token_rows)
        out = torch.empty((pairs, layout.hidden_size), dtype=torch.float32, device=hidden.device)
        if not pairs:
            return out
        inner = torch.empty((pairs, layout.intermediate_size), dtype=self._compute_dtype, device=hidden.device)
        memory = (*self._memory, call.tiles)
        features = tile.block_n if layout.gate == "none" else tile.block_n // 2
        with self._on_device():
            self._grouped.gate_up[(len(call.tiles) * -(-layout.intermediate_size // features),)](
                hidden, *memory, call.token_rows, inner, **self._constants["gate_up"], **tile.options()
            )
            self._grouped.down[(len(call.tiles) * -(-layout.hidden_size // tile.block_n),)](
                inner, *memory, call.router_weights, out, **self._constants["down"], **tile.options()
            )
        return out

    def _compile(self) -> None:
        """One call of either tile size; what it computes from is whatever lies in the first slot."""
        for pairs in (DECODE_PAIRS, DECODE_PAIRS + 1):
            token_rows = torch.zeros(pairs, dtype=torch.int64, device=self._arena.device)
            hidden = torch.zeros((1, self._layout.hidden_size), dtype=self._compute_dtype, device=self._arena.device)
            # Routers give weights in either type, and kernels are compiled for one.
            for kind in {torch.float32, self._compute_dtype}:
                weights = torch.zeros(pairs, dtype=kind, device=self._arena.device)
                self.rows(hidden, [ExpertWork(self._arena[0], token_rows, weights)])

    def _slot(self, block: np.ndarray | torch.Tensor) -> int:
        if isinstance(block, torch.Tensor) and block.device == self._arena.device:
            slot, rest = divmod(block.data_ptr() - self._arena.data_ptr(), self._arena.shape[1])
            whole = block.dtype == torch.uint8 and block.dim() == 1 and block.numel() >= self._layout.expert_bytes
            if rest == 0 and 0 <= slot < len(self._arena) and whole:
                return slot
            what = f"{block.dtype} of shape {tuple(block.shape)}"
        else:
            what = f"on {block.device}" if isinstance(block, torch.Tensor) else "an array in host memory"
        raise ValueError(
            f"block ({what}) is not a slot of this kernel's arena: pass arena[slot], or use TorchExperts "
            "for experts elsewhere"
        )

    def _check_hidden(self, hidden: torch.Tensor) -> None:
        if (
            hidden.dtype != self._compute_dtype
            or hidden.dim() != 2
            or hidden.shape[1] != self._layout.hidden_size
            or hidden.device != self._arena.device
            or not hidden.is_contiguous()
        ):
            raise ValueError(
                f"hidden: {hidden.dtype} {tuple(hidden.shape)} on {hidden.device}; needed are contiguous "
                f"{self._compute_dtype} [T, {self._layout.hidden_size}] on {self._arena.device}"
            )

    def _to_device(self, tiles: np.ndarray) -> torch.Tensor:
        if not self._arena.is_cuda:
            return torch.from_numpy(tiles)
        # Page-locked, or the copy would wait; torch keeps such memory until the stream has read it.
        pinned = torch.empty(tiles.shape, dtype=torch.int32, pin_memory=True)
        pinned.numpy()[:] = tiles
        return pinned.to(self._arena.device, non_blocking=True)

    def _on_device(self) -> AbstractContextManager:
        # Triton launches on the current device, wherever the tensors are.
        return torch.cuda.device(self._arena.device) if self._arena.is_cuda else nullcontext()


def _check_arena(arena: torch.Tensor, layout: ExpertLayout) -> None:
    if not arena.is_cuda and not _interpreted():
        raise ValueError(f"arena on {arena.device}: the Triton kernels need a CUDA device")
    if (
        arena.dtype != torch.uint8
        or arena.dim() != 2
        or not arena.is_contiguous()
        or arena.shape[1] < layout.expert_bytes
        or arena.shape[1] % ALIGNMENT
        or arena.data_ptr() % ALIGNMENT
    ):
        raise ValueError(
            f"arena: {arena.dtype} {tuple(arena.shape)}; needed are contiguous uint8 [slots, slot_bytes] with "
            f"slot_bytes a multiple of {ALIGNMENT} and at least {layout.expert_bytes}"
        )


def _interpreted() -> bool:
    from . import grouped

    return bool(grouped.INTERPRETED.value)


def _compiler() -> str | None:
    names = (os.environ.get("CC"), "gcc", "clang")
    return next((found for name in names if name and (found := shutil.which(name))), None)
