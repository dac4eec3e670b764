from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moespac.actors.policy.reactive import WorkerCost, makespan, split_misses

costs = st.floats(0, 10, allow_nan=False)
workers = st.lists(st.builds(WorkerCost, st.just("w"), costs, costs, costs), min_size=1, max_size=4)
loads = st.dictionaries(st.integers(0, 127), st.integers(1, 9), max_size=40)


@given(loads, workers)
def test_no_expert_is_lost_or_given_twice(pairs, workers):
    shares = split_misses(pairs, workers)
    assert len(shares) == len(workers)
    assert sorted(e for share in shares for e in share) == sorted(pairs)
    assert all(share == sorted(share) for share in shares)


@given(loads, workers)
def test_order_of_the_mapping_does_not_matter(pairs, workers):
    assert split_misses(pairs, workers) == split_misses(dict(reversed(pairs.items())), workers)


@given(st.dictionaries(st.integers(0, 9), st.integers(1, 9), max_size=6), st.integers(1, 3))
@settings(max_examples=50)
def test_equal_workers_stay_within_grahams_bound(pairs, count):
    workers = [WorkerCost(f"w{i}", 0.0, 1.0, 1.0) for i in range(count)]
    best = min(
        makespan(pairs, workers, [[e for e, at in zip(pairs, places, strict=True) if at == w] for w in range(count)])
        for places in product(range(count), repeat=len(pairs))
    )
    assert makespan(pairs, workers, split_misses(pairs, workers)) <= (4 / 3 - 1 / (3 * count)) * best + 1e-9


@given(
    st.dictionaries(st.integers(0, 9), st.integers(1, 9), min_size=1, max_size=6),
    st.lists(st.builds(WorkerCost, st.just("w"), *[st.floats(0.01, 10)] * 3), min_size=1, max_size=3),
)
@settings(max_examples=100, deadline=None)
def test_close_to_the_best_of_all_even_with_few_experts(pairs, workers):
    def shares(places):
        return [[e for e, at in zip(pairs, places, strict=True) if at == w] for w in range(len(workers))]

    best = min(makespan(pairs, workers, shares(places)) for places in product(range(len(workers)), repeat=len(pairs)))
    # No more than the dearest single expert on its best worker above the optimum.
    slack = max(min(w.expert_s + w.pair_s * p for w in workers) for p in pairs.values())
    assert makespan(pairs, workers, split_misses(pairs, workers)) <= best + slack + 1e-9


def test_heavy_experts_go_where_a_pair_costs_little():
    processor, link = WorkerCost("cpu", 0.0, 1.0, 1.0), WorkerCost("link", 0.0, 6.0, 0.0)
    shares = split_misses({e: 1 for e in range(20)} | {20: 9, 21: 9, 22: 8}, [processor, link])
    assert set(shares[1]) >= {20, 21, 22}


def test_many_experts_on_divisible_terms():
    """A lower bound by prices: Σ_e min_w λ_w·cost, λ adding up to 1, is below the makespan of any shares."""
    pairs = {e: 1 + (7 * e) % 5 for e in range(64)}
    workers = [WorkerCost("a", 0.1, 1.0, 0.1), WorkerCost("b", 0.2, 2.0, 0.05), WorkerCost("c", 0.0, 1.5, 0.8)]
    prices = ((a / 40, b / 40, 1 - (a + b) / 40) for a in range(41) for b in range(41 - a))
    bound = max(
        sum(min(q * (w.expert_s + w.pair_s * p) for q, w in zip(price, workers, strict=True)) for p in pairs.values())
        for price in prices
    )
    assert makespan(pairs, workers, split_misses(pairs, workers)) <= 1.04 * bound


def test_slow_worker_gets_what_it_can_finish_in_time():
    fast, slow = WorkerCost("fast", 0.0, 1.0, 0.0), WorkerCost("slow", 0.0, 3.0, 0.0)
    assert [len(share) for share in split_misses(dict.fromkeys(range(8), 1), [fast, slow])] == [6, 2]


def test_a_call_is_not_worth_its_overhead_for_little_work():
    here, far = WorkerCost("here", 0.0, 1.0, 0.0), WorkerCost("far", 100.0, 0.1, 0.0)
    assert split_misses({3: 1, 1: 1}, [here, far]) == [[1, 3], []]


def test_a_call_that_dwarfs_its_experts():
    """So long that adding them changes no digit of it."""
    worker = WorkerCost("w", 1e9, 0.0, 0.0)
    assert split_misses({3: 1, 1: 4}, [worker]) == [[1, 3]]
    shares = split_misses({e: 1 + e % 2 for e in range(20)}, [worker] * 3)
    assert sorted(e for share in shares for e in share) == list(range(20))


def test_no_worker():
    assert split_misses({}, []) == []
    with pytest.raises(ValueError, match="no worker"):
        split_misses({1: 1}, [])
