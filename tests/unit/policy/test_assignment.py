"""Per-expert plans: against brute force, within budgets whatever the time, and proved bounds that hold."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moespac.actors.policy.assignment import StepLimit, plan_assignment
from moespac.actors.policy.assignment_prices import Prices, Pricing
from moespac.actors.policy.assignment_problem import AssignmentProblem, Executor


def random_problem(seed, layers=2, experts=4, devices=2, home=True):
    """`home`: the last executor holds everything."""
    rng = np.random.default_rng(seed)
    counts = rng.exponential(1.0, (layers, experts)) * rng.integers(0, 2, (layers, experts))
    resident = rng.random((devices, layers, experts)) < rng.random()
    total, executors = counts.size, []
    for d in range(devices):
        everything = home and d == devices - 1
        resident[d] |= everything
        times = (float(x) for x in rng.exponential([3e-4, 3e-4, 1e-4, 1e-4, 3e-4, 1e-4]))
        executors.append(
            Executor(
                f"d{d}",
                total if everything else int(rng.integers(0, total + 1)),
                int(rng.integers(0, total + 1)),
                *times,
            )
        )
    return AssignmentProblem(counts, resident, tuple(executors))


def seconds_by_definition(problem, device):
    """Σ_l max_d T_ld, expert by expert."""
    total = 0.0
    for layer, row in enumerate(device):
        times = []
        for d, e in enumerate(problem.executors):
            here = [x for x, at in enumerate(row) if at == d]
            counts = [problem.expected_counts[layer, x] for x in here]
            moves = sum(not problem.resident[d, layer, x] for x in here)
            work = sum(e.expert_s * (1 - np.exp(-f)) + e.pair_s * f for f in counts)
            called = (e.call_s + e.delay_s) * any(f > 0 for f in counts)
            times.append(called + work + max(0.0, moves * e.transfer_s - e.window_s))
        total += max(times)
    return total


def fits(problem, device):
    for d, e in enumerate(problem.executors):
        here = device == d
        if here.sum() > e.slots or (here & ~problem.resident[d]).sum() > e.link_experts:
            return False
    return True


def brute_force(problem):
    shape, devices = problem.expected_counts.shape, len(problem.executors)
    choices = (np.array(c).reshape(shape) for c in product(range(devices), repeat=shape[0] * shape[1]))
    return min(problem.objective(c) for c in choices if fits(problem, c))


@pytest.mark.parametrize("seed", range(12))
def test_near_the_best_of_all_and_never_above_by_the_bound(seed):
    problem = random_problem(seed, 2, 3 if seed % 2 else 4, 3 if seed % 2 else 2)
    best, solution = brute_force(problem), plan_assignment(problem)
    assert fits(problem, solution.device)
    assert solution.objective_s == pytest.approx(seconds_by_definition(problem, solution.device), abs=1e-12)
    assert solution.bound_s <= best + 1e-12
    assert best - 1e-12 <= solution.objective_s <= 1.1 * best + 1e-12


@given(st.integers(0, 2**32), st.sampled_from([(1, 1, 1), (3, 9, 2), (4, 16, 5)]), st.integers(0, 40))
@settings(max_examples=40, deadline=None)
def test_whenever_it_is_stopped_budgets_hold_and_the_bound_is_below(seed, shape, steps):
    problem = random_problem(seed, *shape)
    solution = plan_assignment(problem, StepLimit(steps))
    assert fits(problem, solution.device) and problem.within_budgets(solution.device)
    assert solution.objective_s == pytest.approx(seconds_by_definition(problem, solution.device), abs=1e-12)
    assert solution.bound_s <= solution.objective_s
    assert solution.status == "GREEDY" if steps == 0 else solution.status in ("FEASIBLE", "OPTIMAL")


@given(st.integers(0, 2**32), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_any_prices_give_a_bound(seed, price_seed):
    problem = random_problem(seed, 2, 3, 2)
    rng = np.random.default_rng(price_seed)
    weight = rng.dirichlet(np.ones(2), 2).T
    prices = Prices(weight, rng.random((2, 2)), *(rng.exponential(1e-4, (2, 2)) * rng.integers(0, 2, (2, 2))))
    assert Pricing(problem).bound(prices) <= brute_force(problem) + 1e-12


def test_equal_problems_give_equal_plans():
    first, second = (plan_assignment(random_problem(3, 6, 24, 4), StepLimit(150)) for _ in range(2))
    assert first.device.tolist() == second.device.tolist() and first.bound_s == second.bound_s


def test_more_time_is_never_worse_and_a_hint_is_kept():
    for seed in range(5):
        problem = random_problem(seed, 6, 24, 3)
        none, full = plan_assignment(problem, StepLimit(0)), plan_assignment(problem, StepLimit(2000))
        hinted = plan_assignment(problem, StepLimit(0), full.hint)
        assert full.objective_s <= none.objective_s + 1e-12
        assert hinted.objective_s <= full.objective_s + 1e-12
        other = random_problem(seed + 100, 3, 5, 2)
        assert fits(other, plan_assignment(other, StepLimit(5), full.hint).device), "a hint of another model"


def test_every_expert_has_a_place_where_nobody_holds_them_all():
    found = 0
    for seed in range(60):
        try:
            problem = random_problem(seed, 2, 6, 3, home=False)
            solution = plan_assignment(problem, StepLimit(50))
        except ValueError as error:
            assert "give one executor slots" in str(error)
            continue
        found += 1
        assert fits(problem, solution.device)
    assert found > 5


def test_a_tight_fit_is_found_where_only_one_exists():
    resident = np.zeros((2, 1, 4), dtype=bool)
    resident[0, 0, :2] = resident[1, 0, 2:] = True
    executors = tuple(Executor(name, 2, 0, 1.0, 0.0, 0.0, 0.0, cost, 0.0) for name, cost in (("a", 1.0), ("b", 50.0)))
    solution = plan_assignment(AssignmentProblem(np.ones((1, 4)), resident, executors))
    assert solution.device.tolist() == [[0, 0, 1, 1]]


def test_a_fast_device_takes_over_and_a_far_one_is_left_alone():
    resident = np.ones((2, 1, 8), dtype=bool)
    near, far = (Executor(n, 8, 0, 0.0, 0.0, 0.0, delay, 1.0, 0.0) for n, delay in (("near", 0.0), ("far", 100.0)))
    assert (plan_assignment(AssignmentProblem(np.ones((1, 8)), resident, (near, far))).device == 0).all()
    twin = Executor("twin", 8, 0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    shared = plan_assignment(AssignmentProblem(np.ones((1, 8)), resident, (near, twin)))
    assert (shared.device == 0).sum() == 4 and shared.status == "OPTIMAL"


@pytest.mark.parametrize(
    ("counts", "resident", "says"),
    [
        (np.full((1, 2), np.nan), np.ones((1, 1, 2), bool), "expected_counts"),
        (np.ones((1, 2)), np.ones((2, 1, 2), bool), "resident"),
        (np.ones((1, 3)), np.ones((1, 1, 3), bool), "hold 2 experts; the model has 3"),
    ],
)
def test_impossible_problems_are_refused(counts, resident, says):
    with pytest.raises(ValueError, match=says):
        AssignmentProblem(counts, resident, (Executor("a", 2, 0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0),))


def test_impossible_executors_are_refused():
    with pytest.raises(ValueError, match="'a': slots is -1"):
        Executor("a", -1, 0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0)
