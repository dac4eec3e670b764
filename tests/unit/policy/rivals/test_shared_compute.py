"""Policies that share experts out, look ahead, or follow MoE-SpAc: what defines each."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated import layer, setting, step

from moespac.actors.core import ExpertKey, RoutingWindow
from moespac.actors.policy.ngram import Judgement
from moespac.actors.policy.prefetch_order import UNIT
from moespac.actors.policy.rivals.belady import BeladyDemand
from moespac.actors.policy.rivals.hybrimoe import Dali, HybriMoe
from moespac.actors.policy.rivals.lookahead import MoeSpeq, SpMoe
from moespac.actors.policy.rivals.moe_spac import MoeSpacDescribed, MoeSpacReleased
from moespac.actors.policy.rivals.moespac import REPLAN_EVERY, Clairvoyant, Moespac
from moespac.actors.policy.rivals.prediction import GatePredictor, perturbed
from moespac.actors.policy.rivals.two_ended import by_difference, two_ended


@given(st.dictionaries(st.integers(0, 15), st.integers(1, 9), max_size=12), st.sets(st.integers(0, 15)))
def test_splits_cover_every_expert_once(pairs, residents):
    for rule in (two_ended, by_difference):
        split = rule(setting(), pairs, residents, 0.0)
        assert sorted(split.device + split.cpu) == sorted(pairs)
        assert split.makespan_s >= max(len(split.cpu) * 2e-3, len(split.device) * 1e-3) - 1e-12


def test_two_ended_gives_the_device_residents_and_the_cpu_the_lightest():
    split = two_ended(setting(), {0: 5, 1: 1, 2: 3, 3: 2}, residents=[0], link_free_s=0.0)
    # The device has expert 0 after 1 ms and could fetch the heaviest other, 2, by 5 ms; the CPU starts at the lightest.
    assert split.device == [0, 2] and split.cpu == [1, 3]


def test_hybrimoe_scores_decay_and_prefetch_where_it_helps():
    policy = HybriMoe(setting(accuracy=1.0))
    policy.layer(layer(2, {1: 3, 2: 1}))
    assert policy.worth(ExpertKey(2, 1)) == pytest.approx(0.5 * 0.75)
    policy.layer(layer(2, {2: 4}))
    assert policy.worth(ExpertKey(2, 1)) == pytest.approx(0.25 * 0.75)
    ahead = {1: [[4, 5]], 2: [[6, 7]]}
    wishes = policy.layer(layer(0, {0: 1}, ahead=ahead, cached={ExpertKey(1, 4)})).wishes
    assert {key for key, _ in wishes} <= {ExpertKey(1, 5), ExpertKey(2, 6), ExpertKey(2, 7)} and wishes


def test_dali_swaps_the_heaviest_absent_expert_in_once_a_period():
    policy = Dali(setting(layers=1, n_experts=4, top_k=1))
    counts = np.array([[5, 2, 1, 0]])
    assert policy.begin(step(counts, 4)) is None
    policy.end(RoutingWindow(8, counts), 0, 1.0)
    assert policy.begin(step(counts, 4, cached={ExpertKey(0, 0)})) == [(ExpertKey(0, 1), 2)]
    assert policy.worth(ExpertKey(0, 0)) > policy.worth(ExpertKey(0, 2))


def test_sp_moe_stops_at_the_layer_that_drafting_cannot_cover():
    # 2 drafts of 10 ms move 5 experts of 4 ms: two of layer 0 and two of layer 1, but not layer 2's as well.
    counts = np.zeros((3, 8), dtype=int)
    counts[:, :2] = 3
    wishes = SpMoe(setting()).begin(step(counts, 3))
    assert {key.layer for key, _ in wishes} == {0, 1} and len(wishes) == 4
    assert wishes[0][1] > wishes[-1][1]


def test_moe_speq_evicts_what_the_lookahead_does_not_want():
    policy = MoeSpeq(setting())
    counts = np.zeros((3, 8), dtype=int)
    counts[0, 1], counts[0, 2] = 4, 1
    policy.begin(step(counts, 3))
    assert policy.worth(ExpertKey(0, 1)) > policy.worth(ExpertKey(0, 2)) > policy.worth(ExpertKey(0, 3))
    policy.layer(layer(0, {1: 4, 2: 1}))
    assert policy.worth(ExpertKey(0, 1)) == policy.worth(ExpertKey(0, 3)) == 0
    assert 1 <= policy.gamma("r", 100) <= 4


def test_the_release_keeps_what_scores_and_computes_misses_on_the_cpu():
    policy = MoeSpacReleased(setting(gamma=8))
    decision = policy.layer(layer(0, {0: 9, 1: 4}))
    assert decision.cpu == [0, 1] and not decision.fetch
    # 9 − 0 reaches the boundary of 5, 4 − 0 does not.
    assert decision.wishes == [(ExpertKey(0, 0), 1)]
    assert (policy.worth(ExpertKey(0, 0)), policy.worth(ExpertKey(0, 1))) == (1, 0)
    assert policy.serial and policy.pageable


def test_as_described_boundaries_follow_the_window_and_plans_choose_thresholds():
    policy = MoeSpacDescribed(setting(gamma=2, slots=2))
    counts = np.zeros((3, 8), dtype=int)
    counts[:, :2] = 3
    for index in range(policy.PLAN_EVERY + 1):
        policy.begin(step(counts, 3, index))
        for row in range(3):
            decision = policy.layer(layer(row, {0: 3, 1: 3}))
        policy.end(RoutingWindow(3, counts), 2, 0.1)
    # Two promotions in windows of three reach the level that 3 − s >= 2 allows.
    assert {utility for _, utility in decision.wishes} <= {1, 2}
    hot = policy.begin(step(counts, 3, 9)) or []
    assert len(hot) <= 6 and not policy.serial and not policy.pageable


def test_belady_evicts_the_farthest_and_lets_the_farther_pass():
    policy = BeladyDemand(setting(layers=1, n_experts=3, top_k=1))
    policy.foresee([np.array([row]) for row in ([1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 0])])
    policy.begin(step(np.zeros((1, 3)), 1))
    policy.layer(layer(0, {0: 1}))
    values = [policy.worth(ExpertKey(0, e)) for e in range(3)]
    assert values[1] > values[0] > values[2]


@pytest.mark.parametrize("accuracy", [0.0, 0.5, 0.88, 1.0])
def test_predictions_are_as_accurate_as_stated(accuracy):
    routing = np.tile(np.arange(6), (2000, 1))
    share = GatePredictor(60, accuracy).counts(routing)[:6].sum() / routing.size
    assert share == pytest.approx(accuracy + (1 - accuracy) / 10, abs=0.02)
    counts = np.full((2, 60), 0)
    counts[:, :6] = 1000
    assert perturbed(counts, accuracy, np.random.default_rng(0))[:, :6].sum() / 12000 == pytest.approx(share, abs=0.02)


def test_an_impossible_accuracy_is_refused():
    with pytest.raises(ValueError, match=r"gate accuracy is 1\.2; expected 0 to 1"):
        GatePredictor(4, 1.2)


def test_own_policy_follows_a_plan_when_it_is_ready_and_then_utilities_after_every_step():
    told = setting(layers=3, n_experts=8, slots=6, plan_s=40e-3, refresh_s=5e-3, tell_s=5e-3)
    policy = Clairvoyant(told)
    for key in policy.initial():
        policy.moved(key, None)
    usual, changed = np.zeros((3, 8), dtype=int), np.zeros((3, 8), dtype=int)
    usual[:, [4, 5]] = changed[:, [6, 7]] = 5
    now = 0.0

    def begun(counts):
        return policy.begin(replace(step(counts, 5), now_s=now))

    def at(row, now_s):
        return policy.layer(replace(layer(row, {4: 5, 5: 5}), now_s=now_s))

    for _ in range(REPLAN_EVERY):
        assert begun(usual) is None, "nothing is planned yet"
        policy.end(RoutingWindow(5, usual), 4, 0.1)
        now += 0.1
    assert begun(usual) is None and at(0, now + 0.044).wishes is None, "the plan is still being made"
    wishes = at(1, now + 0.046).wishes
    assert {key.expert for key, _ in wishes} <= {4, 5} and ExpertKey(2, 4) in [key for key, _ in wishes]
    assert policy.worth(ExpertKey(2, 4)) > policy.worth(ExpertKey(2, 0)) + policy.transfer_cost()
    policy.end(RoutingWindow(5, usual), 4, 0.1)
    now += 0.1
    before = policy.worths()
    assert begun(changed) is None and at(0, now + 0.009).wishes is None
    assert (policy.worths() == before).all()
    assert at(1, now + 0.011).wishes is not None, "after one step"
    assert policy.worth(ExpertKey(2, 6)) >= before[2, 6] + 0.9 * UNIT, "what the coming window wants"


@pytest.mark.parametrize(("rate", "drafted"), [(0.95, range(4, 17)), (0.1, range(1))])
@pytest.mark.parametrize("kind", ["model", "ngram"])
def test_own_policy_drafts_as_many_as_the_engines_governor_finds_worth_it(rate, drafted, kind):
    policy, match = Moespac(setting(draft_kind=kind, draft_token_s=1e-3)), 8 if kind == "ngram" else 0
    random = np.random.default_rng(0)
    for index in range(150):
        gamma = policy.gamma("r", 10**6, match)
        policy.begin(step(np.zeros((3, 8)), gamma + 1, index))
        accepted = int(np.argmin(np.append(random.random(gamma) < rate, False)))
        seconds = 5e-3 + 5e-3 * (gamma + 1) ** 0.6 + 1e-3 * gamma
        copied = int(np.argmin(np.append(random.random(16) < rate, False))) if gamma == 0 else accepted
        policy.judged(Judgement(match, 16, min(copied, accepted + 1), accepted + 1))
        counts = np.zeros((3, 8), dtype=int)
        counts[:, :2] = gamma + 1
        policy.end(RoutingWindow(gamma + 1, counts), accepted, seconds)
    chosen = [policy.gamma("r", 10**6, match) for _ in range(3)]
    assert max(chosen) in drafted and policy.gamma("r", 1) == 0
    assert Moespac(setting(gamma=0)).gamma("r", 100) == 0


def test_own_policy_sends_every_miss_somewhere():
    policy = Moespac(setting())
    policy.begin(step(np.zeros((3, 8)), 3))
    decision = policy.layer(layer(0, {0: 1, 1: 2, 2: 1, 3: 1}, residents=[3]))
    assert sorted([*decision.fetch, *decision.cpu]) == [0, 1, 2]
    assert decision.cpu
