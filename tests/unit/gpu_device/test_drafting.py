"""The draft model proposes with the target's noise and keeps its own cache in step."""

from __future__ import annotations

import pytest
import torch
from tiny_device import CPU, reference_tokens
from tiny_models import VOCAB, make_qwen3_dense

from moespac.actors.core import Sampling
from moespac.actors.gpu_device.drafting import Drafter
from moespac.actors.gpu_device.kv import RequestCache
from moespac.actors.gpu_device.trunk import load_draft

PROMPT = (9, 8, 7, 200, 5)
SAMPLED = Sampling(temperature=0.9, top_p=0.9, seed=3)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_qwen3_dense(tmp_path_factory.mktemp("draft"))


@pytest.fixture(scope="module")
def model(checkpoint):
    return load_draft(checkpoint, torch.float32, CPU)


@pytest.mark.parametrize("sampling", [Sampling(), SAMPLED], ids=["greedy", "sampled"])
def test_proposals_are_the_models_own_continuation(checkpoint, model, sampling):
    cache = RequestCache(model)
    with torch.inference_mode():
        proposal = Drafter(model, VOCAB).propose(PROMPT, cache, 6, sampling)
    assert proposal == reference_tokens(checkpoint, PROMPT, 6, sampling)
    assert cache.length == len(PROMPT) + 5


def test_a_cache_rolled_back_catches_up_on_what_was_decided(checkpoint, model):
    drafter, cache = Drafter(model, VOCAB), RequestCache(model)
    with torch.inference_mode():
        drafter.propose(PROMPT, cache, 6, Sampling())
        cache.rollback(len(PROMPT))
        longer = (*PROMPT, 41, 42, 43)
        assert drafter.propose(longer, cache, 4, Sampling()) == reference_tokens(checkpoint, longer, 4)


def test_a_padded_vocabulary_proposes_tokens_of_the_target_only(model):
    smaller = Drafter(model, 50)
    larger = Drafter(model, VOCAB + 100)
    with torch.inference_mode():
        assert max(smaller.propose(PROMPT, RequestCache(model), 8, SAMPLED)) < 50
        # The noise of a position is the target's, so mere padding changes nothing.
        assert larger.propose(PROMPT, RequestCache(model), 8, SAMPLED) == Drafter(model, VOCAB).propose(
            PROMPT, RequestCache(model), 8, SAMPLED
        )


def test_it_stops_where_its_context_ends(model):
    tokens = [1] * (model.context_length - 2)
    with torch.inference_mode():
        assert len(Drafter(model, VOCAB).propose(tokens, RequestCache(model), 8, Sampling())) == 3
        assert Drafter(model, VOCAB).propose([*tokens, 1, 1, 1, 1], RequestCache(model), 8, Sampling()) == []
