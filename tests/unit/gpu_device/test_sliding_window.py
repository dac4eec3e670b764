"""Sliding windows much shorter than the text: rollback is exact, against eager transformers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from tiny_device import Rig, make_draft_of, make_store, reference_model, reference_tokens, rig
from tiny_models import make_gpt_oss, make_qwen3_moe

from moespac.actors.core import Sampling
from moespac.actors.gpu_device.hook import experts_computed_by
from moespac.actors.gpu_device.kv import RequestCache

WINDOW = 6
PROMPT = tuple(range(30, 53))
SAMPLED = Sampling(temperature=0.9, seed=5)


@pytest.fixture(scope="module", params=["every_layer", "every_other_layer"])
def target(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param)
    if request.param == "every_layer":
        return make_qwen3_moe(path, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=0)
    return make_gpt_oss(path, sliding_window=WINDOW)


@pytest.fixture(scope="module")
def device(target, tmp_path_factory) -> Iterator[Rig]:
    folder = tmp_path_factory.mktemp("device")
    with rig(target, make_store(target, folder / "store"), make_draft_of(target, folder / "draft", 0.05)) as device:
        yield device


def _extend(device: Rig, cache: RequestCache, ids: list[int]) -> torch.Tensor:
    run = device.new_pass()
    with torch.inference_mode(), experts_computed_by(device.decoder.executor.bound_to(run)):
        out = device.decoder.target.model(torch.tensor([ids]), past_key_values=cache.cache, use_cache=True)
    cache.grown(len(ids))
    return out.logits[0]


def _states(cache: RequestCache) -> list[torch.Tensor]:
    return [tensor.clone() for layer in cache.cache.layers for tensor in (layer.keys, layer.values)]


def test_windows_are_in_use(device):
    kinds = [type(layer).__name__ for layer in RequestCache(device.decoder.target).cache.layers]
    assert "DynamicSlidingWindowLayer" in kinds
    session = device.open(PROMPT, 4)
    device.decoder.step(session, (), 512, device.new_pass())
    assert min(layer.keys.shape[-2] for layer in session.target_cache.cache.layers) == WINDOW - 1


@pytest.mark.parametrize("gamma", [1, 4, 8])
@pytest.mark.parametrize("chunk", [5, 512])
def test_tokens_are_the_references(device, target, gamma, chunk):
    """γ beyond the window, prompts in chunks across its edge, drafts rejected and accepted."""
    for sampling in (Sampling(), SAMPLED):
        done = device.generate(PROMPT, 24, gamma, sampling, prefill_chunk=chunk)
        assert done.tokens == reference_tokens(target, PROMPT, 24, sampling)
        assert 0 < done.accepted < sum(step.proposed for step in done.steps)


def test_a_cache_that_no_pass_has_reached_can_be_rolled_back(device):
    cache = RequestCache(device.decoder.target)
    cache.rollback(0)
    assert _extend(device, cache, [1, 2]).shape[0] == 2


@pytest.mark.parametrize("known", [3, WINDOW - 1, WINDOW, WINDOW + 1, 15])
@pytest.mark.parametrize("wrong", [1, WINDOW, 2 * WINDOW])
def test_rollback_restores_every_bit(device, target, known, wrong):
    """Below, at and beyond the window's edge; afterwards logits are those of the reference without the detour."""
    ids, cache = list(PROMPT), RequestCache(device.decoder.target)
    _extend(device, cache, ids[:known])
    cache.rollback(known)
    before = _states(cache)
    for kept in range(3):
        _extend(device, cache, [*ids[known : known + kept], *[7] * wrong])
        cache.rollback(known)
        assert cache.length == known and all(map(torch.equal, _states(cache), before))
    logits = _extend(device, cache, ids[known : known + 4])
    with torch.inference_mode():
        expected = reference_model(target)(torch.tensor([ids[: known + 4]])).logits[0, known:]
    assert torch.allclose(logits, expected, atol=2e-5, rtol=0)
