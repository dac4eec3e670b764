"""A model whose linear layers go through our kernels computes what it computed before."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_device import CPU, reference_model
from tiny_models import VOCAB, make_deepseek_v2, make_qwen3_dense, make_qwen3_moe
from torch import nn
from transformers import PreTrainedModel, Qwen2MoeConfig, Qwen2MoeForCausalLM

from moespac.actors.gpu_device.linears import FEW_TOKENS, KernelLinear, QuantisedLinear, use_kernels
from moespac.actors.gpu_device.trunk import TrunkError, load_draft, load_trunk
from moespac.kernels.cpu import library
from moespac.kernels.quantise import dequantise, quantise

needs_library = pytest.mark.skipif(library.unavailable() is not None, reason=str(library.unavailable()))
QUANTISED = ("int8", "int4-g32", "int4-g128")
MAKERS = {"qwen3_moe": make_qwen3_moe, "deepseek_v2": make_deepseek_v2, "qwen3_dense": make_qwen3_dense}


def make_qwen2_moe() -> PreTrainedModel:
    """Biases on q, k and v, a shared expert behind a gate, and a head of its own."""
    torch.manual_seed(3)
    config = Qwen2MoeConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=24,
        num_experts=4,
        num_experts_per_tok=2,
        initializer_range=0.3,
        attn_implementation="eager",
        experts_implementation="eager",
    )
    model = Qwen2MoeForCausalLM(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.uniform_(-1, 1)
    return model


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, PreTrainedModel]:
    made = {name: reference_model(make(tmp_path_factory.mktemp(name))) for name, make in MAKERS.items()}
    return made | {"qwen2_moe": make_qwen2_moe()}


def layers_of(model: nn.Module) -> dict[str, nn.Linear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def logits(model: PreTrainedModel, tokens: int) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.arange(7, 7 + tokens)[None] * 3 % VOCAB, use_cache=False).logits


@needs_library
@pytest.mark.parametrize("tokens", [1, 5, 16, 17])
@pytest.mark.parametrize("family", [*MAKERS, "qwen2_moe"])
def test_logits_are_no_farther_than_torchs_from_those_in_float64(family, tokens, models):
    model = deepcopy(models[family])
    assert use_kernels(model, None) == len(layers_of(model)) > 0
    assert {type(layer) for layer in layers_of(model).values()} == {KernelLinear}
    exact = logits(deepcopy(models[family]).double(), tokens)
    ours, torchs = ((logits(each, tokens) - exact).norm() for each in (model, models[family]))
    # Rounding errors of two orders of addition: alike, neither always the smaller.
    assert ours <= 2 * torchs < 1e-5 * exact.norm()


@needs_library
@pytest.mark.parametrize("tokens", [1, 16, 17, 64, 65, 150])
@pytest.mark.parametrize("format", QUANTISED)
@pytest.mark.parametrize("family", ["qwen3_dense", "qwen2_moe"])
def test_logits_in_integer_formats_are_those_of_the_dequantised_model(family, format, tokens, models):
    model, dequantised = deepcopy(models[family]), deepcopy(models[family])
    use_kernels(model, format)
    for name, layer in layers_of(model).items():
        if isinstance(layer, QuantisedLinear):
            weight = dequantised.get_submodule(name).weight
            weight.data.copy_(dequantise(*quantise(weight, format), format, weight.shape[1]))
    got, wanted = logits(model, tokens), logits(dequantised, tokens)
    assert (got - wanted).norm() < 1e-3 * wanted.norm()
    assert (got - logits(models[family], tokens)).norm() > 1e-3 * wanted.norm()


@needs_library
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_with_a_bias_takes_any_leading_dimensions(dtype):
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(48, 40)).to(dtype).requires_grad_(False)
    ours, double = deepcopy(plain), deepcopy(plain).double()
    use_kernels(ours, None)
    for shape in ((48,), (1, 48), (2, 3, 48), (0, 48), (2, 20, 48)):
        given = torch.randn(shape).to(dtype)
        # Heads hand on transposed views.
        for view in (given, given.transpose(0, -2) if len(shape) > 1 else given):
            with torch.no_grad():
                got, exact = ours(view), double(view.double())
                if view.numel() > FEW_TOKENS * plain[0].in_features:
                    assert torch.equal(got, plain(view))
                    continue
            assert got.dtype == dtype
            # Half a step of bfloat16, which has 8 significant bits, and float32's rounding of sums: y is rounded once.
            step = 2**-8 if dtype == torch.bfloat16 else 1e-6
            torch.testing.assert_close(got.double(), exact, rtol=step, atol=1e-6)


@needs_library
def test_weights_are_shared_with_the_kernels_and_stay_parameters(models):
    model = deepcopy(models["qwen2_moe"])
    before = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    use_kernels(model, None)
    assert {name: tensor.data_ptr() for name, tensor in model.state_dict().items()} == before
    layer = model.model.layers[0].self_attn.o_proj
    layer.weight.zero_()
    with torch.no_grad():
        assert (layer(torch.randn(2, 32)) == 0).all()


@needs_library
def test_float_weights_of_quantised_layers_are_gone(models):
    model = deepcopy(models["qwen2_moe"])
    use_kernels(model, "int8")
    kept = {name for name, layer in layers_of(model).items() if type(layer) is KernelLinear}
    assert kept == {f"model.layers.{i}.mlp.shared_expert_gate" for i in range(2)}
    for name, layer in layers_of(model).items():
        assert (layer.weight is None) == (name not in kept)
    assert "lm_head.weight" not in model.state_dict()


@needs_library
def test_a_tied_head_stays_as_it_is_with_the_embedding(models):
    model = deepcopy(models["qwen3_moe"])
    use_kernels(model, "int8")
    assert type(model.lm_head) is KernelLinear and model.lm_head.weight is model.model.embed_tokens.weight
    assert type(model.model.layers[0].self_attn.q_proj) is QuantisedLinear


@needs_library
def test_gradients_come_from_torch(models):
    layer = deepcopy(models["qwen2_moe"].model.layers[0].self_attn.q_proj)
    plain = deepcopy(layer)
    use_kernels(nn.Sequential(layer), None)
    for module in (layer, plain):
        module.requires_grad_(True)
        module(torch.ones(2, 32)).sum().backward()
    assert type(layer) is KernelLinear and torch.equal(layer.weight.grad, plain.weight.grad)


def test_float16_stays_torchs(models):
    model = deepcopy(models["qwen3_dense"]).to(torch.float16)
    assert use_kernels(model, None) == use_kernels(model, "int8") == 0
    assert {type(layer) for layer in layers_of(model).values()} == {nn.Linear}


def test_nothing_changes_where_the_library_does_not_run(models, monkeypatch):
    def missing():
        raise library.LibraryError("no compiler")

    monkeypatch.setattr(library, "load", missing)
    model = deepcopy(models["qwen3_dense"])
    assert use_kernels(model, None) == 0
    with pytest.raises(ValueError, match=r"int8.*no compiler.*stored"):
        use_kernels(model, "int8")
    assert {type(layer) for layer in layers_of(model).values()} == {nn.Linear}


@needs_library
def test_trunk_and_draft_are_loaded_with_them(tmp_path):
    checkpoint, draft = make_qwen3_moe(tmp_path / "target"), make_qwen3_dense(tmp_path / "draft")
    for loaded, kind in (
        (load_trunk(checkpoint, torch.float32, CPU), KernelLinear),
        (load_trunk(checkpoint, torch.bfloat16, CPU, "int4-g32"), QuantisedLinear),
        (load_draft(draft, torch.bfloat16, CPU), KernelLinear),
    ):
        assert type(loaded.model.model.layers[0].self_attn.q_proj) is kind


@needs_library
def test_a_weight_that_is_not_finite_is_named_with_its_layer(tmp_path):
    checkpoint = make_qwen3_moe(tmp_path)
    tensors = load_file(checkpoint / "model.safetensors")
    tensors["model.layers.1.self_attn.k_proj.weight"][3, 0] = float("nan")
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TrunkError, match=r"model\.layers\.1\.self_attn\.k_proj.*row 3"):
        load_trunk(checkpoint, torch.float32, CPU, "int8")
