"""Fixed placements and plain caches: what defines each."""

import numpy as np
import pytest
from simulated import layer, setting, step

from moespac.actors.core import ExpertKey, RoutingWindow
from moespac.actors.policy.rivals.fate import Arc, Fate
from moespac.actors.policy.rivals.interface import Roofline
from moespac.actors.policy.rivals.moe_infinity import MoeInfinity
from moespac.actors.policy.rivals.on_demand import MixtralOffload, OnDemand, even_slots
from moespac.actors.policy.rivals.registry import POLICIES, policy_class
from moespac.actors.policy.rivals.static import Accelerate, Fiddler, KTransformers, LlamaCpp, Vllm


def test_an_unknown_policy_is_one_clear_error():
    with pytest.raises(ValueError, match=r"policy 'lru' is unknown; choose among on-demand, "):
        policy_class("lru")


def test_slots_are_shared_out_evenly():
    assert even_slots(7, 3) == [3, 2, 2]
    assert OnDemand(setting(slots=7)).pools() == [3, 2, 2]


def test_on_demand_fetches_and_foresees_nothing():
    decision = OnDemand(setting()).layer(layer(0, {1: 1, 4: 2}, residents=[4]))
    assert decision.fetch == [1] and not decision.cpu and decision.wishes is None


def test_mixtral_offload_prefetches_the_next_gates_top_two():
    policy = MixtralOffload(setting(accuracy=1.0))
    wishes = policy.layer(layer(0, {1: 1}, ahead={1: [[3, 5], [3, 6], [5, 3]]})).wishes
    assert [key for key, _ in wishes] == [ExpertKey(1, 3), ExpertKey(1, 5)]
    assert policy.layer(layer(2, {1: 1})).wishes == ()


def test_fiddler_crosses_over_where_the_cpu_takes_longer_than_the_link():
    # 70 against 7 a token, as in its paper: ten tokens and more are fetched.
    policy = Fiddler(setting(cpu=Roofline(0.0, 7e-3), device=Roofline(0.0, 0.0), transfer_s=70e-3))
    decision = policy.layer(layer(0, {0: 9, 1: 10, 2: 11}))
    assert (decision.fetch, decision.cpu) == ([2], [0, 1])
    assert not policy.keeps_fetched


def test_static_residents_are_the_profiles_most_used():
    profile = np.zeros((3, 8), dtype=int)
    profile[1, 5], profile[2, 0] = 9, 8
    residents = KTransformers(setting(slots=2, profile=profile)).initial()
    assert residents == [ExpertKey(1, 5), ExpertKey(2, 0)]
    uniform = KTransformers(setting(slots=6)).initial()
    assert sorted(key.layer for key in uniform) == [0, 0, 1, 1, 2, 2]


def test_llama_cpp_keeps_whole_layers_the_last_ones():
    assert LlamaCpp(setting(slots=20)).initial() == [ExpertKey(row, e) for row in (1, 2) for e in range(8)]
    assert LlamaCpp(setting(slots=7)).initial() == []
    decision = LlamaCpp(setting()).layer(layer(0, {1: 1}))
    assert decision.cpu == [1] and LlamaCpp.serial


def test_offloading_without_cpu_reads_the_link_every_time():
    for kind in (Vllm, Accelerate):
        assert kind(setting()).layer(layer(0, {1: 1})).fetch == [1] and not kind.keeps_fetched
    assert Accelerate.pageable and not Vllm.pageable


def test_moe_infinity_follows_the_nearest_request():
    policy = MoeInfinity(setting(layers=2, n_experts=4, top_k=1))
    requests = {"a": [[3, 0, 0, 0], [0, 0, 3, 0]], "b": [[0, 3, 0, 0], [0, 0, 0, 3]]}
    for name, counts in requests.items():
        policy.begin(step(counts, 3, request=name))
        policy.end(RoutingWindow(3, np.array(counts)), 0, 1.0)
    start = np.array([[0, 1, 0, 0], [0, 0, 1, 0]])
    policy.begin(step(start, 1, request="c"))
    policy.end(RoutingWindow(1, np.array([[0, 1, 0, 0], [0, 0, 0, 1]])), 0, 1.0)
    best = max(policy.begin(step(start, 1, request="c")), key=lambda wish: wish[1])[0]
    assert best == ExpertKey(0, 1)
    assert policy.layer(layer(0, {1: 1})).wishes[0][0] == ExpertKey(1, 3)


def test_moe_infinity_values_what_comes_sooner():
    policy = MoeInfinity(setting(layers=3, n_experts=4, top_k=1))
    counts = np.array([[1, 0, 0, 0]] * 3)
    policy.end(RoutingWindow(1, counts), 0, 1.0)
    policy.begin(step(counts, 1))
    policy.layer(layer(0, {0: 1}))
    # Layer 1 comes next, layer 2 after it, layer 0 only in the next pass.
    values = [policy.worth(ExpertKey(row, 0)) for row in (1, 2)]
    assert values[0] > values[1] > 0


def test_fate_keeps_early_layers_whole_and_guesses_few():
    policy = Fate(setting(layers=4, n_experts=8, slots=20))
    assert policy.pools() == [8, 4, 4, 4] and len(policy.initial()) == 8
    many = Fate(setting(layers=8, n_experts=8, slots=64))
    assert many.pools()[:4] == [8] * 4
    routing = [[1, 2], [1, 2], [1, 3]]
    policy.end(RoutingWindow(1, np.zeros((4, 8))), 0, seconds=4 * 4.5e-3)
    wishes = policy.layer(layer(1, {0: 1}, ahead={2: routing})).wishes
    # A layer of 4.5 ms has room for one transfer of 4 ms.
    assert [key for key, _ in wishes] == [ExpertKey(2, 1)]


def test_arc_protects_what_was_used_twice_and_learns_from_ghosts():
    arc = Arc(2)
    arc.move(0, None)
    arc.move(1, None)
    arc.hit(0)
    assert arc.leaves_first(1) and not arc.leaves_first(0)
    arc.move(2, 1)
    assert arc.target == 0
    arc.move(1, 2)
    assert arc.target == 1 and 1 in arc.again


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_says_what_it_is(name):
    assert POLICIES[name].__doc__
