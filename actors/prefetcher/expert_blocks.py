"""One expert of a checkpoint as the bytes of its block in a store, piece by piece.

An expert may be larger than the memory that a conversion should take (Mixtral 8x22B: 600 MB, and twice that in
float32 while it is quantised), so weights are converted some rows at a time: no format makes rows depend on others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from ...errors import UserError
from ...kernels.layout import FLOAT_FORMATS, ExpertLayout
from ...kernels.quantise import dequantise, quantise

CHUNK_BYTES = 32 << 20
"""Of float32 weights converted at a time."""
_COMPARED = 8
"""One row in so many is compared with its source: enough for a figure per layer, and hardly felt."""


class NotRepresentable(UserError, ValueError):
    """Weights that the format asked for cannot hold; the message names the part."""


@dataclass
class Deviation:
    """How far weights moved: sums over those that were compared."""

    squared_error: float = 0.0
    squared_weights: float = 0.0

    def add(self, weights: torch.Tensor, stored: torch.Tensor) -> None:
        """Compares `stored` with the `weights` it stands for, both float32 [rows, columns]."""
        self.squared_error += float((stored - weights).square().sum(dtype=torch.float64))
        self.squared_weights += float(weights.square().sum(dtype=torch.float64))

    @property
    def relative(self) -> float:
        """Root mean square of the change over that of the weights."""
        return (self.squared_error / self.squared_weights) ** 0.5 if self.squared_weights else 0.0


def block_pieces(layout: ExpertLayout, parts: Mapping[str, torch.Tensor], deviation: Deviation) -> Iterator[np.ndarray]:
    """The `layout.expert_bytes` bytes of a block, in order, as uint8 arrays; gaps are zeros.

    `parts`: the expert's float parts by their names in the layout, weights [rows, columns]. Where the format is not
    that of the weights, a sample of rows is compared, in `deviation`. Raises NotRepresentable.
    """
    scales: dict[str, torch.Tensor] = {}
    at = 0
    for part in layout.parts:
        if part.offset > at:
            yield np.zeros(part.offset - at, dtype=np.uint8)
        at = part.offset
        if part.name in ("gate_up", "down"):
            tensors = _stored_rows(layout, part.name, parts[part.name], scales, deviation)
        else:
            tensors = iter([scales[part.name] if part.name in scales else parts[part.name].to(part.dtype)])
        for tensor in tensors:
            if tensor.dtype != part.dtype:
                raise TypeError(f"{part.name}: {tensor.dtype} instead of {part.dtype}")
            data = tensor.contiguous().flatten().view(torch.uint8).numpy()
            at += data.size
            yield data
        if at != part.offset + part.nbytes:
            raise ValueError(f"{part.name}: {at - part.offset} bytes instead of {part.nbytes}")


def _stored_rows(
    layout: ExpertLayout, name: str, weight: torch.Tensor, scales: dict[str, torch.Tensor], deviation: Deviation
) -> Iterator[torch.Tensor]:
    """A weight matrix in the layout's format, some rows at a time; its scales, if it has any, are put into `scales`."""
    columns = weight.shape[1]
    made: list[torch.Tensor] = []
    for rows in weight.split(max(1, CHUNK_BYTES // (4 * columns))):
        if layout.quantised:
            try:
                stored, scale = quantise(rows, layout.format, FLOAT_FORMATS[layout.scale_dtype])
            except ValueError as error:
                raise NotRepresentable(f"{name}: {error}") from error
            made.append(scale)
            sample = dequantise(stored[::_COMPARED], scale[::_COMPARED], layout.format, columns)
        else:
            dtype = next(part.dtype for part in layout.parts if part.name == name)
            if rows.dtype == dtype:
                yield rows  # bit for bit
                continue
            stored = rows.to(dtype)
            sample = stored[::_COMPARED].float()
            if not torch.isfinite(stored).all():
                raise NotRepresentable(
                    f"{name} holds weights not finite or too large for {layout.format}: use bfloat16 or float32"
                )
        deviation.add(rows[::_COMPARED].float(), sample)
        yield stored
    if made:
        scales[f"{name}_scales"] = torch.cat(made)
