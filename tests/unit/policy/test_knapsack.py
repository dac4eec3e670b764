"""One column a row under two budgets: proved choices are the best of all, given-up ones still valid."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moespac.actors.policy import knapsack
from moespac.actors.policy.balancer import ThresholdProblem, plan_thresholds
from moespac.actors.policy.cost import Costs
from moespac.actors.policy.greedy import greedy_choices
from moespac.actors.policy.knapsack import solve_choices


def random_table(seed, rows=4, columns=4):
    rng = np.random.default_rng(seed)
    size, transfers = (np.sort(rng.integers(0, 9, (rows, columns)), axis=1)[:, ::-1] for _ in range(2))
    size, transfers = size - size[:, -1:], transfers - transfers[:, -1:]
    cost = rng.integers(0, int(rng.choice([4, 1000])), (rows, columns))
    return cost, size, transfers, int(rng.integers(0, 9 * rows)), int(rng.integers(0, 9 * rows))


def least(cost, size, transfers, slots, link):
    rows = np.arange(len(cost))
    choices = (np.array(c) for c in product(range(cost.shape[1]), repeat=len(cost)))
    fit = (c for c in choices if size[rows, c].sum() <= slots and transfers[rows, c].sum() <= link)
    return min(cost[rows, c].sum() for c in fit)


@given(st.integers(0, 2**32), st.integers(1, 5), st.integers(1, 4))
@settings(max_examples=200, deadline=None)
def test_the_best_of_all_from_any_start(seed, rows, columns):
    table = cost, size, transfers, slots, link = random_table(seed, rows, columns)
    best, at = least(*table), np.arange(rows)
    for start in (greedy_choices(*table), np.full(rows, columns - 1)):
        found = solve_choices(*table, start)
        assert cost[at, found.choice].sum() == best == found.bound and found.proved
        assert size[at, found.choice].sum() <= slots and transfers[at, found.choice].sum() <= link


@pytest.fixture
def narrow(monkeypatch):
    """So few partial solutions that proofs fail."""
    monkeypatch.setattr(knapsack, "NARROW", 1)
    monkeypatch.setattr(knapsack, "WIDE", 1)


def test_given_up_choices_are_valid_and_their_bounds_hold(narrow):
    unproved = 0
    for seed in range(80):
        table = cost, size, transfers, slots, link = random_table(seed, 5, 4)
        start, at = greedy_choices(*table), np.arange(5)
        found = solve_choices(*table, start)
        total = cost[at, found.choice].sum()
        assert size[at, found.choice].sum() <= slots and transfers[at, found.choice].sum() <= link
        assert found.bound <= least(*table) <= total <= cost[at, start].sum()
        unproved += not found.proved
    assert unproved > 5


def test_cp_sat_finishes_what_is_given_up(narrow):
    for seed in range(30):
        rng = np.random.default_rng(seed)
        utilities = rng.integers(0, 5, (6, 12))
        problem = ThresholdProblem(
            utilities,
            rng.exponential(1.0, (6, 12)),
            rng.random((6, 12)) < 0.4,
            20,
            6,
            Costs(3e-5, 1e-6, 2e-4, 2e-5, 4e-4, 1e-3),
        )
        solution = plan_thresholds(problem, 10.0, deterministic=True)
        assert solution.status == "OPTIMAL"
        knapsack.NARROW, knapsack.WIDE = 300, 2000
        assert plan_thresholds(problem, 10.0).objective_s == pytest.approx(solution.objective_s, abs=1e-12)
        knapsack.NARROW = knapsack.WIDE = 1
