"""What a model's passes over few tokens leave to torch: its routers' products, and its threads."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch.nn import functional as F
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from moespac.actors.gpu_device.linears import FEW_TOKENS, PackedWeight, use_kernels
from moespac.kernels.cpu import library

pytestmark = pytest.mark.skipif(library.unavailable() is not None, reason="no CPU kernels")


@pytest.fixture(scope="module")
def plain():
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=64,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        intermediate_size=32,
        moe_intermediate_size=32,
        num_experts=8,
        num_experts_per_tok=2,
    )
    return Qwen3MoeForCausalLM(config).eval().requires_grad_(False)


@pytest.mark.parametrize("tokens", [1, FEW_TOKENS, FEW_TOKENS + 1])
def test_routers_multiply_through_the_kernels(plain, tokens):
    model = deepcopy(plain)
    use_kernels(model, None)
    router, reference = model.model.layers[0].mlp.gate, plain.model.layers[0].mlp.gate
    calls, packed = [], router.weight.packed
    router.weight.packed = lambda x: calls.append(x.shape[0]) or packed(x)
    router.weight.packed.in_features = packed.in_features
    x = torch.randn(tokens, 64)
    with torch.inference_mode():
        logits, weights, chosen = router(x)
        expected_logits, expected_weights, expected_chosen = reference(x)
    assert calls == ([tokens] if tokens <= FEW_TOKENS else [])
    torch.testing.assert_close(logits, expected_logits, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(weights, expected_weights, rtol=1e-5, atol=1e-6)
    assert torch.equal(chosen, expected_chosen)


def test_a_packed_weight_is_otherwise_an_ordinary_parameter(plain):
    model = deepcopy(plain)
    use_kernels(model, None)
    weight, reference = model.model.layers[0].mlp.gate.weight, plain.model.layers[0].mlp.gate.weight
    assert isinstance(weight, PackedWeight) and isinstance(weight, torch.nn.Parameter)
    assert type(weight * 2) is torch.Tensor and torch.equal(weight * 2, reference * 2)
    assert model.state_dict().keys() == plain.state_dict().keys()
    with torch.inference_mode():
        wide = F.linear(torch.ones(1, 64, dtype=torch.float64), weight.double())
    torch.testing.assert_close(wide, F.linear(torch.ones(1, 64, dtype=torch.float64), reference.double()))


@pytest.mark.parametrize("tokens", [1, FEW_TOKENS, FEW_TOKENS + 1])
def test_torch_computes_few_tokens_on_one_thread_and_has_its_threads_back_afterwards(plain, tokens):
    model, before = deepcopy(plain), torch.get_num_threads()
    use_kernels(model, None)
    seen = []
    model.model.layers[0].register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
    torch.set_num_threads(2)
    try:
        with torch.inference_mode():
            model(torch.zeros(1, tokens, dtype=torch.long))
        assert seen == [1 if tokens <= FEW_TOKENS else 2]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_threads_come_back_after_a_pass_that_fails(plain):
    model, before = deepcopy(plain), torch.get_num_threads()
    use_kernels(model, None)
    torch.set_num_threads(2)
    try:
        with torch.inference_mode(), pytest.raises(IndexError):
            model(torch.tensor([[1000]]))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
