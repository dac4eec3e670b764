"""Keys and values that grow in place: memory for all positions is taken at once, and a pass copies nothing."""

from __future__ import annotations

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


class GrowingLayer(DynamicLayer):
    """A `DynamicLayer` whose keys and values are the beginning of larger buffers.

    `positions`: what the buffers hold; a layer that outgrows them moves to larger ones. What a crop took off is
    overwritten by the next update, so nobody may keep `keys` or `values` over both.
    """

    def __init__(self, positions: int) -> None:
        super().__init__()
        self._positions = positions
        self._buffers: dict[str, torch.Tensor] = {}

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends [B, kv heads, T, D or V]; all keys and values so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys = self._appended("keys", self.keys, key_states)
        self.values = self._appended("values", self.values, value_states)
        return self.keys, self.values

    def _appended(self, name: str, held: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        length = held.shape[-2] if held.numel() else 0
        end = length + new.shape[-2]
        buffer = self._buffers.get(name)
        if buffer is None or buffer.shape[-2] < end or (length and held.data_ptr() != buffer.data_ptr()):
            *outer, _, features = new.shape
            self._buffers[name] = buffer = new.new_empty(*outer, max(end, self._positions), features)
            if length:
                buffer[..., :length, :] = held
        buffer[..., length:end, :] = new
        return buffer[..., :end, :]

    def reset(self) -> None:
        self._buffers.clear()
        super().reset()


def grow_in_place(cache: DynamicCache, positions: int) -> None:
    """Makes the full-attention layers of a cache that is still empty grow in place, up to `positions`."""
    cache.layers = [GrowingLayer(positions) if type(layer) is DynamicLayer else layer for layer in cache.layers]
