"""Every kind of experts that transformers marks as replaceable: recognised, and computed as its own module does."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers.integrations import use_experts_implementation

from moespac.actors.core import ExpertKey
from moespac.actors.prefetcher.checkpoint import Checkpoint, CheckpointError
from moespac.actors.prefetcher.expert_blocks import Deviation, block_pieces
from moespac.actors.prefetcher.families import ExpertsDescription, describe_module
from moespac.actors.prefetcher.safetensors_files import read_headers
from moespac.kernels.experts import ExpertWork
from moespac.kernels.reference import TorchExperts

HIDDEN, INNER, EXPERTS, TOP_K, TOKENS = 48, 24, 4, 2, 21
SIZES = {
    "hidden_size": HIDDEN,
    "moe_hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "moe_intermediate_size": INNER,
    "num_experts": EXPERTS,
    "n_routed_experts": EXPERTS,
    "num_local_experts": EXPERTS,
    "moe_num_experts": EXPERTS,
    "_experts_implementation": "eager",
}
# family and its prefix of class names: gate, activation
RECOGNISED = {
    ("qwen3_moe", "Qwen3Moe"): ("glu", "silu"),
    ("deepseek_v2", "DeepseekV2"): ("glu", "silu"),
    ("lfm2_moe", "Lfm2Moe"): ("glu", "silu"),
    ("beam", "Beam"): ("glu", "silu"),
    ("gemma4", "Gemma4Text"): ("glu", "gelu_pytorch_tanh"),
    ("aria", "Aria"): ("glu", "silu"),
    ("muse_spark", "MuseSpark"): ("glu", "silu"),
    ("nemotron_h", "NemotronH"): ("none", "relu2"),
    ("gpt_oss", "GptOss"): ("clamped_sigmoid", "silu"),
    ("openai_privacy_filter", "OpenAIPrivacyFilter"): ("clamped_sigmoid", "silu"),
    ("minimax_m3_vl", "MiniMaxM3VL"): ("clamped_sigmoid", "silu"),
    ("deepseek_v4", "DeepseekV4"): ("clamped", "silu"),
    ("hy_v4", "HYV4"): ("clamped", "silu"),
    ("glm5_next", "Glm5NextText"): ("clamped", "silu"),
    ("step3p7", "Step3p7"): ("clamped_after", "silu"),
}


def experts_module(family: str, prefix: str, limit: float = 1.5, seed: int = 0) -> nn.Module:
    """transformers' own module with random float32 weights, made so large that clamps matter."""
    modeling = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    configs = importlib.import_module(f"transformers.models.{family}.configuration_{family}")
    names = (f"{prefix}TextConfig", f"{prefix}Config")
    config = next(getattr(configs, name) for name in names if hasattr(configs, name))()
    for name, value in (SIZES | {"swiglu_limit": limit}).items():
        setattr(config, name, value)
    kind = getattr(modeling, f"{prefix}Experts")
    if family == "step3p7":  # its limits vary by layer, and transformers does not mark it: only its formula matters
        experts = use_experts_implementation(type(kind.__name__, (kind,), {}))(config, swiglu_limit=limit)
    else:
        experts = kind(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in experts.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    return experts.requires_grad_(False)


def on_disk(experts: nn.Module, path, single: bool = False, layer: str = "model.layers.0.mlp.experts") -> Checkpoint:
    """`experts` as a checkpoint's only layer, fused or each expert with tensors of its own."""
    tensors = {}
    for name, value in experts.state_dict().items():
        if name.startswith(("gate_up_proj", "up_proj", "down_proj")) and single:
            stem, suffix = (name[:-5], "bias") if name.endswith("_bias") else (name, "weight")
            for expert, part in enumerate(value):
                pieces = zip(("gate_proj", "up_proj"), part.chunk(2), strict=True) if "gate" in stem else [(stem, part)]
                for piece, rows in pieces:
                    tensors[f"{layer}.{expert}.{piece}.{suffix}"] = rows.contiguous()
        else:
            tensors[f"{layer}.{name}"] = value
    save_file(tensors, path / "model.safetensors")
    kind = describe_module(path / "config.json", experts.config.model_type, layer, experts)
    return Checkpoint(path, read_headers(path), ExpertsDescription(experts.config.model_type, (0,), TOP_K, kind))


def routed(experts: nn.Module, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    hidden = (2 * torch.randn(TOKENS, HIDDEN, generator=generator)).to(dtype)
    choice = torch.rand(TOKENS, EXPERTS, generator=generator).topk(TOP_K)
    return hidden, choice.indices, choice.values.to(dtype)


def computed(checkpoint: Checkpoint, hidden, index, weights, dtype: torch.dtype) -> torch.Tensor:
    """What the torch kernel makes of the checkpoint's experts, in the blocks of a store."""
    kernel, out = TorchExperts(checkpoint.layout, dtype), torch.zeros(hidden.shape, dtype=torch.float32)
    for expert in range(EXPERTS):
        parts = checkpoint.expert(ExpertKey(0, expert))
        block = np.concatenate(list(block_pieces(checkpoint.layout, parts, Deviation())))
        tokens, slots = torch.where(index == expert)
        out.index_add_(0, tokens, kernel.rows(hidden, [ExpertWork(block, tokens, weights[tokens, slots])]))
    return out


@pytest.mark.parametrize(("family", "prefix"), RECOGNISED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_experts_are_computed_as_by_their_own_module(family, prefix, dtype, tmp_path):
    experts = experts_module(family, prefix).to(dtype)
    checkpoint = on_disk(experts, tmp_path)
    assert (checkpoint.layout.gate, checkpoint.layout.activation) == RECOGNISED[family, prefix]
    hidden, index, weights = routed(experts, dtype)
    expected = experts(hidden, index, weights).float()
    ours = computed(checkpoint, hidden, index, weights, dtype)
    # Clamping at another place would change the numbers by far more than this.
    error = float((ours - expected).norm() / expected.norm())
    assert error < (1e-6 if dtype == torch.float32 else 1e-2), error


@pytest.mark.parametrize(("family", "prefix"), [("qwen3_moe", "Qwen3Moe"), ("nemotron_h", "NemotronH")])
def test_experts_with_tensors_of_their_own_are_the_same(family, prefix, tmp_path):
    fused = on_disk(experts_module(family, prefix), tmp_path)
    (tmp_path / "single").mkdir()
    single = on_disk(experts_module(family, prefix), tmp_path / "single", single=True)
    for expert in range(EXPERTS):
        ours, theirs = single.expert(ExpertKey(0, expert)), fused.expert(ExpertKey(0, expert))
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_limit_that_is_never_reached_is_no_limit(tmp_path):
    assert on_disk(experts_module("step3p7", "Step3p7", float("inf")), tmp_path).layout.gate == "glu"


def test_a_gate_of_its_own_is_refused_by_name(tmp_path):
    with pytest.raises(CheckpointError, match=r"inkling2.*Inkling2Experts.*gating function of their own") as caught:
        on_disk(experts_module("inkling2", "Inkling2"), tmp_path)
    assert caught.value.remedy in str(caught.value)


def test_a_norm_of_its_own_is_refused_by_name(tmp_path):
    experts = experts_module("muse_spark", "MuseSpark")
    experts.post_expert_norm = nn.RMSNorm(HIDDEN, eps=1e-6)
    with pytest.raises(CheckpointError, match=r"muse_spark.*norm after each expert \(RMSNorm\)"):
        on_disk(experts, tmp_path)
