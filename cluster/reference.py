"""The oracle: plain transformers, eager experts and eager attention, on the same checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def greedy_reference(checkpoint: Path, prompt: str, max_tokens: int) -> list[int]:
    """The `max_tokens` greedy tokens that follow `prompt`, in float32, end-of-text tokens not heeded.

    One token a pass with the model's own cache. Loads the whole checkpoint into memory.
    """
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=torch.float32, experts_implementation="eager", attn_implementation="eager"
    ).eval()
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    tokens: list[int] = []
    cache = None
    with torch.inference_mode():
        while len(tokens) < max_tokens:
            out = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = out.past_key_values
            tokens.append(int(out.logits[0, -1].argmax()))
            ids = torch.tensor([[tokens[-1]]])
    return tokens
