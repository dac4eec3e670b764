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

from ...kernels.layout import ExpertLayout
from .arithmetic import Arithmetic, UnknownArithmetic, arithmetic_of
from .safetensors_files import CheckpointError

_LAYER = re.compile(r"\blayers\.(\d+)\.")
_TOP_K = ("num_experts_per_tok", "num_experts_per_token", "moe_top_k", "moe_topk", "moe_num_experts_per_tok",
          "top_k_experts", "moe_k", "num_selected_experts")  # fmt: skip
_SUPPORTED = "use a model whose routed experts are alike in all layers, such as Qwen3-MoE, DeepSeek or gpt-oss"
_DEQUANTISED = (
    "use its bfloat16, float16 or float32 original; of gpt-oss, whose original is MXFP4, one of the bfloat16 copies "
    "or what transformers saves after loading it with Mxfp4Config(dequantize=True)"
)


@dataclass(frozen=True)
class ExpertsKind:
    """What a model's layers of routed experts have in common."""

    n_experts: int
    hidden_size: int
    """Of the experts' input: narrower than the model where it projects first."""
    intermediate_size: int
    arithmetic: Arithmetic
    transposed: bool
    """Fused weights are [experts, inputs, outputs]."""
    interleaved: bool
    """Gate and up rows take turns in fused weights."""

    @property
    def first_rows(self) -> int:
        """Rows of an expert's first projection."""
        return self.layout("float32").gate_up_rows

    def layout(self, format: str) -> ExpertLayout:
        """The experts in a float format, in our own order."""
        how = self.arithmetic
        return ExpertLayout(
            self.hidden_size,
            self.intermediate_size,
            format,
            how.activation,
            gate=how.gate,
            gate_limit=how.limit,
            gate_alpha=how.alpha,
            bias=how.bias,
            norm_eps=how.norm_eps,
        )


@dataclass(frozen=True)
class ExpertsDescription:
    """Routed experts of one model. `layer_ids`: layers that have them, ascending."""

    model_type: str
    layer_ids: tuple[int, ...]
    top_k: int
    kind: ExpertsKind


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


def expert_modules(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """The modules with routed experts by name: those that transformers lets experts implementations compute."""
    # Set on every instance by the decorator that makes an experts class replaceable.
    return {name: module for name, module in model.named_modules() if hasattr(module, "is_concatenated")}


def layer_of(module_name: str) -> int | None:
    """The layer that a module belongs to, from its name; None where it belongs to none."""
    match = _LAYER.search(module_name)
    return None if match is None else int(match[1])


def describe_experts(directory: Path) -> ExpertsDescription:
    """Raises CheckpointError for a model without routed experts, or with experts that cannot be computed here."""
    file, config = directory / "config.json", read_config(directory)
    if getattr(config, "quantization_config", None):
        raise CheckpointError(file, "the checkpoint is quantised", _DEQUANTISED)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise CheckpointError(
            file, f"model type {config.model_type} is no causal language model ({error})", _SUPPORTED
        ) from error
    found = expert_modules(model)
    if not found:
        raise CheckpointError(
            file,
            f"model type {config.model_type} has no routed experts that can be replaced",
            "give a Mixture-of-Experts checkpoint as `target`",
        )
    layers: dict[int, ExpertsKind] = {}
    for name, experts in found.items():
        layer = layer_of(name)
        if layer is None or layer in layers:
            raise CheckpointError(file, f"experts at {name} belong to no layer of their own", _SUPPORTED)
        layers[layer] = describe_module(file, config.model_type, name, experts)
    first = next(iter(layers))
    for layer, kind in layers.items():
        if kind != layers[first]:
            raise CheckpointError(
                file,
                f"experts of layer {layer} differ in number, shape or arithmetic from those of layer {first}",
                _SUPPORTED,
            )
    n_experts = layers[first].n_experts
    top_k = _first(config.get_text_config(), _TOP_K)
    if not isinstance(top_k, int) or not 1 <= top_k <= n_experts:
        raise CheckpointError(
            file, f"experts per token is {top_k} of {n_experts}", f"set {_TOP_K[0]} to between 1 and {n_experts}"
        )
    return ExpertsDescription(config.model_type, tuple(sorted(layers)), top_k, layers[first])


def describe_module(file: Path, model_type: str, name: str, experts: torch.nn.Module) -> ExpertsKind:
    """Of one experts module, called `name`; its parameters may be on the meta device. Raises CheckpointError."""
    try:
        arithmetic = arithmetic_of(experts)
    except UnknownArithmetic as error:
        raise CheckpointError(
            file, f"experts of {model_type} ({type(experts).__name__} at {name}) {error}", _SUPPORTED
        ) from error
    shapes = {key: tuple(parameter.shape) for key, parameter in experts.named_parameters()}
    up_name, down = "gate_up_proj" if experts.has_gate else "up_proj", shapes.get("down_proj", ())
    if len(down) != 3:
        raise CheckpointError(file, f"{name} has parameters {shapes}", _SUPPORTED)
    n, hidden, inner = (down[0], down[2], down[1]) if experts.is_transposed else down
    rows = inner * (2 if experts.has_gate else 1)
    expected = {up_name: (n, hidden, rows) if experts.is_transposed else (n, rows, hidden), "down_proj": down}
    if experts.has_bias:
        expected |= {f"{up_name}_bias": (n, rows), "down_proj_bias": (n, hidden)}
    if experts.has_post_expert_norm:
        expected |= {"post_expert_norm.weight": (hidden,)}
    if shapes != expected:
        raise CheckpointError(file, f"{name} has parameters {shapes} instead of {expected}", _SUPPORTED)
    interleaved = experts.has_gate and not experts.is_concatenated
    return ExpertsKind(n, hidden, inner, arithmetic, experts.is_transposed, interleaved)


def _first(config: PreTrainedConfig, names: tuple[str, ...]) -> object:
    return next((v for name in names if (v := getattr(config, name, None)) is not None), None)
