"""Memory budgets of a deployment held against the model's shape: what is too small."""

from __future__ import annotations

from pathlib import Path

from ..actors.core import ModelShape
from ..actors.gpu_device.slots import ALIGNMENT
from ..actors.prefetcher.arena import round_up
from ..configs import CpuDeviceConfig, Deployment, Problem
from ..configs.units import format_size, show_size


def arena_block(shape: ModelShape) -> int:
    """Bytes one expert takes in a host arena: whole pages."""
    return round_up(shape.expert_bytes)


def slot_bytes(shape: ModelShape) -> int:
    """Bytes one expert takes in a device's slots."""
    return round_up(shape.expert_bytes, ALIGNMENT)


def check_budgets(deployment: Deployment, shape: ModelShape, kv_bytes_per_token: int) -> list[Problem]:
    """Budgets that cannot work with this model. `kv_bytes_per_token`: target and draft together."""
    gpu, prefetcher = deployment.gpu, deployment.prefetcher
    at = f"devices[{deployment.devices.index(gpu)}]"
    block = arena_block(shape)
    problems = []
    if 0 < gpu.expert_memory < slot_bytes(shape):
        problems.append(
            _too_small(f"{at}.expert_memory", gpu.expert_memory, slot_bytes(shape), "one expert", ", or to 0: no slots")
        )
    # A window holds the draft and the token the target adds; at least one prompt token precedes it.
    window = deployment.most_drafted + 2
    if gpu.kv_memory < window * kv_bytes_per_token:
        what = f"the {window} tokens of the shortest request ({show_size(kv_bytes_per_token)} a token)"
        problems.append(_too_small(f"{at}.kv_memory", gpu.kv_memory, window * kv_bytes_per_token, what))
    if prefetcher.host_memory < block:
        problems.append(_too_small("prefetcher.host_memory", prefetcher.host_memory, block, "one expert"))
    for i, device in enumerate(deployment.devices):
        if isinstance(device, CpuDeviceConfig) and device.memory is not None and device.memory < block:
            problems.append(_too_small(f"devices[{i}].memory", device.memory, block, "one expert"))
    return problems


def elsewhere_without_memory(deployment: Deployment) -> list[str]:
    """Workers that may be placed on another host than the prefetcher's, without memory for experts there."""
    home = deployment.prefetcher.placement
    return [
        worker.name
        for worker in deployment.workers
        if worker.placement != home and worker.memory is None and worker.arena != "own"
    ]


def experts_that_fit(budget: int, bytes_each: int, shape: ModelShape) -> int:
    """Experts that `budget` bytes hold, at most all of the model's."""
    return min(budget // bytes_each, shape.n_layers * shape.n_experts)


def kv_numbers_per_token(directory: Path) -> int:
    """Numbers cached per token by the model in `directory`: measured on the architecture without weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from ..actors.gpu_device.hook import IMPLEMENTATION, detach_experts, expert_modules, register
    from ..actors.gpu_device.kv import bytes_per_token
    from ..actors.gpu_device.trunk import LoadedModel

    register()
    config = AutoConfig.from_pretrained(directory)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, attn_implementation="eager", experts_implementation=IMPLEMENTATION
        )
    if expert_modules(model):
        detach_experts(model)
    text = config.get_text_config()
    loaded = LoadedModel(model, torch.device("meta"), text.vocab_size, text.max_position_embeddings, ())
    return bytes_per_token(loaded) // torch.float32.itemsize


def _too_small(key: str, value: int, need: int, what: str, alternative: str = "") -> Problem:
    return Problem(
        key,
        format_size(value),
        f"does not hold {what}: {show_size(need)} ({need:,} bytes)",
        f"set it to {format_size(need)} or more{alternative}",
    )
