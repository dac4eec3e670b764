"""The door from transformers to our experts: an experts implementation that asks the executor of the current pass.

transformers hands a registered function the experts module, the hidden states and the router's choice, but no
layer index and no request; the index is kept on the module, the pass in a context variable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from ...errors import UserError
from ..prefetcher.families import expert_modules, layer_of

IMPLEMENTATION = "moespac"

LayerExperts = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(layer, hidden [T, H], top_k_index [T, k], top_k_weights [T, k]) -> [T, H]"""

_current: ContextVar[LayerExperts] = ContextVar("moespac_layer_experts")


class UnsupportedExperts(UserError, ValueError):
    """The model keeps routed experts where they belong to no layer."""


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


def detach_experts(model: nn.Module) -> tuple[int, ...]:
    """Takes the routed experts' parameters out of `model` and notes each module's layer; returns the layers.

    To be called while the model is still on the meta device: nothing was allocated, nothing is freed. Whether the
    experts can be computed is not asked here: whoever opens the checkpoint has been told.
    """
    layers = []
    for name, module in expert_modules(model).items():
        layer = layer_of(name)
        if layer is None:
            raise UnsupportedExperts(f"{name}: cannot tell the layer of these experts from their name")
        for parameter in [n for n, _ in module.named_parameters(recurse=False)]:
            module.register_parameter(parameter, None)
        for child in [n for n, m in module.named_children() if any(True for _ in m.parameters())]:
            setattr(module, child, None)  # the norm after each expert
        # Nothing is left in it for transformers to initialise.
        module._is_hf_initialized = True
        module.moespac_layer = layer
        layers.append(layer)
    return tuple(sorted(layers))


def _experts_forward(module, hidden, top_k_index, top_k_weights) -> torch.Tensor:
    return _current.get()(module.moespac_layer, hidden, top_k_index, top_k_weights)
