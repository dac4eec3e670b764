"""The door from transformers to our experts: an experts implementation that asks the executor of the current pass.

transformers hands a registered function the experts module, the hidden states and the router's choice, but no
layer index and no request; the index is kept on the module, the pass in a context variable.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, _default_apply_gate

from ...errors import UserError

IMPLEMENTATION = "moespac"

LayerExperts = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(layer, hidden [T, H], top_k_index [T, k], top_k_weights [T, k]) -> [T, H]"""

_current: ContextVar[LayerExperts] = ContextVar("moespac_layer_experts")


class UnsupportedExperts(UserError, ValueError):
    """The model's routed experts are of a kind that this version cannot compute."""


def register() -> None:
    """Makes `experts_implementation="moespac"` known to transformers; harmless when repeated."""
    ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, _experts_forward)


@contextmanager
def experts_computed_by(compute: LayerExperts) -> Iterator[None]:
    """Within the block, and in this thread, routed experts of every hooked model are computed by `compute`."""
    token = _current.set(compute)
    try:
        yield
    finally:
        _current.reset(token)


def expert_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that hold routed experts: those which transformers lets experts implementations compute."""
    return {name: module for name, module in model.named_modules() if hasattr(module, "_is_expert_parallel")}


def detach_experts(model: nn.Module) -> tuple[int, ...]:
    """Takes the routed experts' parameters out of `model` and notes each module's layer; returns the layers.

    To be called while the model is still on the meta device: nothing was allocated, nothing is freed.
    """
    layers = []
    for name, module in expert_modules(model).items():
        _check_supported(name, module)
        for parameter in [n for n, _ in module.named_parameters(recurse=False)]:
            module.register_parameter(parameter, None)
        # Nothing is left in it for transformers to initialise.
        module._is_hf_initialized = True
        module.moespac_layer = _layer_of(name)
        layers.append(module.moespac_layer)
    return tuple(sorted(layers))


def _experts_forward(module, hidden, top_k_index, top_k_weights) -> torch.Tensor:
    return _current.get()(module.moespac_layer, hidden, top_k_index, top_k_weights)


def _layer_of(module_name: str) -> int:
    numbers = re.findall(r"\.(\d+)\.", module_name)
    if len(numbers) != 1:
        raise UnsupportedExperts(f"{module_name}: cannot tell the layer of these experts from their name")
    return int(numbers[0])


def _check_supported(name: str, module: nn.Module) -> None:
    lacks = [
        text
        for wrong, text in (
            (not module.has_gate, "experts without a gate"),
            (module.has_bias, "experts with biases"),
            (module.has_post_expert_norm, "a norm after each expert"),
            (type(module)._apply_gate is not _default_apply_gate, "a gate other than act(gate) * up"),
        )
        if wrong
    ]
    if lacks:
        raise UnsupportedExperts(
            f"{name} ({type(module).__name__}) has {' and '.join(lacks)}, which moespac cannot compute yet; "
            "choose a model whose experts compute down(act(gate(x)) * up(x))"
        )
