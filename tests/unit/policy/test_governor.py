"""The governor in worlds whose best choice is known."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
from drafting_world import World, achieved, length
from hypothesis import given, settings
from hypothesis import strategies as st

from moespac.actors.core import DRAFT_KINDS, DraftChoice
from moespac.actors.policy.chain import LONGEST
from moespac.actors.policy.drafting_facts import RequestDrafts, StepSeen
from moespac.actors.policy.governor import EXPLORATION, SAVED_UP, Decision, Governor
from moespac.actors.policy.ngram import Judgement

GOOD, FAIR, BAD = (np.full(LONGEST, rate) for rate in (0.92, 0.6, 0.15))
TOKEN_S = {"model": 1e-3, "ngram": 1e-6, "self": 4e-3}


def calibrated(world: World, kinds=DRAFT_KINDS) -> Governor:
    """A governor that knows what things take, as the scheduler's warm-up tells it."""
    governor = Governor(kinds)
    for gamma in (2, 8):
        for choices in [(), *((DraftChoice(kind, gamma),) for kind in kinds if kind != "ngram")]:
            governor.calibrate(world.step(Decision(choices, "best", 1.0, 1.0)))
    return governor


WORLDS = {
    "model is good": World({"model": GOOD, "ngram": FAIR, "self": FAIR}, TOKEN_S),
    "model is slow": World({"model": GOOD, "ngram": BAD, "self": FAIR}, TOKEN_S | {"model": 9e-3}),
    "self is good and cheap": World({"model": BAD, "ngram": BAD, "self": GOOD}, TOKEN_S | {"self": 1e-3}),
    "text repeats": World({"model": FAIR, "ngram": GOOD, "self": FAIR}, TOKEN_S, found=0.8),
    "nothing helps": World({"model": BAD, "ngram": BAD, "self": BAD}, TOKEN_S),
    "experts do not overlap": World({"model": FAIR, "ngram": BAD, "self": FAIR}, TOKEN_S, growth=0.95, miss_s=1e-3),
    "timings are noisy": World({"model": GOOD, "ngram": FAIR, "self": FAIR}, TOKEN_S, noise=0.5),
}


@pytest.mark.parametrize("name", WORLDS)
def test_it_converges_to_the_best(name):
    world = WORLDS[name]
    world.rng = np.random.default_rng(7)
    governor = calibrated(world)
    world.run(governor, 200)
    late = achieved(world, world.run(governor, 300))
    assert late > 0.94 * world.rate(world.best())
    assert late > 0.985 * world.rate(())


def test_what_seemed_too_dear_at_first_is_tried_again():
    """While slots fill, windows with drafts take twice as long as later: no reason to do without for ever."""
    cold = World({"model": GOOD}, {"model": 3e-3}, growth=0.9, miss_s=3e-4, rest_s=2e-3)
    warm = World({"model": GOOD}, {"model": 3e-3}, growth=0.5, miss_s=1e-4, rest_s=2e-3, seed=1)
    governor = Governor(("model",))
    for _ in range(12):
        governor.calibrate(cold.step(Decision((DraftChoice("model", 4),), "best", 1.0, 1.0)))
        governor.calibrate(warm.step(Decision((), "best", 1.0, 1.0)))
    request = RequestDrafts()
    assert not governor.decide(request, 1000).choices
    warm.run(governor, 500, request)
    assert achieved(warm, warm.run(governor, 200, request)) > 0.95 * warm.rate(warm.best())


def test_it_adapts_when_acceptance_and_times_change():
    before = World({"model": GOOD, "ngram": BAD, "self": BAD}, TOKEN_S)
    after = World({"model": BAD, "ngram": BAD, "self": GOOD}, TOKEN_S | {"self": 1e-3}, seed=1)
    governor, request = calibrated(before), RequestDrafts()
    before.run(governor, 300, request)
    after.run(governor, 700, request)
    assert achieved(after, after.run(governor, 200, request)) > 0.93 * after.rate(after.best())


def test_requests_of_different_text_are_told_apart():
    easy = World({"model": GOOD}, {"model": 2.5e-3}, rest_s=2e-3)
    hard = World({"model": BAD}, {"model": 2.5e-3}, rest_s=2e-3, seed=1)
    governor, requests = calibrated(easy, ("model",)), (RequestDrafts(), RequestDrafts())
    done = ([], [])
    for _ in range(150):
        for world, request, steps in zip((easy, hard), requests, done, strict=True):
            steps += world.run(governor, 1, request)
    drafted = [np.mean([seen.proposed for _, seen in steps[50:]]) for steps in done]
    assert drafted[0] > 3 > 1 > drafted[1]


def test_a_draft_that_says_how_sure_it_is_ends_where_it_is_not():
    """Of the tokens that it is sure of 19 in 20 stand, of the others none: better than any number of tokens given."""
    rates = {"model": np.full(LONGEST, 0.95)}
    speeds = {}
    for gamma in (None, 1, 2, 3, 4, 6, 8):
        world = World(rates, {"model": 1.5e-3}, unsure=0.3, seed=5)
        governor, request = calibrated(world, ("model",)), RequestDrafts()
        world.run(governor, 100, request, gamma)
        done = world.run(governor, 600, request, gamma)
        speeds[gamma] = sum(seen.accepted + 1 for _, seen in done) / sum(seen.turn_s for _, seen in done)
    assert speeds[None] > 1.08 * max(speed for gamma, speed in speeds.items() if gamma is not None)


def test_ngrams_are_asked_from_the_match_on_that_pays():
    """Judged while the model's drafts are verified: nobody had to ask them."""
    governor, request, world = Governor(("model", "ngram")), RequestDrafts(), World({"model": GOOD}, TOKEN_S)
    for step in range(120):
        choices = (DraftChoice("model", 4),)
        seen = world.step(Decision(choices, "fixed", 1.0, 1.0))
        emitted = seen.accepted + 1
        judged = Judgement(9, 16, emitted, emitted) if step % 2 else Judgement(3, 6, 0, emitted)
        governor.observe(request, Decision(choices, "fixed", 1.0, 1.0), replace(seen, ngrams=judged))
    first, *others = governor.decide(request, 1000).choices
    assert first.kind == "ngram" and first.least_match == 8 and first.gamma > 8
    assert 2 not in [choice.least_match for choice in others]


def test_greedy_and_sampled_requests_are_told_apart_from_the_start():
    worlds = {
        sampled: World({"model": rates}, {"model": 2.5e-3}, rest_s=2e-3, seed=sampled)
        for sampled, rates in ((False, GOOD), (True, BAD))
    }
    governor = calibrated(worlds[False], ("model",))
    for _ in range(6):
        for sampled, world in worlds.items():
            world.run(governor, 40, RequestDrafts("coupled" if sampled else "greedy"))
    fresh = {
        sampled: governor.decide(RequestDrafts("coupled" if sampled else "greedy"), 1000).choices for sampled in worlds
    }
    assert sum(map(length, fresh[False])) > 3 and not fresh[True]


def test_what_may_be_lost_to_learn_is_not_saved_for_ever():
    world = World({"model": BAD}, {"model": 1e-3})
    governor = calibrated(world, ("model",))
    world.run(governor, 200)
    world.run(governor, 2000, gamma=0)
    done = world.run(governor, 400)
    lost = sum(decision.loss_s for decision, _ in done)
    assert lost < 0.02 * sum(seen.turn_s for _, seen in done)


STEPS = st.tuples(st.integers(0, 16), st.floats(1e-5, 1.0), st.floats(1e-5, 1.0))


@settings(max_examples=60)
@given(st.lists(STEPS, min_size=1, max_size=50), st.integers(1, 40))
def test_it_never_promises_less_than_without_drafts_beyond_its_exploration(steps, remaining):
    """Whatever is measured: any accepted prefix, any times."""
    governor, request, elapsed, lost, slowest = Governor(DRAFT_KINDS), RequestDrafts(), 0.0, 0.0, 0.0
    for accepted, draft_s, verify_s in steps:
        decision = governor.decide(request, remaining)
        assert all(0 < choice.gamma <= min(LONGEST, remaining - 1) for choice in decision.choices)
        assert decision.rate >= decision.unassisted_rate * (1 - 1e-9)
        assert decision.reason == "explore" or decision.loss_s == 0
        lost, slowest = lost + decision.loss_s, max(slowest, 1.0 / decision.unassisted_rate)
        assert not lost or lost <= EXPLORATION * (elapsed + SAVED_UP * slowest) * (1 + 1e-9)
        kind, gamma = decision.choices[0][:2] if decision.choices else ("", 0)
        turn_s = draft_s + verify_s
        seen = StepSeen(kind, gamma, min(gamma, accepted), draft_s, turn_s)
        governor.observe(request, decision, seen)
        elapsed += turn_s


def test_exploration_loses_less_than_its_share():
    world = World({"model": FAIR, "ngram": BAD, "self": FAIR}, TOKEN_S, seed=3)
    governor = calibrated(world)
    world.run(governor, 100)
    done = world.run(governor, 3000)
    elapsed = sum(seen.turn_s for _, seen in done)
    explored = [(decision, seen) for decision, seen in done if decision.reason == "explore"]
    assert len(explored) >= 5
    lost = sum(seen.turn_s - (seen.accepted + 1) / decision.rate for decision, seen in explored)
    assert lost < 0.01 * elapsed


def test_a_given_number_of_tokens_is_kept():
    world = WORLDS["model is good"]
    governor, request = calibrated(world), RequestDrafts()
    decisions = [decision for decision, _ in world.run(governor, 40, request, gamma=3)]
    assert {choice.gamma for decision in decisions for choice in decision.choices} == {3}
    assert all(decision.choices for decision in decisions)
    assert governor.decide(request, 10, gamma=0).choices == ()
    assert {choice.gamma for choice in governor.decide(request, 2, gamma=3).choices} == {1}


def test_without_drafts_there_is_nothing_to_choose():
    governor, request = Governor(()), RequestDrafts()
    for _ in range(300):
        decision = governor.decide(request, 100)
        assert decision.choices == ()
        governor.observe(request, decision, StepSeen("", 0, 0, 0.0, 1.1e-2))


def test_catching_up_on_a_long_prompt_must_pay_within_what_remains():
    world = World({"model": GOOD}, {"model": 1e-3})
    governor = Governor(("model",))
    for behind in (0, 100, 1000) * 4:
        for gamma in (2, 6):
            seen = world.step(Decision((DraftChoice("model", gamma),), "best", 1.0, 1.0))
            request = RequestDrafts(behind={"model": behind})
            late = seen.draft_s + 1e-3 * behind
            governor.observe(
                request,
                governor.decide(request, 100),
                StepSeen("model", gamma, gamma, late, late + seen.turn_s - seen.draft_s),
            )
    assert governor.decide(RequestDrafts(behind={"model": 4000}), 2000).choices
    assert not governor.decide(RequestDrafts(behind={"model": 4000}), 20).choices


def test_equal_histories_give_equal_choices():
    runs = []
    for _ in range(2):
        world = World({"model": FAIR, "ngram": FAIR, "self": FAIR}, TOKEN_S, seed=11)
        runs.append([decision for decision, _ in world.run(calibrated(world), 300)])
    assert runs[0] == runs[1]


def differs(one: tuple[DraftChoice, ...], other: tuple[DraftChoice, ...]) -> bool:
    """By a draft, its length or, of those that end themselves, by how early."""
    if [choice[:3] for choice in one] != [choice[:3] for choice in other]:
        return True
    floors = [(a.floors[1:], b.floors[1:]) for a, b in zip(one, other, strict=True) if a.floors]
    return any(np.max(np.abs(np.log(np.divide(a, b)))) > 0.1 for a, b in floors)


def test_an_exploration_is_not_what_would_be_done_anyway(monkeypatch):
    """Matches of two lengths, a draft model and a self-draft: whatever is tried differs from the best at that time."""
    world = World({"model": FAIR, "ngram": GOOD, "self": FAIR}, TOKEN_S, seed=2)
    governor, request, tried = calibrated(world), RequestDrafts(), set()
    for step in range(600):
        with monkeypatch.context() as patch:
            patch.setattr("moespac.actors.policy.governor.EXPLORE_EVERY", 10**9)
            usual = deepcopy(governor).decide(deepcopy(request), 1000)
        decision = governor.decide(request, 1000)
        if decision.reason == "explore":
            assert differs(decision.choices, usual.choices)
            tried.add(decision.tried)
        seen = world.step(decision)
        found = (9, 16, min(16, seen.accepted + 1)) if step % 2 else (3, 6, 0)
        governor.observe(request, decision, replace(seen, ngrams=Judgement(*found, seen.accepted + 1)))
    assert len(tried) > 1
