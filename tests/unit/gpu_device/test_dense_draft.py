"""The draft model proposes with the target's noise and keeps its own cache in step."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_device import CPU, reference_tokens
from tiny_models import VOCAB, make_qwen3_dense

from moespac.actors.core import DraftChoice, ModelShape, Sampling
from moespac.actors.gpu_device.drafts.dense import DenseDraft, OwnCache
from moespac.actors.gpu_device.passes import Pass
from moespac.actors.gpu_device.trunk import load_draft
from moespac.actors.policy.chain import PLACES, Chain, place_of
from moespac.actors.policy.sampler import Sampler

PROMPT = (9, 8, 7, 200, 5)
RUN = Pass(ModelShape((0,), 1, 1, 1, 1, 1), ())
"""A pass that a dense draft has nothing to tell of."""
GREEDY = Sampler(Sampling(), len(PROMPT))
SAMPLED = Sampler(Sampling(temperature=0.9, top_p=0.9, seed=3, presence_penalty=0.5), len(PROMPT))


REJECTED = replace(SAMPLED.sampling, verification="rejection")


def chain(gamma: int, chances: tuple[float, ...] = (), floors: tuple[float, ...] = ()) -> Chain:
    return Chain(DraftChoice("model", gamma, chances=chances, floors=floors), gamma)


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
        proposal = DenseDraft(model, VOCAB).propose(PROMPT, cache, chain(6), sampler, RUN)
    assert list(proposal.tokens) == reference_tokens(checkpoint, PROMPT, 6, sampler.sampling)
    whole = (*PROMPT, *proposal.tokens)
    assert all(
        sampler.choose(row, whole[: len(PROMPT) + i]) == whole[len(PROMPT) + i] for i, row in enumerate(proposal.logits)
    )
    sure = [sampler.draw(row, whole[: len(PROMPT) + i])[1] for i, row in enumerate(proposal.logits)]
    assert proposal.places == tuple(place_of(confidence) for confidence in sure) and len(set(proposal.places)) > 1
    assert cache.length == len(PROMPT) + 5


@pytest.mark.parametrize(
    "sampler",
    [GREEDY, SAMPLED, Sampler(REJECTED, len(PROMPT)).drafting(len(PROMPT))],
    ids=["greedy", "coupled", "rejection"],
)
def test_a_proposal_that_ends_early_is_the_beginning_of_the_whole_one(model, sampler):
    """What rejection sampling needs: whether a token is proposed does not depend on what it is."""
    drafter, lengths = DenseDraft(model, VOCAB), set()
    chances = tuple((place + 1) / PLACES for place in range(PLACES))
    with torch.inference_mode():
        whole = drafter.propose(PROMPT, OwnCache(model), chain(8), sampler, RUN)
        for floor in (1.0, 0.5, 0.1, 1e-3, 1e-9, 0.0):
            part = drafter.propose(PROMPT, OwnCache(model), chain(8, chances, (floor,)), sampler, RUN)
            n = len(part.tokens)
            assert n == len(part.logits) and (part.tokens, part.places) == (whole.tokens[:n], whole.places[:n])
            lengths.add(n)
    assert {1, 8} <= lengths and len(lengths) > 2


def test_a_cache_rolled_back_catches_up_on_what_was_decided(checkpoint, model):
    drafter, cache = DenseDraft(model, VOCAB), OwnCache(model)
    with torch.inference_mode():
        drafter.propose(PROMPT, cache, chain(6), GREEDY, RUN)
        cache.rollback(len(PROMPT))
        longer = (*PROMPT, 41, 42, 43)
        again = drafter.propose(longer, cache, chain(4), GREEDY, RUN)
    assert list(again.tokens) == reference_tokens(checkpoint, longer, 4)


def test_a_padded_vocabulary_proposes_tokens_of_the_target_only(model):
    smaller = DenseDraft(model, 50)
    larger = DenseDraft(model, VOCAB + 100)
    with torch.inference_mode():
        assert max(smaller.propose((9, 8, 7, 20, 5), OwnCache(model), chain(8), SAMPLED, RUN).tokens) < 50
        # The noise of a position is the target's, so mere padding changes nothing.
        exact = DenseDraft(model, VOCAB).propose(PROMPT, OwnCache(model), chain(8), SAMPLED, RUN)
        assert larger.propose(PROMPT, OwnCache(model), chain(8), SAMPLED, RUN).tokens == exact.tokens


def test_it_stops_where_its_context_ends(model):
    drafter, tokens = DenseDraft(model, VOCAB), [1] * (model.context_length - 2)
    with torch.inference_mode():
        assert len(drafter.propose(tokens, OwnCache(model), chain(8), GREEDY, RUN).tokens) == 3
        assert drafter.propose([*tokens, 1, 1, 1, 1], OwnCache(model), chain(8), GREEDY, RUN).tokens == ()


def test_tokens_beyond_its_vocabulary_are_read_as_its_last(model):
    drafter, beyond = DenseDraft(model, VOCAB + 5), (9, VOCAB + 3, 7)
    with torch.inference_mode():
        known = drafter.propose((9, VOCAB - 1, 7), OwnCache(model), chain(4), GREEDY, RUN)
        assert drafter.propose(beyond, OwnCache(model), chain(4), GREEDY, RUN).tokens == known.tokens
