"""The trunk's linear layers and routers through the CPU kernels: a decode turn reads every weight for few tokens.

torch serves many tokens well and few tokens badly. The layers stay the modules that transformers made, with their
names and parameters; only how they multiply changes.
"""

from __future__ import annotations

from collections import Counter

import structlog
import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from ...kernels.cpu import library
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


class PackedWeight(nn.Parameter):
    """A weight that a module multiplies with itself, as routers do: `F.linear` of few tokens goes to `packed`."""

    packed: PackedLinear | None = None

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is F.linear and not kwargs and len(args) == 2 and not torch.is_grad_enabled():
            x, weight = args
            packed = getattr(weight, "packed", None)
            if packed is not None and x.dtype is weight.dtype and x.numel() <= FEW_TOKENS * packed.in_features:
                return packed(x.contiguous())
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


def use_kernels(model: PreTrainedModel, format: str | None) -> int:
    """Makes the linear layers of `model`, on the CPU, compute through our kernels; returns how many.

    `format`: int8, int4-g32 or int4-g128, which layers are then kept in, their float weights freed; None: they stay as
    they are and share their memory with the kernels. Never quantised: a head whose weight the embedding uses too, and
    layers beside the experts (routers, gates of shared experts), which are small and decide much. Layers in float16,
    and all where the library does not run, stay torch's. Raises ValueError for a format
    without the library and, naming the layer, for weights that `format` cannot hold.
    """
    reason = library.unavailable()
    if reason is not None and format is not None:
        raise ValueError(f"trunk_format {format} needs the CPU kernels: {reason}; or set model.trunk_format: stored")
    if reason is not None:
        log.info("linear layers stay torch's", model=type(model).__name__, reason=reason)
        return 0
    uses = Counter(id(weight) for _, weight in model.named_parameters(remove_duplicate=False))
    beside_experts = {name.rpartition(".")[0] for name in expert_modules(model)}
    swapped = 0
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if not isinstance(weight, nn.Parameter) or weight.dtype not in DTYPES or weight.device.type != "cpu":
            continue
        # Subclasses have a forward of their own.
        if type(module) is not nn.Linear:
            if name.rpartition(".")[0] in beside_experts and weight.dim() == 2:
                _pack_weight(module)
            continue
        if format is None or uses[id(module.weight)] > 1 or name.rpartition(".")[0] in beside_experts:
            module.packed = PackedLinear(module.weight.detach(), _detached(module.bias))
            module.__class__ = KernelLinear
        else:
            _quantise(name, module, format)
        swapped += 1
    if swapped:
        model.register_forward_pre_hook(_leave_cores_to_kernels, with_kwargs=True)
        model.register_forward_hook(_give_cores_back, always_call=True)
    return swapped


def _leave_cores_to_kernels(model: nn.Module, args: tuple, kwargs: dict) -> None:
    """What torch has left to do for few tokens is small, and its idle threads would spin on the kernels' cores."""
    given = kwargs.get("input_ids", kwargs.get("inputs_embeds", args[0] if args else None))
    few = given is not None and given.shape[:2].numel() <= FEW_TOKENS
    model.moespac_threads = torch.get_num_threads() if few else None
    if few:
        torch.set_num_threads(1)


def _give_cores_back(model: nn.Module, *_) -> None:
    if model.moespac_threads is not None:
        torch.set_num_threads(model.moespac_threads)


def _pack_weight(module: nn.Module) -> None:
    packed = PackedLinear(module.weight.detach())
    module.weight = torch.Tensor._make_subclass(PackedWeight, module.weight.detach(), False)
    module.weight.packed = packed


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
