"""The bundled pair: ordinary Hugging Face directories of the promised shape and size. Reads files only."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import moespac.configs.quickstart as quickstart

ROOT = Path(quickstart.__file__).parent
MIB = 2**20


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*address: object) -> None:
        raise AssertionError(f"a bundled model must load without the network, tried {address}")

    monkeypatch.setattr("socket.socket.connect", refuse)


@pytest.mark.parametrize("role", ["target", "draft"])
def test_directory_is_complete(role: str):
    assert {path.name for path in (ROOT / role).iterdir()} == {
        "README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json",
    }  # fmt: skip


def test_sizes():
    assert (ROOT / "target" / "model.safetensors").stat().st_size <= 32 * MIB
    assert sum(path.stat().st_size for path in (ROOT / "draft").iterdir()) <= 5 * MIB


def test_configurations():
    target, draft = (AutoConfig.from_pretrained(ROOT / role, local_files_only=True) for role in ("target", "draft"))
    assert target.architectures == ["Qwen3MoeForCausalLM"]
    assert (target.num_hidden_layers, target.num_experts, target.num_experts_per_tok) == (8, 32, 4)
    assert (target.hidden_size, target.moe_intermediate_size, target.head_dim) == (256, 64, 64)
    assert target.norm_topk_prob
    assert draft.architectures == ["Qwen3ForCausalLM"]
    assert target.vocab_size == draft.vocab_size == 4096
    assert target.max_position_embeddings == draft.max_position_embeddings == 1024
    for config in (target, draft):
        assert config.tie_word_embeddings
        assert config.dtype == torch.bfloat16
        assert config.eos_token_id == config.pad_token_id == 0


def test_the_pair_has_one_tokenizer():
    target, draft = (AutoTokenizer.from_pretrained(ROOT / role, local_files_only=True) for role in ("target", "draft"))
    assert (ROOT / "target/tokenizer.json").read_bytes() == (ROOT / "draft/tokenizer.json").read_bytes()
    assert len(target) == 4096
    assert target.eos_token == draft.eos_token == "<|endoftext|>"
    text = "def main() -> None:\n    print('naïve 漢字')\n"
    assert target.decode(target.encode(text)) == text
    local = json.loads((ROOT / "target/tokenizer_config.json").read_text())
    assert not {"local_files_only", "is_local"} & local.keys(), "how it was loaded is not the tokenizer's own"


def test_every_expert_has_weights():
    with safe_open(ROOT / "target" / "model.safetensors", framework="pt") as file:
        names = set(file.keys())
        for layer in range(8):
            gate = file.get_tensor(f"model.layers.{layer}.mlp.gate.weight").float()
            assert gate.shape == (32, 256) and bool((gate.norm(dim=1) > 0).all())
            for expert in range(32):
                stem = f"model.layers.{layer}.mlp.experts.{expert}"
                for part, shape in (("gate_proj", (64, 256)), ("up_proj", (64, 256)), ("down_proj", (256, 64))):
                    tensor = file.get_tensor(f"{stem}.{part}.weight")
                    names.discard(f"{stem}.{part}.weight")
                    assert tensor.shape == shape and tensor.dtype == torch.bfloat16
                    assert bool(tensor.isfinite().all()) and tensor.float().std() > 1e-3
    assert not [name for name in names if "experts" in name]


def test_both_load_and_the_draft_follows_the_target():
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "target", local_files_only=True)
    target, draft = (
        AutoModelForCausalLM.from_pretrained(ROOT / role, dtype=torch.float32, local_files_only=True).eval()
        for role in ("target", "draft")
    )
    text = (
        "This PEP proposes a change to the language. The motivation is that many programs have to read a file line by "
        "line, and that the present way of doing so is slow. The following function returns the number of lines:\n\n"
        "    def count(path):\n        with open(path) as file:\n            return sum(1 for line in file)\n\n"
        "Rationale\n=========\n\nThere are several reasons for this. The first is that it should be possible to use it."
    )
    ids = torch.tensor([tokenizer.encode(text)])
    with torch.inference_mode():
        wanted, given = target(ids).logits[0], draft(ids).logits[0]
    nats = torch.nn.functional.cross_entropy(wanted[:-1], ids[0, 1:], reduction="sum").item()
    assert nats / 0.6931 / len(text.encode()) < 2.2, "a trained model predicts plain text far better than chance (8)"
    assert (wanted.argmax(-1) == given.argmax(-1)).float().mean() > 0.45


@pytest.mark.parametrize("role", ["target", "draft"])
def test_card_states_data_licence_and_figures(role: str):
    card = (ROOT / role / "README.md").read_text()
    for needed in ("license: apache-2.0", "CC0", "bits per byte", "greedy agreement", "## Limits", "training.train"):
        assert needed in card
