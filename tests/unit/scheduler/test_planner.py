"""From windows to plans: when one is due, what it is made from, and that it stays within its budgets."""

import numpy as np
import pytest

from moespac.actors.core import CostSample, ExpertKey, ModelShape, RoutingWindow
from moespac.actors.scheduler.planner import MAX_DUTY, Planner, PlannerSettings

SHAPE = ModelShape(layer_ids=(1, 2, 4), n_experts=8, top_k=2, hidden_size=32, intermediate_size=16, expert_bytes=3072)
SETTINGS = PlannerSettings("as_described", replan_every=2, deadline_s=1.0, deterministic=True)


def window(*favourites: int, tokens: int = 5) -> RoutingWindow:
    """All tokens go to the two favourites in every layer."""
    counts = np.zeros((SHAPE.n_layers, SHAPE.n_experts), dtype=np.int64)
    counts[:, list(favourites)] = tokens
    return RoutingWindow(tokens, counts)


def observed(planner: Planner, steps: int = 2, resident: tuple[ExpertKey, ...] = ()) -> None:
    samples = [
        CostSample("gpu-0", 2, 10, 100e-6),
        CostSample("cpu-0", 2, 10, 900e-6),
        CostSample("link", 1, 0, 50e-6),
    ]
    for _ in range(steps):
        planner.observe(window(0, 3), samples, resident, step_s=0.02)


def planner(slots: int = 6, **settings) -> Planner:
    values = {**vars(SETTINGS), **settings}
    return Planner(SHAPE, slots, "gpu-0", ["cpu-0"], PlannerSettings(**values))


def test_favourites_become_hot_within_the_slots():
    made = planner(slots=6)
    observed(made)
    plan = made.task().solve()
    assert plan.solver_status == "OPTIMAL"
    assert plan.hot().sum() <= 6
    assert plan.hot()[:, [0, 3]].all(), "the only experts in use are worth their slots: a worker is nine times slower"
    assert plan.link_budget_bytes >= 6 * SHAPE.expert_bytes


@pytest.mark.parametrize("slots", [1, 2, 5])
def test_never_more_hot_experts_than_slots(slots):
    made = planner(slots=slots)
    observed(made, steps=6)
    assert made.task().solve().hot().sum() <= slots


def test_the_link_limits_what_a_plan_may_move():
    made = planner()
    slow = [CostSample("link", 1, 0, 0.5)] * 20
    for _ in range(2):
        made.observe(window(0, 3), slow, (), step_s=0.02)
    task = made.task()
    assert task.problem.link_experts == 1, "a link slower than a step still moves one expert a plan"
    assert task.solve().hot().sum() <= 1


def test_a_plan_is_due_after_enough_steps_with_changed_utilities():
    made = planner()
    observed(made, steps=1)
    assert not made.due(0.0), "too few steps"
    observed(made, steps=1)
    assert made.due(0.0)
    plan = made.task().solve()
    made.adopt(plan, took_s=0.001, now_s=10.0)
    assert not made.due(10.0)
    # Utilities saturate: the same windows again and again change nothing more.
    observed(made, steps=8)
    plan = made.task().solve()
    observed(made, steps=8)
    assert not made.due(1e9)


def test_planning_keeps_to_its_share_of_the_time():
    made = planner()
    observed(made)
    made.adopt(made.task().solve(), took_s=1.0, now_s=100.0)
    observed(made)
    earliest = 100.0 + 1.0 / MAX_DUTY - 1.0
    assert not made.due(earliest - 0.01)
    assert made.due(earliest + 0.01)


def test_without_slots_nothing_is_planned():
    made = planner(slots=0)
    observed(made, steps=10)
    assert not made.due(1e9)


def test_epochs_grow_and_equal_inputs_give_equal_plans():
    one, two = planner(), planner()
    for made in (one, two):
        observed(made)
    first, second = one.task().solve(), two.task().solve()
    assert (first.thresholds == second.thresholds).all() and (first.utilities == second.utilities).all()
    assert one.task().epoch == first.epoch + 1


def test_prompt_windows_do_not_count_as_steps():
    made = planner()
    counts = np.zeros((SHAPE.n_layers, SHAPE.n_experts), dtype=np.int64)
    counts[:, :2] = 64
    for _ in range(5):
        made.observe(RoutingWindow(64, counts, prefill=True), [], (), step_s=1.0)
    assert not made.due(1e9)


def test_residents_are_what_the_last_step_said():
    made = planner()
    observed(made, resident=(ExpertKey(4, 7), ExpertKey(1, 0)))
    resident = made.task().problem.resident
    assert resident.sum() == 2 and resident[2, 7] and resident[0, 0]
