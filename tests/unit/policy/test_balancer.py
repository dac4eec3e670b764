"""Thresholds: exact against brute force, always within budgets, always an answer."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moespac.actors.policy.balancer import (
    TICK_S,
    ThresholdProblem,
    choice_table,
    greedy_thresholds,
    plan_thresholds,
)
from moespac.actors.policy.cost import Costs

COSTS = Costs(30e-6, 2e-6, 200e-6, 20e-6, 400e-6, 1e-3)


def random_problem(seed, layers=None, experts=None):
    rng = np.random.default_rng(seed)
    shape = (layers or int(rng.integers(1, 6)), experts or int(rng.integers(1, 10)))
    total = shape[0] * shape[1]
    counts = rng.exponential(1.0, shape) * rng.integers(0, 2, shape)
    noise = rng.integers(-1, 2, shape)
    utilities = np.clip(np.round(counts).astype(int) + noise, 0, int(rng.integers(1, 5)))
    costs = Costs(*(float(x) for x in rng.exponential([3e-5, 1e-5, 1e-4, 2e-5, 3e-4, 3e-4])))
    slots, link = int(rng.integers(0, total + 1)), int(rng.integers(0, total + 1))
    return ThresholdProblem(utilities, counts, rng.random(shape) < rng.random(), slots, link, costs)


def seconds_by_definition(problem, thresholds):
    """Σ max(T_gpu, T_cpu), expert by expert, and whether the budgets hold."""
    c, total, slots, transfers = problem.costs, 0.0, 0, 0
    for layer, k in enumerate(thresholds):
        device = workers = 0.0
        moves = 0
        for s, f, here in zip(
            problem.utilities[layer], problem.expected_counts[layer], problem.resident[layer], strict=True
        ):
            used = 1 - np.exp(-f)
            if s >= k:
                device += c.device_call_s * used + c.device_pair_s * f
                slots += 1
                moves += not here
            else:
                workers += c.worker_call_s * used + c.worker_pair_s * f
        transfers += moves
        total += max(device + max(0.0, moves * c.transfer_s - c.window_s), workers)
    return total, slots <= problem.slots and transfers <= problem.link_experts


def brute_force(problem):
    levels = range(1, problem.utilities.max() + 2)
    choices = (seconds_by_definition(problem, k) for k in product(levels, repeat=len(problem.utilities)))
    return min(seconds for seconds, fits in choices if fits)


@pytest.mark.parametrize("block", range(10))
def test_solver_is_exact_and_greedy_never_better(block):
    for seed in range(block * 24, block * 24 + 24):
        problem = random_problem(seed)
        rounding = TICK_S * len(problem.utilities)
        best = brute_force(problem)
        solved, greedy = plan_thresholds(problem, 10.0, deterministic=True), greedy_thresholds(problem)
        assert solved.status == "OPTIMAL" and solved.gap == pytest.approx(0.0, abs=1e-12)
        assert solved.objective_s == pytest.approx(best, abs=rounding)
        for solution in (solved, greedy):
            seconds, fits = seconds_by_definition(problem, solution.thresholds)
            assert fits
            assert seconds == pytest.approx(solution.objective_s, abs=rounding)
            assert (solution.thresholds >= 1).all()
            assert solution.bound_s <= best + rounding
        assert greedy.objective_s >= solved.objective_s - 1e-15


@given(st.integers(0, 2**32), st.sampled_from([(1, 1), (3, 40), (20, 16)]))
@settings(max_examples=60, deadline=None)
def test_greedy_is_always_within_budgets_and_never_worse_than_nothing(seed, shape):
    problem = random_problem(seed, *shape)
    solution = greedy_thresholds(problem)
    assert seconds_by_definition(problem, solution.thresholds)[1]
    nothing = choice_table(problem).cost[:, -1].sum() * TICK_S
    assert solution.bound_s <= solution.objective_s <= nothing + 1e-12
    assert solution.status == "GREEDY"


@pytest.mark.parametrize(("slots", "link"), [(0, 100), (100, 0), (0, 0)])
def test_without_budget_nothing_becomes_hot(slots, link):
    utilities = np.full((3, 4), 2)
    problem = ThresholdProblem(utilities, np.ones((3, 4)), np.zeros((3, 4), bool), slots, link, COSTS)
    for solution in (plan_thresholds(problem, 1.0), greedy_thresholds(problem)):
        assert (solution.thresholds == 3).all()


def test_residents_need_slots_but_no_link():
    utilities = np.array([[2, 2, 0, 0], [2, 2, 2, 0]])
    resident = np.array([[True, True, False, False], [False] * 4])
    solution = plan_thresholds(ThresholdProblem(utilities, np.ones((2, 4)) * 4, resident, 8, 0, COSTS), 1.0)
    # k = 1 and k = 2 mean the same set here; layer 1 would need the link.
    assert (utilities >= solution.thresholds[:, None]).tolist() == [[True, True, False, False], [False] * 4]


def test_deadline_zero_is_greedy_and_no_time_gives_a_valid_answer():
    problem = random_problem(5, 40, 64)
    assert plan_thresholds(problem, 0.0).status == "GREEDY"
    rushed = plan_thresholds(problem, 1e-9)
    assert rushed.status in ("GREEDY", "FEASIBLE", "OPTIMAL")
    assert seconds_by_definition(problem, rushed.thresholds)[1]
    assert rushed.objective_s <= greedy_thresholds(problem).objective_s


def test_deterministic_plans_repeat():
    problem = random_problem(6, 48, 32)
    first, second = (plan_thresholds(problem, 0.01, deterministic=True) for _ in range(2))
    assert first.thresholds.tolist() == second.thresholds.tolist()
    assert (first.status, first.objective_s, first.bound_s) == (second.status, second.objective_s, second.bound_s)


def test_hint_helps_where_there_is_no_time_and_never_hurts():
    for seed in range(300, 340):
        problem = random_problem(seed, 12, 12)
        best = plan_thresholds(problem, 10.0, deterministic=True)
        hinted = plan_thresholds(problem, 0.0, hint=best.thresholds)
        assert hinted.objective_s == pytest.approx(best.objective_s, abs=1e-12)
        # A hint that breaks the budgets, is out of range or of another model is not followed.
        for bad in (np.ones(12, int), np.full(12, 99), np.full(12, -5), np.ones(3, int)):
            solution = plan_thresholds(problem, 1.0, hint=bad)
            assert seconds_by_definition(problem, solution.thresholds)[1]
            assert solution.objective_s == pytest.approx(best.objective_s, abs=1e-12)


def test_absurd_costs_do_not_overflow():
    costs = Costs(*[1e300] * 5, 0.0)
    problem = ThresholdProblem(np.ones((60, 4), int), np.ones((60, 4)), np.zeros((60, 4), bool), 99, 99, costs)
    assert plan_thresholds(problem, 1.0).status == "OPTIMAL"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"utilities": np.ones((2, 3), int)}, "alike"),
        ({"expected_counts": np.full((2, 4), np.nan)}, "expected_counts"),
        ({"expected_counts": np.full((2, 4), -1.0)}, "expected_counts"),
        ({"utilities": np.full((2, 4), -1)}, "utilities"),
        ({"slots": -1}, "slots is -1"),
        ({"link_experts": -1}, "link_experts is -1"),
    ],
)
def test_impossible_problems_are_refused(change, says):
    fields = {
        "utilities": np.ones((2, 4), int),
        "expected_counts": np.ones((2, 4)),
        "resident": np.zeros((2, 4), bool),
        "slots": 1,
        "link_experts": 1,
        "costs": COSTS,
    }
    with pytest.raises(ValueError, match=says):
        ThresholdProblem(**(fields | change))
