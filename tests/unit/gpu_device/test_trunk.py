"""The trunk is the reference model minus its experts, and those are never in memory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_device import CPU, reference_model
from tiny_models import make_deepseek_v2, make_qwen3_dense, make_qwen3_moe

from moespac.actors.gpu_device.hook import expert_modules
from moespac.actors.gpu_device.trunk import TrunkError, load_draft, load_trunk

MAKERS = {"qwen3_moe": make_qwen3_moe, "deepseek_v2": make_deepseek_v2}


def _tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return dict([*model.named_parameters(), *model.named_buffers()])


def _change(checkpoint: Path, change) -> Path:
    file = checkpoint / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    return checkpoint


@pytest.mark.parametrize("family", MAKERS)
def test_every_tensor_but_the_experts_is_the_references(family, tmp_path):
    checkpoint = MAKERS[family](tmp_path)
    loaded = load_trunk(checkpoint, torch.float32, CPU)
    ours, theirs = _tensors(loaded.model), _tensors(reference_model(checkpoint))
    assert theirs.keys() - ours.keys() == {name for name in theirs if ".mlp.experts." in name}
    for name, tensor in ours.items():
        assert not tensor.is_meta
        # Buffers such as rotary frequencies, which no checkpoint holds, are among them.
        assert tensor.dtype == theirs[name].dtype and torch.equal(tensor, theirs[name]), name
    assert any("inv_freq" in name for name in ours)


def test_embeddings_that_are_tied_share_memory(tmp_path):
    model = load_trunk(make_qwen3_moe(tmp_path), torch.float32, CPU).model
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_layers_are_noted_where_experts_are(tmp_path):
    model = load_trunk(make_deepseek_v2(tmp_path), torch.float32, CPU).model
    assert [module.moespac_layer for module in expert_modules(model).values()] == [1, 2]


def test_end_of_text_comes_from_the_generation_config(tmp_path):
    checkpoint = make_qwen3_moe(tmp_path)
    (checkpoint / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 4]}))
    loaded = load_trunk(checkpoint, torch.float32, CPU)
    assert loaded.eos_token_ids == (3, 4)
    assert loaded.context_length == 256
    (checkpoint / "generation_config.json").unlink()
    assert load_trunk(checkpoint, torch.float32, CPU).eos_token_ids == (0,)


def test_a_missing_tensor_is_named(tmp_path):
    checkpoint = _change(make_qwen3_moe(tmp_path), lambda t: t.pop("model.layers.1.self_attn.q_proj.weight"))
    with pytest.raises(TrunkError, match=r"missing.*model\.layers\.1\.self_attn\.q_proj\.weight"):
        load_trunk(checkpoint, torch.float32, CPU)


def test_a_superfluous_tensor_is_named(tmp_path):
    checkpoint = _change(make_qwen3_moe(tmp_path), lambda t: t.update({"model.surplus.weight": torch.zeros(2)}))
    with pytest.raises(TrunkError, match=r"unexpected.*model\.surplus\.weight"):
        load_trunk(checkpoint, torch.float32, CPU)


def test_a_draft_is_loaded_whole(tmp_path):
    checkpoint = make_qwen3_dense(tmp_path)
    ours, theirs = _tensors(load_draft(checkpoint, torch.float32, CPU).model), _tensors(reference_model(checkpoint))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_experts_never_reach_memory(tmp_path):
    # Experts of 100 MB (200 MB in float32) beside a trunk of 1 MB.
    sizes = {"hidden_size": 256, "moe_intermediate_size": 512, "num_experts": 64, "num_hidden_layers": 2}
    checkpoint = make_qwen3_moe(tmp_path, **sizes)
    experts = 2 * 64 * 3 * 256 * 512 * 2
    load_trunk(make_qwen3_moe(tmp_path / "small"), torch.float32, CPU)  # what the libraries take for themselves
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _peak_bytes()
    load_trunk(checkpoint, torch.float32, CPU)
    assert _peak_bytes() - before < experts / 4


def _peak_bytes() -> int:
    line = next(row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
