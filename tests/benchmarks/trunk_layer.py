"""Attention, norms and router of a layer in a decode turn: transformers' eager modules against ours.

Part of kernels.py. Layers of Qwen3-30B-A3B's shape in bfloat16 (hidden 2048, 32 heads of 128, 4 of keys and values, 128
experts to route to, the experts themselves left out), so many that a pass reads more than 1 GB of weights and none is
found in a cache. Each pass computes M tokens after 256 in a KV cache, transformers' own for eager and ours for ours;
passes of the two alternate, each goes first as often as the other. Times are a pass's, mask and rotary table included,
divided by the number of layers, as [first quartile, median, third quartile] in milliseconds; `trunk_m*_vs_eager` is the
ratio of the medians; `*_read_gb_s`: weights read a second.
"""

from __future__ import annotations

import statistics
import time
from copy import deepcopy

import torch
from transformers import Cache, DynamicCache, Qwen3MoeConfig, Qwen3MoeModel
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeRotaryEmbedding

from moespac.actors.gpu_device.attention import use_grouped_attention
from moespac.actors.gpu_device.growing_cache import grow_in_place
from moespac.actors.gpu_device.hook import IMPLEMENTATION, detach_experts, experts_computed_by, register
from moespac.actors.gpu_device.linears import use_kernels
from moespac.kernels.cpu import library

LAYERS, CACHED = 28, 256
TOKENS = (1, 8)
ROUNDS = 12
SHAPE = {
    "vocab_size": 256,
    "hidden_size": 2048,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "max_position_embeddings": 4096,
}


def measure(threads: int = 2, trunk_format: str = "stored") -> dict[str, object]:
    """All figures by name; without our library, one that says why."""
    reason = library.unavailable()
    if reason is not None:
        return {"trunk": f"not measured: {reason}"}
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    library.configure(threads)
    try:
        eager = make_model()
        # Both have the same weights in memory: of 1 GB, none is left in a cache from one pass to the next.
        shared = {id(tensor): tensor for tensor in [*eager.parameters(), *eager.buffers()]}
        ours = deepcopy(eager, shared)
        use_kernels(ours, None if trunk_format == "stored" else trunk_format)
        use_grouped_attention(ours)
        weight_bytes = sum(p.nbytes for p in eager.layers.parameters())
        result: dict[str, object] = {"threads": threads, "weights_gb": round(weight_bytes / 1e9, 2)}
        for tokens in TOKENS:
            times = timed_passes({"eager": eager, "ours": ours}, tokens)
            medians = {name: statistics.median(seen) for name, seen in times.items()}
            result[f"trunk_m{tokens}_vs_eager"] = round(medians["eager"] / medians["ours"], 2)
            for name, seen in times.items():
                result[f"trunk_m{tokens}_{name}_ms"] = [
                    round(1e3 * t / LAYERS, 3) for t in statistics.quantiles(seen, n=4, method="inclusive")
                ]
            result[f"trunk_m{tokens}_read_gb_s"] = round(weight_bytes / medians["ours"] / 1e9, 1)
        return result
    finally:
        torch.set_num_threads(before)


def make_model() -> Qwen3MoeModel:
    """Random layers, all alike: what they hold takes no time, where they lie does."""
    register()
    config = Qwen3MoeConfig(
        **SHAPE, num_hidden_layers=LAYERS, attn_implementation="eager", experts_implementation=IMPLEMENTATION
    )
    with torch.device("meta"):
        model = Qwen3MoeModel(config).to(torch.bfloat16)
    detach_experts(model)
    model.to_empty(device="cpu").eval().requires_grad_(False)
    # Its tables are buffers, which to_empty leaves without values.
    model.rotary_emb = Qwen3MoeRotaryEmbedding(config)
    torch.manual_seed(0)
    for module in (model.embed_tokens, model.layers[0], model.norm):
        for parameter in module.parameters():
            parameter.normal_(std=0.02) if parameter.dim() > 1 else parameter.fill_(1.0)
    for layer in model.layers[1:]:
        layer.load_state_dict(model.layers[0].state_dict())
    return model


def timed_passes(models: dict[str, Qwen3MoeModel], tokens: int) -> dict[str, list[float]]:
    """Seconds of each pass of `tokens` tokens, by name."""
    times: dict[str, list[float]] = {name: [] for name in models}
    hidden = torch.randn(1, tokens, SHAPE["hidden_size"], dtype=torch.bfloat16)
    caches = {name: filled_cache(model) for name, model in models.items()}
    grow_in_place(caches["ours"], CACHED + tokens)
    for layer, full in zip(caches["ours"].layers, caches["eager"].layers, strict=True):
        layer.update(full.keys, full.values)
    with torch.inference_mode(), experts_computed_by(lambda _layer, hidden, _index, _weights: hidden):
        for name in models:
            one_pass(models[name], hidden, caches[name])
        for number in range(ROUNDS):
            for name in list(models) if number % 2 else reversed(models):
                times[name].append(one_pass(models[name], hidden, caches[name]))
    return times


def one_pass(model: Qwen3MoeModel, hidden: torch.Tensor, cache: Cache) -> float:
    """Its seconds; the cache is as before."""
    started = time.perf_counter()
    model(inputs_embeds=hidden, past_key_values=cache, use_cache=True)
    took = time.perf_counter() - started
    cache.crop(-hidden.shape[1])
    return took


def filled_cache(model: Qwen3MoeModel) -> DynamicCache:
    """Random keys and values of `CACHED` positions."""
    cache = DynamicCache(config=model.config)
    for layer in range(LAYERS):
        keys = torch.randn(1, SHAPE["num_key_value_heads"], CACHED, SHAPE["head_dim"], dtype=torch.bfloat16)
        cache.update(keys, keys.clone(), layer)
    return cache
