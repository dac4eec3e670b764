"""The draft model proposes with the target's noise and keeps its own cache in step."""

from __future__ import annotations

import pytest
import torch
from tiny_device import CPU, reference_tokens
from tiny_models import VOCAB, make_qwen3_dense

from moespac.actors.core import ModelShape, Sampling
from moespac.actors.gpu_device.drafts.dense import DenseDraft, OwnCache
from moespac.actors.gpu_device.passes import Pass
from moespac.actors.gpu_device.trunk import load_draft
from moespac.actors.policy.sampler import Sampler

PROMPT = (9, 8, 7, 200, 5)
RUN = Pass(ModelShape((0,), 1, 1, 1, 1, 1), ())
"""A pass that a dense draft has nothing to tell of."""
GREEDY = Sampler(Sampling(), len(PROMPT))
SAMPLED = Sampler(Sampling(temperature=0.9, top_p=0.9, seed=3, presence_penalty=0.5), len(PROMPT))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_qwen3_dense(tmp_path_factory.mktemp("draft"))


@pytest.fixture(scope="module")
def model(checkpoint):
    return load_draft(checkpoint, torch.float32, CPU)


@pytest.mark.parametrize("sampler", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_proposals_are_the_models_own_continuation(checkpoint, model, sampler):
    cache = OwnCache(model)
    with torch.inference_mode():
        proposal = DenseDraft(model, VOCAB).propose(PROMPT, cache, 6, sampler, RUN)
    assert list(proposal.tokens) == reference_tokens(checkpoint, PROMPT, 6, sampler.sampling)
    whole = (*PROMPT, *proposal.tokens)
    assert all(
        sampler.choose(row, whole[: len(PROMPT) + i]) == whole[len(PROMPT) + i] for i, row in enumerate(proposal.logits)
    )
    assert cache.length == len(PROMPT) + 5


def test_a_cache_rolled_back_catches_up_on_what_was_decided(checkpoint, model):
    drafter, cache = DenseDraft(model, VOCAB), OwnCache(model)
    with torch.inference_mode():
        drafter.propose(PROMPT, cache, 6, GREEDY, RUN)
        cache.rollback(len(PROMPT))
        longer = (*PROMPT, 41, 42, 43)
        assert list(drafter.propose(longer, cache, 4, GREEDY, RUN).tokens) == reference_tokens(checkpoint, longer, 4)


def test_a_padded_vocabulary_proposes_tokens_of_the_target_only(model):
    smaller = DenseDraft(model, 50)
    larger = DenseDraft(model, VOCAB + 100)
    with torch.inference_mode():
        assert max(smaller.propose((9, 8, 7, 20, 5), OwnCache(model), 8, SAMPLED, RUN).tokens) < 50
        # The noise of a position is the target's, so mere padding changes nothing.
        exact = DenseDraft(model, VOCAB).propose(PROMPT, OwnCache(model), 8, SAMPLED, RUN)
        assert larger.propose(PROMPT, OwnCache(model), 8, SAMPLED, RUN).tokens == exact.tokens


def test_it_stops_where_its_context_ends(model):
    tokens = [1] * (model.context_length - 2)
    with torch.inference_mode():
        assert len(DenseDraft(model, VOCAB).propose(tokens, OwnCache(model), 8, GREEDY, RUN).tokens) == 3
        assert DenseDraft(model, VOCAB).propose([*tokens, 1, 1, 1, 1], OwnCache(model), 8, GREEDY, RUN).tokens == ()


def test_tokens_beyond_its_vocabulary_are_read_as_its_last(model):
    drafter, beyond = DenseDraft(model, VOCAB + 5), (9, VOCAB + 3, 7)
    with torch.inference_mode():
        known = drafter.propose((9, VOCAB - 1, 7), OwnCache(model), 4, GREEDY, RUN)
        assert drafter.propose(beyond, OwnCache(model), 4, GREEDY, RUN).tokens == known.tokens
