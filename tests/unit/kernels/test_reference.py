"""The torch reference against transformers' own eager experts."""

import numpy as np
import pytest
import torch
from transformers import Qwen3MoeConfig
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

from moespac.kernels.layout import ExpertLayout
from moespac.kernels.reference import expert_rows

HIDDEN, INTERMEDIATE, EXPERTS = 96, 40, 3


def transformers_experts(dtype: torch.dtype) -> Qwen3MoeExperts:
    config = Qwen3MoeConfig(
        hidden_size=HIDDEN, moe_intermediate_size=INTERMEDIATE, num_experts=EXPERTS, num_experts_per_tok=1
    )
    config._experts_implementation = "eager"
    experts = Qwen3MoeExperts(config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in experts.parameters():
            parameter.normal_(0, 0.2, generator=generator)
    return experts.to(dtype).requires_grad_(False)


def block_of(experts: Qwen3MoeExperts, expert: int) -> np.ndarray:
    parts = [experts.gate_up_proj[expert].flatten(), experts.down_proj[expert].flatten()]
    return torch.cat(parts).view(torch.uint8).numpy()


@pytest.mark.parametrize("tokens", [1, 2, 5, 64])
@pytest.mark.parametrize(
    "stored, computed",
    [("float32", "float32"), ("bfloat16", "float32"), ("bfloat16", "bfloat16"), ("float16", "float16")],
)
def test_rows_equal_transformers_eager_bit_for_bit(stored: str, computed: str, tokens: int) -> None:
    layout = ExpertLayout(HIDDEN, INTERMEDIATE, stored, "silu")
    experts = transformers_experts(layout.torch_dtype)
    compute = getattr(torch, computed)
    generator = torch.Generator().manual_seed(tokens)
    hidden = torch.randn(tokens, HIDDEN, generator=generator).to(compute)
    router = torch.rand(tokens, generator=generator).to(compute)
    blocks = [block_of(experts, expert) for expert in range(EXPERTS)]
    experts.to(compute)
    for expert, block in enumerate(blocks):
        rows = expert_rows(layout, layout.weights(block), hidden, router)
        expected = experts(hidden, torch.full((tokens, 1), expert), router[:, None])
        assert rows.dtype == compute
        assert torch.equal(rows, expected)


def test_activation_is_the_models_own() -> None:
    silu = ExpertLayout(HIDDEN, INTERMEDIATE, "float32", "silu")
    gelu = ExpertLayout(HIDDEN, INTERMEDIATE, "float32", "gelu")
    block = block_of(transformers_experts(torch.float32), 0)
    hidden, router = torch.randn(4, HIDDEN, generator=torch.Generator().manual_seed(0)), torch.ones(4)
    weights = gelu.weights(block)
    gate, up = (hidden @ weights.gate_up.T).chunk(2, dim=-1)
    expected = (torch.nn.functional.gelu(gate) * up) @ weights.down.T
    torch.testing.assert_close(expert_rows(gelu, weights, hidden, router), expected)
    assert not torch.allclose(expert_rows(silu, weights, hidden, router), expected)
