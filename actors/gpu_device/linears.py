"""The trunk's linear layers through the CPU kernels: a decode turn has few tokens, and reads every weight for them.

torch serves many tokens well and few tokens badly. The layers stay the modules that transformers made, with their
names and parameters; only their forward changes.
"""

from __future__ import annotations

from collections import Counter

import structlog
import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from ...kernels.cpu.library import unavailable
from ...kernels.cpu.linear import PackedLinear
from ...kernels.quantise import quantise
from .hook import expert_modules

log = structlog.get_logger()

FEW_TOKENS = 16
"""Up to here our kernels read the weights at memory speed; beyond, torch's blocked products win."""
SLICE_TOKENS = 64
"""Tokens at a time through a quantised layer, whatever the length of the prompt."""
DTYPES = (torch.float32, torch.bfloat16)


class KernelLinear(nn.Linear):
    """An `nn.Linear` after `use_kernels`: few tokens go to `packed`, which reads this module's own weight."""

    packed: PackedLinear
    """No parameter of the module: in no state dict."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if input.numel() > FEW_TOKENS * self.in_features or torch.is_grad_enabled():
            return F.linear(input, self.weight, self.bias)
        return self.packed(input.contiguous())


class QuantisedLinear(KernelLinear):
    """An `nn.Linear` whose weight is kept in an integer format; it has no float weight, and no gradients."""

    @torch.no_grad()
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if input.numel() <= SLICE_TOKENS * self.in_features:
            return self.packed(input.contiguous())
        pieces = input.reshape(-1, self.in_features).split(SLICE_TOKENS)
        return torch.cat([self.packed(piece) for piece in pieces]).view(*input.shape[:-1], self.out_features)


def use_kernels(model: PreTrainedModel, format: str | None) -> int:
    """Makes the linear layers of `model`, on the CPU, compute through our kernels; returns how many.

    `format`: int8, int4-g32 or int4-g128, which layers are then kept in, their float weights freed; None: they stay as
    they are and share their memory with the kernels. Never quantised: a head whose weight the embedding uses too, and
    layers beside the experts (routers, gates of shared experts), which are small and decide much. Layers in float16,
    and all where the library does not run, stay torch's. Raises ValueError, naming the layer, for weights that
    `format` cannot hold.
    """
    reason = unavailable()
    if reason is not None:
        log.info("linear layers stay torch's", model=type(model).__name__, reason=reason)
        return 0
    uses = Counter(id(weight) for _, weight in model.named_parameters(remove_duplicate=False))
    beside_experts = {name.rpartition(".")[0] for name in expert_modules(model)}
    swapped = 0
    for name, module in model.named_modules():
        # Subclasses have a forward of their own.
        if type(module) is not nn.Linear or module.weight.dtype not in DTYPES or module.weight.device.type != "cpu":
            continue
        if format is None or uses[id(module.weight)] > 1 or name.rpartition(".")[0] in beside_experts:
            module.packed = PackedLinear(module.weight.detach(), _detached(module.bias))
            module.__class__ = KernelLinear
        else:
            _quantise(name, module, format)
        swapped += 1
    return swapped


def _quantise(name: str, module: nn.Linear, format: str) -> None:
    try:
        payload, scales = quantise(module.weight.detach(), format)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    module.packed = PackedLinear.quantised(payload, scales, format, module.in_features, _detached(module.bias))
    module.weight = None
    module.__class__ = QuantisedLinear


def _detached(bias: torch.Tensor | None) -> torch.Tensor | None:
    return None if bias is None else bias.detach()
