"""What transformers knows of a model's routed experts: where they are, their shape, how they compute.

The model is built on the meta device (no memory, some 50 ms), so that every family that transformers implements with
its experts interface is read from the source of truth; what the expert kernels cannot compute is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig
from transformers.activations import ACT2FN

from .safetensors_files import CheckpointError

_LAYER = re.compile(r"\blayers\.(\d+)\.")
_TOP_K = ("num_experts_per_tok", "num_experts_per_token", "moe_top_k", "moe_topk", "top_k_experts")
_ACTIVATION = ("hidden_act", "hidden_activation", "activation_function")
_SUPPORTED = "supported are gated experts without biases, gate and up rows concatenated, as in Qwen3-MoE or Mixtral"


@dataclass(frozen=True)
class ExpertsDescription:
    """Routed experts of one model. `layer_ids`: layers that have them, ascending."""

    model_type: str
    layer_ids: tuple[int, ...]
    n_experts: int
    top_k: int
    hidden_size: int
    intermediate_size: int
    activation: str
    """Name in transformers' ACT2FN."""


def read_config(directory: Path) -> PreTrainedConfig:
    """The checkpoint's configuration. Raises CheckpointError when it is missing or of no known model."""
    file = directory / "config.json"
    if not directory.is_dir():
        raise CheckpointError(
            directory, "no such model directory", "give the path of a Hugging Face checkpoint directory"
        )
    if not file.is_file():
        raise CheckpointError(file, "missing", "a checkpoint directory needs its config.json")
    try:
        return AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except (ValueError, KeyError, OSError, TypeError) as error:
        raise CheckpointError(
            file, f"transformers cannot read it ({error})", "use a model that this transformers knows"
        ) from error


def describe_experts(directory: Path) -> ExpertsDescription:
    """Raises CheckpointError for a model without routed experts, or with experts that cannot be computed here."""
    file, config = directory / "config.json", read_config(directory)
    if getattr(config, "quantization_config", None):
        raise CheckpointError(file, "the checkpoint is quantised", "use its bfloat16, float16 or float32 original")
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise CheckpointError(
            file, f"model type {config.model_type} is no causal language model ({error})", _SUPPORTED
        ) from error
    # `is_concatenated` is set on every experts module by the decorator that makes it replaceable.
    found = [(name, m) for name, m in model.named_modules() if hasattr(m, "is_concatenated")]
    if not found:
        raise CheckpointError(
            file,
            f"model type {config.model_type} has no routed experts that can be replaced",
            "give a Mixture-of-Experts checkpoint as `target`",
        )
    layers = {}
    for name, experts in found:
        match = _LAYER.search(name)
        if match is None or int(match[1]) in layers:
            raise CheckpointError(file, f"experts at {name} belong to no layer of their own", _SUPPORTED)
        layers[int(match[1])] = _one_layer(file, config, name, experts)
    kinds = set(layers.values())
    if len(kinds) > 1:
        raise CheckpointError(file, "layers have experts of different number or shape", _SUPPORTED)
    n_experts, hidden, inner, activation = kinds.pop()
    top_k = _first(config, _TOP_K)
    if not isinstance(top_k, int) or not 1 <= top_k <= n_experts:
        raise CheckpointError(
            file, f"experts per token is {top_k} of {n_experts}", f"set {_TOP_K[0]} to between 1 and {n_experts}"
        )
    return ExpertsDescription(config.model_type, tuple(sorted(layers)), n_experts, top_k, hidden, inner, activation)


def _one_layer(file: Path, config: PreTrainedConfig, name: str, experts: torch.nn.Module) -> tuple[int, int, int, str]:
    """(experts, hidden size, intermediate size, activation) of one experts module."""
    own_gate = type(experts)._apply_gate.__module__ != "transformers.integrations.moe"
    unsupported = {
        "biases": experts.has_bias,
        "transposed weights": experts.is_transposed,
        "interleaved gate and up rows": not experts.is_concatenated,
        "no gate": not experts.has_gate,
        "a norm after each expert": experts.has_post_expert_norm,
        "a gating function of its own": own_gate,
    }
    for what, present in unsupported.items():
        if present:
            raise CheckpointError(file, f"experts of {config.model_type} have {what}", _SUPPORTED)
    parameters = {key: tuple(value.shape) for key, value in experts.named_parameters()}
    gate_up, down = parameters.get("gate_up_proj"), parameters.get("down_proj")
    if set(parameters) != {"gate_up_proj", "down_proj"} or gate_up != (down[0], 2 * down[2], down[1]):
        raise CheckpointError(file, f"{name} has parameters {parameters}", _SUPPORTED)
    activation = _first(config, _ACTIVATION)
    if activation not in ACT2FN or type(ACT2FN[activation]) is not type(experts.act_fn):
        raise CheckpointError(file, f"{name} has activation {experts.act_fn}, the config {activation}", _SUPPORTED)
    return down[0], down[1], down[2], activation


def _first(config: PreTrainedConfig, names: tuple[str, ...]) -> object:
    return next((v for name in names if (v := getattr(config, name, None)) is not None), None)
