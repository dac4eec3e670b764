"""Whole models whose experts are computed behind the hook give the logits of transformers' eager code."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import make_deepseek_v2, make_gpt_oss, make_qwen3_moe
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from moespac.actors.core import ExpertKey
from moespac.actors.gpu_device.hook import experts_computed_by
from moespac.actors.gpu_device.trunk import load_trunk
from moespac.actors.prefetcher.checkpoint import open_checkpoint
from moespac.actors.prefetcher.expert_blocks import Deviation, block_pieces
from moespac.kernels.experts import ExpertWork
from moespac.kernels.reference import TorchExperts

MAKERS = {"qwen3_moe": make_qwen3_moe, "deepseek_v2": make_deepseek_v2, "gpt_oss": make_gpt_oss}
# Model types with another kind of experts or other names on disk, and what their configs need to be small.
OTHERS = {
    "nemotron_h": {"mamba_num_heads": 4, "mamba_head_dim": 8, "n_groups": 1, "ssm_state_size": 8},
    "deepseek_v4": {},
    "minimax_m3_vl_text": {},
    "aria_text": {"moe_topk": 2},
    "hy_v4": {},
    "granitemoe": {"intermediate_size": 16},
    "granitemoeshared": {"intermediate_size": 16, "shared_intermediate_size": 24},
}
SMALL = {
    "vocab_size": 320,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 64,
    "moe_intermediate_size": 16,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
}


def make_other(path: Path, model_type: str) -> Path:
    kind = CONFIG_MAPPING[model_type]
    known = kind()
    config = kind(**{k: v for k, v in SMALL.items() if hasattr(known, k)} | OTHERS[model_type])
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".experts." in name:
                parameter.normal_(0, 0.3)
    model.save_pretrained(path)
    return path


class Executor:
    """Computes a layer's experts with the torch kernel, from blocks as a store has them."""

    def __init__(self, path: Path) -> None:
        self.checkpoint = open_checkpoint(path)
        self.kernel = TorchExperts(self.checkpoint.layout, torch.float32)
        self.calls: set[int] = set()

    def __call__(self, layer: int, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        self.calls.add(layer)
        out = torch.zeros_like(hidden)
        for expert in index.unique().tolist():
            parts = self.checkpoint.expert(ExpertKey(layer, expert))
            pieces = block_pieces(self.checkpoint.layout, parts, Deviation())
            block = torch.cat([torch.from_numpy(piece.copy()) for piece in pieces])
            tokens, slots = torch.where(index == expert)
            out.index_add_(0, tokens, self.kernel.rows(hidden, [ExpertWork(block, tokens, weights[tokens, slots])]))
        return out


@pytest.mark.parametrize("family", [*MAKERS, *OTHERS])
def test_logits_behind_the_hook_are_those_of_eager_code(family: str, tmp_path: Path) -> None:
    path = MAKERS[family](tmp_path) if family in MAKERS else make_other(tmp_path, family)
    eager = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
    ).eval()
    tokens = torch.randint(3, 320, (1, 24), generator=torch.Generator().manual_seed(0))
    trunk = load_trunk(path, torch.float32, torch.device("cpu")).model
    executor = Executor(path)
    with torch.inference_mode():
        expected = eager(tokens, use_cache=False).logits
        with experts_computed_by(executor):
            logits = trunk(tokens, use_cache=False).logits
    assert executor.calls == set(executor.checkpoint.shape.layer_ids)
    # Logits are of the order of 1; experts left out or computed otherwise move them by more than 1e-2.
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_nothing_of_the_experts_is_left_in_the_trunk(tmp_path: Path) -> None:
    trunk = load_trunk(make_gpt_oss(tmp_path), torch.float32, torch.device("cpu")).model
    assert not [name for name, _ in trunk.named_parameters() if ".experts." in name]
