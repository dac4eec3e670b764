"""The step contract: what a turn yields, and that a failed one leaves no trace."""

from __future__ import annotations

import pytest
from tiny_device import make_draft_of, make_store, reference_tokens, rig
from tiny_models import make_qwen3_moe

from moespac.actors.core import DraftChoice, Sampling
from moespac.actors.gpu_device.decode import ContextFull
from moespac.actors.gpu_device.passes import PassAbandoned
from moespac.actors.policy.chain import PLACES, UNKNOWN
from moespac.actors.policy.ngram import History, Judgement

PROMPT = tuple(range(30, 43))
THREE, FOUR, EIGHT = ([DraftChoice("model", gamma)] for gamma in (3, 4, 8))


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    return make_qwen3_moe(tmp_path_factory.mktemp("target"))


@pytest.fixture(scope="module")
def device(target, tmp_path_factory):
    folder = tmp_path_factory.mktemp("device")
    draft = make_draft_of(target, folder / "draft", 0.05)
    with rig(target, make_store(target, folder / "store"), draft) as device:
        yield device


def test_a_prompt_is_computed_in_chunks_and_ends_in_a_token(device, target):
    session, run = device.open(PROMPT, 8), device.new_pass()
    first = device.decoder.step(session, FOUR, 8, run)
    assert first.prefill and first.emitted == () and first.proposed == 0
    assert run.tokens == 8 and run.counts.sum() == 8 * device.shape.top_k * device.shape.n_layers
    second = device.decoder.step(session, FOUR, 8, device.new_pass())
    assert second.prefill and list(second.emitted) == reference_tokens(target, PROMPT, 1)
    third = device.decoder.step(session, FOUR, 8, run := device.new_pass())
    assert not third.prefill and third.proposed == 4 and run.tokens == 5
    assert len(third.emitted) == third.accepted + 1
    assert session.target_cache.length == len(session.tokens) - 1


def test_a_prompt_of_one_token_starts_with_a_draft(device, target):
    done = device.generate(PROMPT[:1], 12, gamma=4)
    assert done.tokens == reference_tokens(target, PROMPT[:1], 12) and not done.steps[0].prefill


def test_a_request_taken_up_again_goes_on_as_before(device, target):
    sampling = Sampling(temperature=1.0, seed=11)
    whole = device.generate(PROMPT, 20, gamma=3, sampling=sampling).tokens
    resumed = device.generate((*PROMPT, *whole[:7]), 13, gamma=5, sampling=sampling).tokens
    assert whole[7:] == resumed


def test_a_step_that_breaks_off_leaves_the_session_as_it_was(device, target):
    session, asked = device.open(PROMPT, 24), []
    expected = reference_tokens(target, PROMPT, 24)

    def until(layers: int):
        run, seen = device.new_pass(), []
        run.wanted = lambda: seen.append(0) or len(seen) <= layers
        return run

    while len(session.tokens) < len(PROMPT) + 24:
        for layers in (0, 1, 2, 3):  # asked once before the step and once before each of 3 layers
            before = list(session.tokens)
            with pytest.raises(PassAbandoned):
                device.decoder.step(session, THREE, 5, until(layers))
            assert session.tokens == before
            asked.append(layers)
        device.decoder.step(session, THREE, 5, device.new_pass())
    assert session.tokens[len(PROMPT) :][:24] == expected and len(asked) > 12


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.9, seed=4)], ids=["greedy", "sampled"])
def test_a_draft_that_ends_itself_changes_no_token(device, target, sampling):
    """What stands is never likely enough: each proposal ends after its first token."""
    session = device.open(PROMPT, 24, sampling)
    choice = DraftChoice("model", 6, chances=(0.0,) * PLACES, floors=(0.5,) * 6)
    steps = []
    while len(session.tokens) < len(PROMPT) + 24:
        steps.append(device.decoder.step(session, [choice], 512, device.new_pass()))
    assert session.tokens[len(PROMPT) :][:24] == reference_tokens(target, PROMPT, 24, sampling)
    assert [step.proposed for step in steps] == [0] + [1] * (len(steps) - 1)
    assert all(len(step.places) == step.proposed and UNKNOWN not in step.places for step in steps)


def _decoding(device):
    """A session whose last token is not in the target's cache; n-grams find 8, 5, 6, 7, 8, 5 after a match of 3."""
    session = device.open((5, 6, 7, 8, 5, 6), 40)
    device.decoder.step(session, [], 512, device.new_pass())
    session.tokens[-1] = 7
    return session


def test_ngrams_that_agree_in_too_few_tokens_are_passed_over(device):
    asked = DraftChoice("ngram", 4, least_match=3)
    step = device.decoder.step(_decoding(device), [asked, *THREE], 512, device.new_pass())
    assert (step.draft_kind, step.proposed, step.places) == ("ngram", 4, (UNKNOWN,) * 4)
    stricter = [asked._replace(least_match=4), *THREE]
    step = device.decoder.step(_decoding(device), stricter, 512, device.new_pass())
    assert (step.draft_kind, step.proposed) == ("model", 3) and UNKNOWN not in step.places
    assert step.ngrams[:2] == (3, 6)


def test_ngrams_are_judged_at_every_step_whoever_drafts(device, target, monkeypatch):
    """An earlier text says for three tokens what the target will say, and then another."""
    said, searched = reference_tokens(target, PROMPT, 12), []
    assert said[3] != 319
    history = History(4096)
    history.remember((*PROMPT, *said[:3], 319, *said[4:]))
    view = history.view
    monkeypatch.setattr(history, "view", lambda: searched.append(0) or view())
    monkeypatch.setattr(device.decoder.drafts["ngram"], "_history", history)
    asked = [[], THREE, [DraftChoice("ngram", 8)], [DraftChoice("ngram", 1)], [DraftChoice("ngram", 8, 9), *THREE]]
    kinds, stood = [], []
    for choices in asked:
        session = device.open(PROMPT, 24)
        assert device.decoder.step(session, choices, 512, device.new_pass()).ngrams.match == 0
        step = device.decoder.step(session, choices, 512, device.new_pass())
        assert step.ngrams == Judgement(8, 11, min(2, len(step.emitted)), len(step.emitted))
        kinds.append(step.draft_kind)
        stood.append(step.ngrams.stood)
    assert kinds == ["", "model", "ngram", "ngram", "model"] and len(searched) == len(asked)
    assert stood[0] == 1 and stood[2:4] == [2, 2]


def test_a_device_without_ngrams_judges_none(device, monkeypatch):
    monkeypatch.setattr(device.decoder, "drafts", {"model": device.decoder.drafts["model"]})
    step = device.decoder.step(_decoding(device), THREE, 512, device.new_pass())
    assert step.proposed == 3 and step.ngrams.match == 0


def test_caches_stay_within_what_was_reserved(device):
    session = device.open(PROMPT, 12)
    session.reserved_tokens = len(PROMPT) + 12
    token_bytes = session_bytes = 0
    while len(session.tokens) < session.reserved_tokens:
        device.decoder.step(session, EIGHT, 512, device.new_pass())
        token_bytes = token_bytes or session.target_cache.nbytes() // session.target_cache.length
        session_bytes = max(session_bytes, session.target_cache.nbytes())
        assert session_bytes <= session.reserved_tokens * token_bytes


def test_the_end_of_the_context_is_an_error_not_a_wrong_token(device):
    limit = device.decoder.target.context_length
    session = device.open([5] * (limit - 2), 64)
    for _ in range(8):
        if len(session.tokens) > limit:
            break
        device.decoder.step(session, EIGHT, 512, device.new_pass())
    assert len(session.tokens) == limit + 1  # the last token needs no position of its own
    with pytest.raises(ContextFull, match="context is 256"):
        device.decoder.step(session, EIGHT, 512, device.new_pass())
