"""KV caches: measured, budgeted, and rolled back exactly."""

from __future__ import annotations

import pytest
import torch
from tiny_device import CPU, make_store, rig
from tiny_models import make_deepseek_v2, make_qwen3_dense, make_qwen3_moe

from moespac.actors.gpu_device.hook import experts_computed_by
from moespac.actors.gpu_device.kv import KvBudget, KvExhausted, RequestCache, bytes_per_token
from moespac.actors.gpu_device.trunk import load_draft, load_trunk

IDS = list(range(20, 40))


def _bits(cache: RequestCache) -> list[torch.Tensor]:
    return [t.clone() for layer in cache.cache.layers for t in (layer.keys, layer.values)]


def _extend(model, cache: RequestCache, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        out = model.model(torch.tensor([ids]), past_key_values=cache.cache, use_cache=True)
    cache.grown(len(ids))
    return out.logits


def test_bytes_per_token_is_what_the_architecture_caches(tmp_path):
    # Keys and values of 3 layers, 2 heads of 8, in float32; DeepSeek caches 16 latent and 8 rotary values a layer.
    assert bytes_per_token(load_trunk(make_qwen3_moe(tmp_path / "q"), torch.float32, CPU)) == 3 * 2 * 2 * 8 * 4
    assert bytes_per_token(load_trunk(make_deepseek_v2(tmp_path / "d"), torch.float32, CPU)) == 3 * (16 + 8) * 4
    assert bytes_per_token(load_trunk(make_qwen3_moe(tmp_path / "h"), torch.bfloat16, CPU)) == 3 * 2 * 2 * 8 * 2


def test_rollback_leaves_what_was_there_before(tmp_path):
    model = load_draft(make_qwen3_dense(tmp_path), torch.float32, CPU)
    cache = RequestCache(model)
    _extend(model, cache, IDS[:7])
    before = _bits(cache)
    _extend(model, cache, IDS[7:12])
    cache.rollback(7)
    assert cache.length == 7 and all(map(torch.equal, _bits(cache), before))
    _extend(model, cache, IDS[7:9])
    cache.rollback(8)
    again = _extend(model, cache, IDS[8:10])
    straight = RequestCache(model)
    _extend(model, straight, IDS[:8])
    assert torch.allclose(again, _extend(model, straight, IDS[8:10]), atol=1e-5, rtol=0)


def test_rollback_of_a_sliding_window_brings_the_past_back(tmp_path):
    settings = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0, "num_hidden_layers": 2}
    model = load_draft(make_qwen3_dense(tmp_path, **settings), torch.float32, CPU)
    assert type(RequestCache(model).cache.layers[0]).__name__ == "DynamicSlidingWindowLayer"
    assert bytes_per_token(model) > 0
    cache = RequestCache(model)
    _extend(model, cache, IDS[:9])
    cache.rollback(9)
    _extend(model, cache, [1, 2, 3])
    cache.rollback(10)
    logits = _extend(model, cache, IDS[10:12])
    straight = RequestCache(model)
    expected = _extend(model, straight, [*IDS[:9], 1, *IDS[10:12]])[:, -2:]
    assert torch.allclose(logits, expected, atol=1e-5, rtol=0)


def test_rollback_after_a_pass_that_broke_off_between_layers(tmp_path):
    target = make_deepseek_v2(tmp_path / "target")
    with rig(target, make_store(target, tmp_path / "store")) as device:
        model, cache = device.decoder.target, RequestCache(device.decoder.target)
        with experts_computed_by(device.decoder.executor.bound_to(device.new_pass())):
            _extend(model, cache, IDS[:6])
        before = _bits(cache)

        def fail_in_layer_2(layer, hidden, index, weights):
            if layer == 2:
                raise RuntimeError("broken off")
            return torch.zeros_like(hidden)

        with pytest.raises(RuntimeError, match="broken off"), experts_computed_by(fail_in_layer_2):
            _extend(model, cache, IDS[6:9])
        assert not all(map(torch.equal, _bits(cache), before))
        cache.rollback(cache.length)
        assert all(map(torch.equal, _bits(cache), before))


def test_rolling_forward_is_refused(tmp_path):
    cache = RequestCache(load_draft(make_qwen3_dense(tmp_path), torch.float32, CPU))
    with pytest.raises(ValueError, match="cannot roll back to 1"):
        cache.rollback(1)


def test_reservations_never_exceed_the_budget():
    budget = KvBudget(1000, 10)
    budget.reserve("a", 60)
    with pytest.raises(KvExhausted, match=r"500 bytes, 400 of kv_memory.*wait for running requests"):
        budget.reserve("b", 50)
    with pytest.raises(KvExhausted, match="at most 100 fit"):
        budget.reserve("c", 101)
    budget.reserve("d", 40)
    assert budget.reserved_bytes == 1000
    budget.release("a")
    budget.release("a")
    budget.release("never")
    assert budget.reserved_bytes == 400
    budget.check_integrity({"d": 400})
    with pytest.raises(RuntimeError, match="uses 401 bytes of 400"):
        budget.check_integrity({"d": 401})
    with pytest.raises(RuntimeError, match="have reservations"):
        budget.check_integrity({})
