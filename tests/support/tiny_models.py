"""Small random checkpoints as users have them: Hugging Face directories with weights and a tokenizer."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    DeepseekV2Config,
    DeepseekV2ForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

VOCAB = 320
EOS = "<|endoftext|>"
_TEXT = ["the expert that is wanted most is kept near, the others wait in memory; été, naïve, 東京 🙂"] * 8


def _tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.train_from_iterator(
        _TEXT,
        trainers.BpeTrainer(
            vocab_size=VOCAB, special_tokens=[EOS], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS, pad_token=EOS)


def _save(model, path: Path, dtype: torch.dtype) -> Path:
    model.to(dtype).save_pretrained(path)
    _tokenizer().save_pretrained(path)
    return path


def _widen_router(model, scale: float) -> None:
    # Freshly initialised routers are almost flat: near-ties would make the choice of experts a matter of rounding.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("mlp.gate.weight", "mlp.router.weight")):
                parameter.mul_(scale)


def make_qwen3_moe(path: Path, seed: int = 0, dtype: torch.dtype = torch.bfloat16, **config) -> Path:
    """A Qwen3-MoE target: 3 layers, 8 experts, top-2, hidden 32, expert intermediate 16."""
    torch.manual_seed(seed)
    settings = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "intermediate_size": 64,
        "moe_intermediate_size": 16,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "norm_topk_prob": True,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
        "initializer_range": 0.3,
        "eos_token_id": 0,
        "bos_token_id": None,
        "pad_token_id": 0,
    }
    model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**(settings | config)))
    _widen_router(model, 4.0)
    return _save(model, path, dtype)


def make_qwen3_dense(path: Path, seed: int = 1, dtype: torch.dtype = torch.bfloat16, **config) -> Path:
    """A dense Qwen3 draft with the same tokenizer."""
    torch.manual_seed(seed)
    settings = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "intermediate_size": 48,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
        "initializer_range": 0.3,
        "eos_token_id": 0,
        "bos_token_id": None,
        "pad_token_id": 0,
    }
    return _save(Qwen3ForCausalLM(Qwen3Config(**(settings | config))), path, dtype)


def make_deepseek_v2(path: Path, seed: int = 2, dtype: torch.dtype = torch.bfloat16, **config) -> Path:
    """A DeepSeek-V2 target: first layer dense, shared experts, compressed KV; 3 layers, 8 experts, top-2."""
    torch.manual_seed(seed)
    settings = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "intermediate_size": 64,
        "moe_intermediate_size": 16,
        "n_routed_experts": 8,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "first_k_dense_replace": 1,
        "kv_lora_rank": 16,
        "q_lora_rank": None,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "head_dim": 8,
        "max_position_embeddings": 256,
        "initializer_range": 0.3,
        "routed_scaling_factor": 1.0,
        "topk_method": "greedy",
        "eos_token_id": 0,
        "bos_token_id": None,
        "pad_token_id": 0,
    }
    model = DeepseekV2ForCausalLM(DeepseekV2Config(**(settings | config)))
    _widen_router(model, 4.0)
    return _save(model, path, dtype)


def make_gpt_oss(path: Path, seed: int = 3, dtype: torch.dtype = torch.bfloat16, **config) -> Path:
    """A gpt-oss target: interleaved and transposed experts with biases and clamps; 2 layers, 8 experts, top-2."""
    torch.manual_seed(seed)
    settings = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "intermediate_size": 16,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "swiglu_limit": 0.5,
        "max_position_embeddings": 256,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "initializer_range": 0.3,
        "eos_token_id": 0,
        "bos_token_id": None,
        "pad_token_id": 0,
    }
    model = GptOssForCausalLM(GptOssConfig(**(settings | config)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("_bias"):
                parameter.normal_(0, 0.3)  # fresh ones are zero, and would hide that they are forgotten
    _widen_router(model, 4.0)
    return _save(model, path, dtype)
