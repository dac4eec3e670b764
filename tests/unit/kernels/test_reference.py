"""The torch reference against transformers' own eager experts."""

import numpy as np
import pytest
import torch
from transformers import Qwen3MoeConfig
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

from moespac.kernels.experts import ExpertWork
from moespac.kernels.layout import FLOAT_FORMATS, GATES, ExpertLayout
from moespac.kernels.quantise import quantise
from moespac.kernels.reference import TorchExperts, expert_rows

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


def block_of(layout: ExpertLayout, **parts: torch.Tensor) -> np.ndarray:
    block = np.zeros(layout.expert_bytes, dtype=np.uint8)
    for name, view in layout.views(block).items():
        view.copy_(parts[name])
    return block


def random_parts(layout: ExpertLayout, seed: int = 7) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {part.name: torch.randn(part.shape, generator=generator) / 3 for part in layout.parts}


@pytest.mark.parametrize("tokens", [1, 2, 5, 64])
@pytest.mark.parametrize(
    "stored, computed",
    [("float32", "float32"), ("bfloat16", "float32"), ("bfloat16", "bfloat16"), ("float16", "float16")],
)
def test_rows_equal_transformers_eager_bit_for_bit(stored: str, computed: str, tokens: int) -> None:
    layout = ExpertLayout(HIDDEN, INTERMEDIATE, stored, "silu")
    experts = transformers_experts(FLOAT_FORMATS[stored])
    compute = getattr(torch, computed)
    generator = torch.Generator().manual_seed(tokens)
    hidden = torch.randn(tokens, HIDDEN, generator=generator).to(compute)
    router = torch.rand(tokens, generator=generator).to(compute)
    blocks = [
        block_of(layout, gate_up=experts.gate_up_proj[expert], down=experts.down_proj[expert])
        for expert in range(EXPERTS)
    ]
    experts.to(compute)
    for expert, block in enumerate(blocks):
        rows = expert_rows(layout, layout.weights(block), hidden, router)
        expected = experts(hidden, torch.full((tokens, 1), expert), router[:, None])
        assert rows.dtype == compute
        assert torch.equal(rows, expected)


def test_activation_is_the_models_own() -> None:
    silu = ExpertLayout(HIDDEN, INTERMEDIATE, "float32", "silu")
    gelu = ExpertLayout(HIDDEN, INTERMEDIATE, "float32", "gelu")
    block = block_of(silu, **random_parts(silu))
    hidden, router = torch.randn(4, HIDDEN, generator=torch.Generator().manual_seed(0)), torch.ones(4)
    weights = gelu.weights(block)
    gate, up = (hidden @ weights.gate_up.T).chunk(2, dim=-1)
    expected = (torch.nn.functional.gelu(gate) * up) @ weights.down.T
    torch.testing.assert_close(expert_rows(gelu, weights, hidden, router), expected)
    assert not torch.allclose(expert_rows(silu, weights, hidden, router), expected)


LIMIT, ALPHA = 0.7, 1.702


def by_hand(gate: str, g: np.ndarray, u: np.ndarray) -> np.ndarray:
    """The formulas in float64 numpy, written down once more."""
    silu = lambda x: x / (1 + np.exp(-x))  # noqa: E731
    if gate == "none":
        return silu(g)
    if gate == "glu":
        return silu(g) * u
    u = np.clip(u, -LIMIT, LIMIT)
    if gate == "clamped_after":
        return np.minimum(silu(g), LIMIT) * u
    g = np.minimum(g, LIMIT)
    return silu(g) * u if gate == "clamped" else (u + 1) * g / (1 + np.exp(-ALPHA * g))


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("norm_eps", [None, 1e-3])
@pytest.mark.parametrize("bias", [False, True])
def test_every_gate_bias_and_norm_by_hand(gate: str, bias: bool, norm_eps: float | None) -> None:
    layout = ExpertLayout(
        HIDDEN,
        INTERMEDIATE,
        "float32",
        "silu",
        gate=gate,
        gate_limit=LIMIT,
        gate_alpha=ALPHA,
        bias=bias,
        norm_eps=norm_eps,
    )
    parts = random_parts(layout)
    hidden = torch.randn(5, HIDDEN, generator=torch.Generator().manual_seed(1))
    router = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5])
    rows = expert_rows(layout, layout.weights(block_of(layout, **parts)), hidden, router)

    exact = {name: part.double().numpy() for name, part in parts.items()}
    first = hidden.double().numpy() @ exact["gate_up"].T + exact.get("gate_up_bias", 0)
    inner = by_hand(gate, first[:, :INTERMEDIATE], first[:, INTERMEDIATE:])
    out = inner @ exact["down"].T + exact.get("down_bias", 0)
    if norm_eps is not None:
        out = out * (1 + exact["norm"])
        out = out / np.sqrt((out**2).mean(-1, keepdims=True) + norm_eps)
    np.testing.assert_allclose(rows.numpy(), out * router.double().numpy()[:, None], rtol=1e-4, atol=1e-5)


def test_router_weights_of_float32_are_not_rounded_to_the_compute_type() -> None:
    layout = ExpertLayout(HIDDEN, INTERMEDIATE, "bfloat16", "silu")
    experts = transformers_experts(torch.bfloat16)
    block = block_of(layout, gate_up=experts.gate_up_proj[1], down=experts.down_proj[1])
    hidden = torch.randn(3, HIDDEN, generator=torch.Generator().manual_seed(0)).bfloat16()
    router = torch.tensor([0.1001, 0.2003, 0.3007])
    one = expert_rows(layout, layout.weights(block), hidden, torch.ones(3))
    assert torch.equal(expert_rows(layout, layout.weights(block), hidden, router), one.float() * router[:, None])


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_rows_come_expert_after_expert_in_float32(compute: torch.dtype) -> None:
    layout = ExpertLayout(HIDDEN, INTERMEDIATE, "float32", "silu")
    blocks = [block_of(layout, **random_parts(layout, seed)) for seed in range(3)]
    hidden = torch.randn(4, HIDDEN, generator=torch.Generator().manual_seed(2)).to(compute)
    work = [
        ExpertWork(blocks[2], torch.tensor([3, 0]), torch.tensor([0.5, 0.25])),
        ExpertWork(blocks[0], torch.tensor([1]), torch.tensor([2.0])),
    ]
    kernel = TorchExperts(layout, compute)
    rows = kernel.rows(hidden, work)
    assert (kernel.name, rows.dtype, tuple(rows.shape)) == ("torch", torch.float32, (3, HIDDEN))
    for item, mine in zip(work, rows.split([2, 1]), strict=True):
        expected = expert_rows(layout, layout.weights(item.block), hidden[item.token_rows], item.router_weights)
        assert torch.equal(mine, expected.float())
    assert kernel.rows(hidden, []).shape == (0, HIDDEN)


@pytest.mark.parametrize("format", ["int8", "int4-g32", "int4-g128"])
def test_quantised_experts_are_the_dequantised_ones(format: str) -> None:
    exact = ExpertLayout(128, 64, "float32", "silu")
    layout, parts = exact.stored_as(format, "float16"), random_parts(exact)
    stored = {}
    for name in ("gate_up", "down"):
        stored[name], stored[f"{name}_scales"] = quantise(parts[name], format, "float16")
    hidden = torch.randn(6, 128, generator=torch.Generator().manual_seed(4))
    work = (torch.arange(6), torch.ones(6))
    rows = TorchExperts(layout, torch.float32).rows(hidden, [ExpertWork(block_of(layout, **stored), *work)])
    expected = TorchExperts(exact, torch.float32).rows(hidden, [ExpertWork(block_of(exact, **parts), *work)])
    error = float((rows - expected).norm() / expected.norm())
    assert 0 < error < (0.02 if format == "int8" else 0.25)


def test_hidden_states_of_another_type_are_refused() -> None:
    layout = ExpertLayout(HIDDEN, INTERMEDIATE, "float32", "silu")
    with pytest.raises(ValueError, match=r"hidden: torch\.float32.*bfloat16"):
        TorchExperts(layout, torch.bfloat16).rows(torch.zeros(1, HIDDEN), [])
