"""The target as its own draft: resident experts only, and nothing of it left behind."""

from __future__ import annotations

import pytest
import torch
from tiny_device import make_store, reference_tokens, rig
from tiny_models import make_qwen3_moe

from moespac.actors.core import DraftChoice, ExpertKey
from moespac.actors.gpu_device.passes import PassAbandoned
from moespac.actors.gpu_device.routing import renormalised
from moespac.actors.policy.chain import PLACES, UNKNOWN, Chain

PROMPT = tuple(range(30, 43))


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    return make_qwen3_moe(tmp_path_factory.mktemp("target"))


@pytest.fixture(scope="module")
def store(target, tmp_path_factory):
    return make_store(target, tmp_path_factory.mktemp("store"))


@pytest.fixture
def half(target, store):
    """Half of the experts resident, and no worker."""
    with rig(target, store, expert_memory=2**20) as device:
        odd = range(1, device.shape.n_experts, 2)
        device.make_resident([ExpertKey(layer, e) for layer in device.shape.layer_ids for e in odd])
        yield device


def prefilled(device):
    session = device.open(PROMPT, 24)
    device.decoder.step(session, [], 512, device.new_pass())
    return session


def propose(device, session, gamma=4, **ends):
    run, chain = device.new_pass(), Chain(DraftChoice("self", gamma, **ends), gamma)
    with torch.inference_mode():
        proposal = device.decoder.drafts["self"].propose(
            session.tokens, session.drafts["self"], chain, session.sampler, run
        )
    return proposal, run


def test_with_every_expert_resident_it_drafts_what_the_target_says(target, store):
    with rig(target, store, expert_memory=2**20) as device:
        device.make_resident(device.shape.keys())
        proposal, run = propose(device, session := prefilled(device), 6)
        assert [session.tokens[-1], *proposal.tokens] == reference_tokens(target, PROMPT, 7)
        assert run.predicted.sum() == 6 * device.shape.top_k * device.shape.n_layers


def test_it_computes_residents_only_and_tells_what_it_wanted(half, monkeypatch):
    session, computed = prefilled(half), []
    kernel = half.decoder.executor._kernel

    class Watched:
        def rows(self, hidden, work):
            computed.extend(item.block.data_ptr() for item in work)
            return kernel.rows(hidden, work)

    monkeypatch.setattr(half.decoder.executor, "_kernel", Watched())
    monkeypatch.setattr(half.source, "with_experts", lambda *_: pytest.fail("an expert was fetched for a draft"))
    proposal, run = propose(half, session)
    slots = {half.slots.memory[i].data_ptr() for i in range(half.slots.slots)}
    assert len(proposal.tokens) == 4 and computed and set(computed) <= slots
    away = range(0, half.shape.n_experts, 2)
    assert run.predicted[:, away].sum() > 0, "experts that are away are wanted too"
    assert run.counts.sum() == 0 and run.fallback_experts == run.expert_calls == 0


def test_without_residents_the_trunk_drafts_alone(target, store):
    with rig(target, store) as device:
        proposal, run = propose(device, prefilled(device))
        assert len(proposal.tokens) == 4 and run.local_s == 0 and run.predicted.sum() > 0


def test_the_targets_cache_is_left_as_it_was(half):
    session = prefilled(half)
    before = [(layer.keys.clone(), layer.values.clone()) for layer in session.target_cache.cache.layers]
    propose(half, session, 8)
    after = [(layer.keys, layer.values) for layer in session.target_cache.cache.layers]
    assert session.target_cache.length == len(PROMPT)
    for old, new in zip(before, after, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(old, new, strict=True))


def test_the_cache_is_left_as_it_was_by_a_draft_that_breaks_off(half):
    session, run, asked = prefilled(half), half.new_pass(), []
    run.wanted = lambda: asked.append(0) or len(asked) < 5  # in the second of four passes of three layers
    with pytest.raises(PassAbandoned):
        half.decoder.step(session, [DraftChoice("self", 4)], 512, run)
    assert session.target_cache.length == len(PROMPT)
    assert all(layer.get_seq_length() == len(PROMPT) for layer in session.target_cache.cache.layers)
    assert len(session.tokens) == len(PROMPT) + 1


def test_what_it_wanted_is_most_of_what_the_verification_wants(half):
    wanted = found = 0
    done = half.generate(PROMPT, 40, 4, kind="self")
    for step, run in zip(done.steps, done.passes, strict=True):
        if step.proposed:
            wanted += (run.counts > 0).sum()
            found += ((run.counts > 0) & (run.predicted > 0)).sum()
    assert found / wanted > 0.6


def test_weights_of_residents_make_up_for_those_left_out():
    index = torch.tensor([[0, 3], [1, 2], [4, 5]])
    weights = torch.tensor([[0.75, 0.25], [0.5, 0.25], [0.6, 0.4]])
    kept = renormalised(index, weights, [3, 1, 2])
    assert torch.allclose(kept, torch.tensor([[0.0, 1.0], [0.5, 0.25], [0.0, 0.0]]))


def test_it_ends_itself_once_it_is_unsure(half):
    session = prefilled(half)
    whole, _ = propose(half, session)
    part, run = propose(half, session, chances=(0.0,) * PLACES, floors=(0.5,) * 4)
    assert part.tokens == whole.tokens[:1] and part.places == whole.places[:1]
    assert len(whole.places) == 4 and UNKNOWN not in whole.places
    assert run.predicted.sum() == half.shape.top_k * half.shape.n_layers


def test_it_needs_no_memory_of_its_own(half):
    session = prefilled(half)
    assert session.drafts["self"].nbytes() == 0 and session.nbytes() == session.target_cache.nbytes()
