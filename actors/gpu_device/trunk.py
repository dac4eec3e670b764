"""The target model without its routed experts, and the dense draft: Hugging Face checkpoints through transformers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from ...errors import UserError
from ..prefetcher.checkpoint import open_checkpoint
from .attention import use_grouped_attention
from .hook import IMPLEMENTATION, detach_experts, register
from .linears import use_kernels


class TrunkError(UserError, ValueError):
    """The checkpoint and the model's architecture do not fit together; says which tensors."""


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to run."""

    model: PreTrainedModel
    device: torch.device
    vocab_size: int
    """Width of its logits."""
    context_length: int
    """Most positions it was made for."""
    eos_token_ids: tuple[int, ...]


def load_trunk(directory: Path, dtype: torch.dtype, device: torch.device, trunk_format: str = "stored") -> LoadedModel:
    """The target from `directory`, its routed experts left out: they are neither read nor ever allocated.

    Weights are cast to `dtype`; on the CPU, those of linear layers are then kept in `trunk_format`. Raises TrunkError
    where tensors are missing, superfluous, of the wrong shape or beyond `trunk_format`, CheckpointError where the files
    are damaged or the experts' arithmetic is not ours.
    """
    checkpoint = open_checkpoint(directory)
    register()
    config = AutoConfig.from_pretrained(directory)
    with _no_progress_bar():
        # transformers builds on the meta device, then loads what the state dict has: going through its own
        # loader means that names are converted, embeddings tied and buffers made just as in the reference.
        model, report = _without_experts(config).from_pretrained(
            None,
            config=config,
            state_dict=dict(checkpoint.trunk_tensors()),
            dtype=dtype,
            attn_implementation="eager",
            experts_implementation=IMPLEMENTATION,
            output_loading_info=True,
        )
    _check_complete(model, report, directory)
    return _ready(model, directory, device, None if trunk_format == "stored" else trunk_format)


def load_draft(directory: Path, dtype: torch.dtype, device: torch.device) -> LoadedModel:
    """A dense draft model, whole."""
    with _no_progress_bar():
        model, report = AutoModelForCausalLM.from_pretrained(
            directory, dtype=dtype, attn_implementation="eager", output_loading_info=True
        )
    _check_complete(model, report, directory)
    return _ready(model, directory, device)


def _without_experts(config) -> type[PreTrainedModel]:
    """The architecture's own class, except that a new model has no routed experts."""
    architecture = AutoModelForCausalLM._model_mapping[type(config)]

    def __init__(self, config, *args, **kwargs):
        architecture.__init__(self, config, *args, **kwargs)
        detach_experts(self)

    # transformers tells its own classes from users' by their module, and treats them differently in loading.
    return type(architecture.__name__, (architecture,), {"__init__": __init__, "__module__": architecture.__module__})


def _check_complete(model: PreTrainedModel, report: dict, directory: Path) -> None:
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report.get(kind):
            names = sorted(str(key) for key in report[kind])
            shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            raise TrunkError(
                f"{directory}: {kind.removesuffix('_keys')} tensors for {type(model).__name__}: {shown}; "
                "config.json and the safetensors files do not belong together, fetch the checkpoint again"
            )
    unmade = [name for name, tensor in _tensors(model) if tensor.is_meta]
    if unmade:
        raise TrunkError(f"{directory}: no values for {', '.join(unmade[:3])} of {type(model).__name__}")


def _tensors(model: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


def _ready(model: PreTrainedModel, directory: Path, device: torch.device, format: str | None = None) -> LoadedModel:
    model = model.to(device).eval().requires_grad_(False)
    if device.type == "cpu":
        try:
            use_kernels(model, format)
        except ValueError as error:
            raise TrunkError(f"{directory}: {error}") from error
        use_grouped_attention(model)
    config = model.config.get_text_config()
    return LoadedModel(
        model=model,
        device=device,
        vocab_size=config.vocab_size,
        context_length=config.max_position_embeddings,
        eos_token_ids=_eos_token_ids(directory, config),
    )


def _eos_token_ids(directory: Path, config) -> tuple[int, ...]:
    """generation_config.json is what `generate` obeys; config.json stands in where there is none."""
    eos = None
    if (directory / "generation_config.json").exists():
        eos = GenerationConfig.from_pretrained(directory).eos_token_id
    eos = getattr(config, "eos_token_id", None) if eos is None else eos
    return () if eos is None else tuple(eos) if isinstance(eos, list | tuple) else (eos,)


class _no_progress_bar:
    """transformers' own bar would be drawn into an actor's log."""

    def __enter__(self) -> None:
        self._was_on = transformers_logging.is_progress_bar_enabled()
        transformers_logging.disable_progress_bar()

    def __exit__(self, *_) -> None:
        if self._was_on:
            transformers_logging.enable_progress_bar()
