"""A linear layer by the kernels that compute experts: for few tokens, where reading the weights is the work."""

from __future__ import annotations

import torch

from ..layout import FLOAT_FORMATS
from . import library


class PackedLinear:
    """y = x Wᵀ + bias. `weight` [N, K] in a float format, contiguous; used where it lies, not copied.

    Sums are float32, in one order whatever the number of tokens; y has the type of x. Raises LibraryError where there
    is no library, or no kernel for the format.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None, *, isa: str | None = None) -> None:
        formats = {dtype: name for name, dtype in FLOAT_FORMATS.items()}
        if weight.dim() != 2 or weight.dtype not in formats or weight.device.type != "cpu":
            raise ValueError(
                f"weight: want a float32, bfloat16 or float16 matrix on the CPU, not {weight.dtype} of shape "
                f"{tuple(weight.shape)} on {weight.device}"
            )
        self._prepare(weight.detach().contiguous(), None, formats[weight.dtype], weight.shape[1], bias, isa)

    @classmethod
    def quantised(
        cls,
        payload: torch.Tensor,
        scales: torch.Tensor,
        format: str,
        columns: int,
        bias: torch.Tensor | None = None,
        isa: str | None = None,
    ) -> PackedLinear:
        """Of what `kernels.quantise.quantise` made from a weight of `columns` input features."""
        linear = cls.__new__(cls)
        linear._prepare(payload.contiguous(), scales.contiguous(), format, columns, bias, isa)
        return linear

    def _prepare(
        self,
        payload: torch.Tensor,
        scales: torch.Tensor | None,
        format: str,
        columns: int,
        bias: torch.Tensor | None,
        isa: str | None,
    ) -> None:
        self.isa = library.choose(isa)
        self.format, self.in_features, self.out_features = format, columns, len(payload)
        if bias is not None:
            bias = bias.detach().float().contiguous()
            if bias.shape != (len(payload),):
                raise ValueError(f"bias: want [{len(payload)}], one a row of the weight, not {tuple(bias.shape)}")
        # The library gets their addresses.
        self._kept = payload, scales, bias
        self._call = library.load().moespac_linear
        self._matrix = (
            library.ISAS.index(self.isa),
            library.FORMATS[format],
            int(scales is not None and scales.dtype == torch.bfloat16),
            payload.data_ptr(),
            None if scales is None else scales.data_ptr(),
            len(payload),
            columns,
        )
        self._bias_at = None if bias is None else bias.data_ptr()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., K] in float32 or bfloat16 to y [..., N] of the same type."""
        dtype, columns = x.dtype, self.in_features
        if x.shape[-1] != columns or (dtype is not torch.bfloat16 and dtype is not torch.float32):
            raise ValueError(f"x: want float32 or bfloat16 [..., {columns}], not {dtype} of shape {tuple(x.shape)}")
        if not x.is_contiguous():
            x = x.contiguous()
        y = torch.empty((*x.shape[:-1], self.out_features), dtype=dtype)
        status = self._call(
            *self._matrix, library.COMPUTE[dtype], x.data_ptr(), x.numel() // columns, self._bias_at, y.data_ptr()
        )
        if status:
            library.check(status)
        return y
