"""The two architectures, and how a trained model becomes an ordinary Hugging Face directory."""

from pathlib import Path

import torch
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from .tokenizer import CONTEXT, VOCABULARY

BALANCE_COEFFICIENT = 0.001

_SHARED = {
    "vocab_size": VOCABULARY,
    "hidden_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": CONTEXT,
    "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": 0,
}


def target_config(**changes: object) -> Qwen3MoeConfig:
    """Mixture of experts: 8 layers of 32 experts, 4 chosen a token; about 15.3 M parameters, 4.3 M active."""
    values = _SHARED | {
        "num_hidden_layers": 8,
        "intermediate_size": 512,
        "num_experts": 32,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 64,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "router_aux_loss_coef": BALANCE_COEFFICIENT,
    }
    return Qwen3MoeConfig(**(values | changes))


def draft_config(**changes: object) -> Qwen3Config:
    """Dense, 3 layers; about 2.4 M parameters. Attention and embedding shapes are the target's."""
    return Qwen3Config(**(_SHARED | {"num_hidden_layers": 3, "intermediate_size": 352} | changes))


def build(config: Qwen3MoeConfig | Qwen3Config, seed: int) -> PreTrainedModel:
    """A freshly initialised float32 model; the same seed gives the same weights."""
    torch.manual_seed(seed)
    if isinstance(config, Qwen3MoeConfig):
        return Qwen3MoeForCausalLM._from_config(
            config, dtype=torch.float32, attn_implementation="sdpa", experts_implementation="grouped_mm"
        )
    return Qwen3ForCausalLM._from_config(config, dtype=torch.float32, attn_implementation="sdpa")


def start_draft(draft: PreTrainedModel, target: PreTrainedModel) -> list[str]:
    """Copy the target's embedding and norms and, layer by layer spread evenly, its attention into the draft.

    Draft layer 0 starts from the target's first layer, the draft's last from the target's last. Returns the names of
    the draft's tensors that were copied; feed-forward weights keep their random start (the target has only experts).
    """
    own, theirs = draft.state_dict(), target.state_dict()
    last_own, last_theirs = draft.config.num_hidden_layers - 1, target.config.num_hidden_layers - 1
    copied = []
    with torch.no_grad():
        for name, tensor in own.items():
            parts = name.split(".")
            if "layers" in parts:
                at = parts.index("layers") + 1
                parts[at] = str(round(int(parts[at]) * last_theirs / max(last_own, 1)))
            source = theirs.get(".".join(parts))
            if source is not None and source.shape == tensor.shape:
                tensor.copy_(source)
                copied.append(name)
    return copied


def export(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    """Write config, bfloat16 safetensors, generation config and tokenizer; the model itself stays as it is."""
    directory.mkdir(parents=True, exist_ok=True)
    stored = type(model)._from_config(model.config, dtype=torch.bfloat16)
    stored.load_state_dict(model.state_dict())
    stored.generation_config = GenerationConfig(eos_token_id=0, pad_token_id=0, do_sample=False)
    stored.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
