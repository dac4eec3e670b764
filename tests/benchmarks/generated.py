"""Checkpoints made up for measurements: the shape of a real model, random weights, streamed to disk."""

from __future__ import annotations

import json
from pathlib import Path

import torch

_POOL = 1 << 25  # random weights to draw tensors from: making each anew would take longer than all measurements


def write_checkpoint(
    folder: Path, layers: int, experts: int, hidden: int, inner: int, shard_bytes: int = 1 << 30
) -> Path:
    """A Qwen3-MoE checkpoint in bfloat16 as published ones are: sharded, with an index, an expert three tensors.

    Holds the routed experts alone. Memory stays bounded by 64 MiB and one tensor.
    """
    folder.mkdir(parents=True)
    config = {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "vocab_size": 512,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "intermediate_size": 2 * inner,
        "moe_intermediate_size": inner,
        "num_experts": experts,
        "num_experts_per_tok": min(8, experts),
        "hidden_act": "silu",
    }
    (folder / "config.json").write_text(json.dumps(config))
    shapes = [
        (f"model.layers.{layer}.mlp.experts.{expert}.{part}.weight", shape)
        for layer in range(layers)
        for expert in range(experts)
        for part, shape in (
            ("gate_proj", (inner, hidden)),
            ("up_proj", (inner, hidden)),
            ("down_proj", (hidden, inner)),
        )
    ]
    size = 2 * hidden * inner
    per_shard = max(1, shard_bytes // size)
    shards = [shapes[at : at + per_shard] for at in range(0, len(shapes), per_shard)]
    pool = torch.randn(_POOL + hidden * inner, generator=torch.Generator().manual_seed(1)).mul_(0.02).bfloat16()
    pool_bytes = memoryview(pool.view(torch.uint8).numpy())
    weight_map, drawn = {}, 0
    for number, shard in enumerate(shards, 1):
        file = folder / f"model-{number:05}-of-{len(shards):05}.safetensors"
        header = {
            name: {"dtype": "BF16", "shape": shape, "data_offsets": [index * size, (index + 1) * size]}
            for index, (name, shape) in enumerate(shard)
        }
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with file.open("wb") as stream:
            stream.write(len(text).to_bytes(8, "little") + text)
            for name, _ in shard:
                at = drawn * 7_919 % _POOL  # another place each time: no two experts are alike
                drawn += 1
                stream.write(pool_bytes[2 * at : 2 * at + size])
                weight_map[name] = file.name
    index = {"metadata": {"total_size": len(shapes) * size}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
