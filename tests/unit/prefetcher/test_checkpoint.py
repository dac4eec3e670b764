import json
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_models import make_deepseek_v2, make_qwen3_dense

from moespac.actors.core import ExpertKey
from moespac.actors.prefetcher.checkpoint import CheckpointError, open_checkpoint, source_fingerprint

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
FAMILIES = {
    "mixtral": (
        transformers.MixtralConfig(**SMALL, intermediate_size=24, num_local_experts=4),
        "block_sparse_moe.experts.0.w1.weight",
    ),
    "olmoe": (
        transformers.OlmoeConfig(**SMALL, intermediate_size=24, num_experts=4, num_experts_per_tok=2),
        "mlp.experts.0.gate_proj.weight",
    ),
    "qwen2_moe": (
        transformers.Qwen2MoeConfig(
            **SMALL,
            intermediate_size=40,
            moe_intermediate_size=24,
            shared_expert_intermediate_size=16,
            num_experts=4,
            num_experts_per_tok=2,
            decoder_sparse_step=2,
        ),
        "mlp.experts.0.gate_proj.weight",
    ),
}


def experts_of(model):
    """The experts modules of an instantiated model by layer: transformers' own reading of the weights."""
    return {
        int(name.split("layers.")[1].split(".")[0]): module
        for name, module in model.named_modules()
        if hasattr(module, "is_concatenated")
    }


def assert_same_experts(checkpoint, model):
    oracle = experts_of(model)
    assert checkpoint.shape.layer_ids == tuple(sorted(oracle))
    for key in checkpoint.shape.keys():  # noqa: SIM118
        parts = checkpoint.expert(key)
        assert set(parts) == {"gate_up", "down"}
        assert torch.equal(parts["gate_up"], oracle[key.layer].gate_up_proj[key.expert])
        assert torch.equal(parts["down"], oracle[key.layer].down_proj[key.expert])


@pytest.mark.parametrize("family", FAMILIES)
def test_families_give_the_experts_that_transformers_loads(family, tmp_path):
    config, name = FAMILIES[family]
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).to(torch.float16).save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert any(tensor.endswith(name) for tensor in tensors), "transformers saves this family under other names now"
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert checkpoint.layout.format == "float16"
    assert (checkpoint.shape.n_experts, checkpoint.shape.top_k) == (4, 2)
    assert_same_experts(checkpoint, loaded)
    trunk = dict(checkpoint.trunk_tensors())
    assert set(trunk) == {tensor for tensor in tensors if ".experts." not in tensor}
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in trunk.items())


def test_deepseek_has_a_dense_layer_and_shared_experts_in_the_trunk(tmp_path):
    checkpoint = open_checkpoint(make_deepseek_v2(tmp_path))
    assert checkpoint.shape.layer_ids == (1, 2)
    assert_same_experts(checkpoint, transformers.AutoModelForCausalLM.from_pretrained(tmp_path))
    trunk = dict(checkpoint.trunk_tensors())
    assert "model.layers.0.mlp.gate_proj.weight" in trunk
    assert "model.layers.1.mlp.shared_experts.up_proj.weight" in trunk


def test_fused_experts(checkpoint, tmp_path):
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint)
    tensors = {name: t for name, t in model.state_dict().items() if name != "lm_head.weight"}
    assert any(name.endswith("experts.gate_up_proj") for name in tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    shutil.copy(checkpoint / "config.json", tmp_path)
    assert_same_experts(open_checkpoint(tmp_path), model)


def test_sharded(checkpoint, tmp_path):
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert_same_experts(open_checkpoint(tmp_path), model)


def test_opening_reads_headers_only(checkpoint):
    opened = open_checkpoint(checkpoint)
    assert opened.shape.layer_ids == (0, 1, 2)
    assert (opened.shape.n_experts, opened.shape.top_k, opened.shape.expert_bytes) == (8, 2, 3 * 32 * 16 * 2)
    assert (opened.layout.format, opened.layout.activation, opened.model_type) == ("bfloat16", "silu", "qwen3_moe")
    with pytest.raises(KeyError):
        opened.expert(ExpertKey(3, 0))


# ---- what is refused -------------------------------------------------------------------------------------------


def refusal(path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    assert str(caught.value.file) in str(caught.value) and caught.value.remedy in str(caught.value)
    return str(caught.value)


@pytest.fixture
def copy(checkpoint, tmp_path):
    return shutil.copytree(checkpoint, tmp_path / "copy")


def edit_config(path, **changes):
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | changes))


def edit_tensors(path, change):
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors")


def test_missing_directory(tmp_path):
    assert "no such model directory" in refusal(tmp_path / "nowhere")


def test_missing_config(copy):
    (copy / "config.json").unlink()
    assert "config.json: missing" in refusal(copy)


def test_unreadable_config(copy):
    (copy / "config.json").write_text("{")
    assert "config.json" in refusal(copy)


def test_unknown_model_type(copy):
    edit_config(copy, model_type="no_such_model")
    assert "no_such_model" in refusal(copy)


def test_no_weights(copy):
    (copy / "model.safetensors").unlink()
    assert "has neither model.safetensors nor" in refusal(copy)


@pytest.mark.parametrize("keep", [4, 200, 0.5, -1])
def test_truncated(copy, keep):
    file = copy / "model.safetensors"
    whole = file.stat().st_size
    left = {4: 4, 200: 200, 0.5: whole // 2, -1: whole - 1}[keep]
    with file.open("r+b") as stream:
        stream.truncate(left)
    message = refusal(copy)
    assert str(file) in message and f"{left:,}" in message
    if keep in (0.5, -1):
        assert f"truncated: expected {whole:,} bytes" in message


def test_trailing_bytes(copy):
    with (copy / "model.safetensors").open("ab") as stream:
        stream.write(b"x")
    assert "too long" in refusal(copy)


def test_damaged_header(copy):
    with (copy / "model.safetensors").open("r+b") as stream:
        stream.seek(8)
        stream.write(b"x")
    assert "header is damaged" in refusal(copy)


def test_missing_shard_and_missing_tensor(checkpoint, tmp_path):
    transformers.AutoModelForCausalLM.from_pretrained(checkpoint).save_pretrained(tmp_path, max_shard_size="20KB")
    index = tmp_path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    name = "model.layers.1.mlp.experts.3.up_proj.weight"
    file = content["weight_map"][name]
    tensors = load_file(tmp_path / file)
    del tensors[name]
    save_file(tensors, tmp_path / file)
    assert f"tensor {name} is missing" in refusal(tmp_path)
    (tmp_path / file).unlink()
    assert f"{file}: named by model.safetensors.index.json but missing" in refusal(tmp_path)


def test_missing_expert(copy):
    edit_tensors(copy, lambda tensors: tensors.pop("model.layers.1.mlp.experts.3.up_proj.weight"))
    assert "layer 1, expert 3: no up weights found" in refusal(copy)


def test_wrong_shape(copy):
    name = "model.layers.2.mlp.experts.0.down_proj.weight"
    edit_tensors(copy, lambda tensors: tensors.update({name: torch.zeros(32, 8, dtype=torch.bfloat16)}))
    assert f"{name} has shape [32, 8], its config.json asks for [32, 16]" in refusal(copy)


def test_mixed_types(copy):
    name = "model.layers.2.mlp.experts.0.down_proj.weight"
    edit_tensors(copy, lambda tensors: tensors.update({name: tensors[name].float()}))
    assert "mixed types" in refusal(copy)


def test_unsupported_type(copy):
    def to_double(tensors):
        tensors.update({name: t.double() for name, t in tensors.items() if ".experts." in name})

    edit_tensors(copy, to_double)
    assert "type F64" in refusal(copy)


def test_expert_bias(copy):
    name = "model.layers.0.mlp.experts.0.gate_proj.bias"
    edit_tensors(copy, lambda tensors: tensors.update({name: torch.zeros(16, dtype=torch.bfloat16)}))
    assert f"{name} is not part of an expert of qwen3_moe" in refusal(copy)


def test_packed_experts(copy):
    name = "model.layers.0.mlp.experts.0.gate_proj.qweight"
    edit_tensors(copy, lambda tensors: tensors.update({name: torch.zeros(16, dtype=torch.bfloat16)}))
    assert f"{name} is of no known expert layout" in refusal(copy)


def test_quantised(copy):
    edit_config(copy, quantization_config={"quant_method": "fp8"})
    assert "quantised" in refusal(copy)


def test_dense_model(tmp_path):
    assert "has no routed experts" in refusal(make_qwen3_dense(tmp_path))


def test_gpt_oss_in_mxfp4_is_refused_with_a_remedy(tmp_path):
    transformers.GptOssConfig(num_hidden_layers=2).save_pretrained(tmp_path)
    edit_config(tmp_path, quantization_config={"quant_method": "mxfp4"})
    assert "quantised" in (message := refusal(tmp_path)) and "Mxfp4Config(dequantize=True)" in message


# ---- fingerprints ----------------------------------------------------------------------------------------------


def test_fingerprint_follows_the_content_alone(copy, checkpoint):
    assert source_fingerprint(copy) == source_fingerprint(checkpoint)
    (copy / "tokenizer.json").unlink()  # not read by us
    assert source_fingerprint(copy) == source_fingerprint(checkpoint)
    with (copy / "model.safetensors").open("r+b") as stream:
        stream.seek(-1, 2)
        last = stream.read(1)
        stream.seek(-1, 2)
        stream.write(bytes([last[0] ^ 1]))
    assert source_fingerprint(copy) != source_fingerprint(checkpoint)


def test_fingerprint_of_large_files_samples_the_weights(tmp_path):
    """Weights trained on: same header, same size, other values."""
    fingerprints = []
    for value in (0.25, 0.26):
        path = tmp_path / str(value)
        path.mkdir()
        (path / "config.json").write_text("{}")
        save_file({"weights": torch.full((17 * 2**20,), value)}, path / "model.safetensors")
        fingerprints.append(source_fingerprint(path))
    assert fingerprints[0] != fingerprints[1]
