"""From windows to plans: when one is due, what it is made from, and that it stays within its budgets."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from moespac.actors.core import CostSample, ExpertKey, ModelShape, RoutingWindow
from moespac.actors.policy.assignment_problem import AssignmentProblem
from moespac.actors.policy.estimator import make_estimator
from moespac.actors.policy.levels import borders
from moespac.actors.policy.planner import DRIFT, MAX_DUTY, REFRESH_DUTY, Planner, PlannerSettings
from moespac.actors.policy.planning_task import Solved
from moespac.actors.policy.prefetch_gate import PROBE_EVERY, PrefetchGate
from moespac.actors.policy.prefetch_order import MOST

SHAPE = ModelShape(layer_ids=(1, 2, 4), n_experts=8, top_k=2, hidden_size=32, intermediate_size=16, expert_bytes=3072)
LARGE = replace(SHAPE, expert_bytes=3 << 20)
"""Experts that take longer than the call."""
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


def varied(actor: str, call_s: float, expert_s: float, pair_s: float) -> list[CostSample]:
    """What an actor takes for calls of many sizes."""
    sizes = [(experts, experts * tokens) for experts in (1, 2, 4, 8) for tokens in (1, 2, 5)]
    return [CostSample(actor, *size, call_s + expert_s * size[0] + pair_s * size[1]) for size in sizes]


def least_seconds(problem: AssignmentProblem) -> float:
    """The optimum: every assignment of a layer, and of the layers the best sum within the device's budgets."""
    choices = np.array(list(product(range(len(problem.executors)), repeat=problem.expected_counts.shape[1])))
    here = choices == np.arange(len(problem.executors))[:, None, None]
    sums, work, charge = {(0, 0): 0.0}, problem.work(), problem.column("call_s") + problem.column("delay_s")
    for row, counts in enumerate(problem.expected_counts):
        slots, moves = here.sum(axis=2), (here & ~problem.resident[:, row, None]).sum(axis=2)
        seconds = (here * work[:, row, None]).sum(axis=2) + (here & (counts > 0)).any(axis=2) * charge[:, None]
        exposed = moves * problem.column("transfer_s")[:, None] - problem.column("window_s")[:, None]
        longest = (seconds + np.maximum(exposed, 0)).max(axis=0)
        reached: dict[tuple[int, int], float] = {}
        for (slots_before, moves_before), before in sums.items():
            for key in set(zip(slots[0].tolist(), moves[0].tolist(), strict=True)):
                both = (slots_before + key[0], moves_before + key[1])
                if both[0] <= problem.executors[0].slots and both[1] <= problem.executors[0].link_experts:
                    of_key = longest[(slots[0] == key[0]) & (moves[0] == key[1])].min()
                    reached[both] = min(reached.get(both, np.inf), before + of_key)
        sums = reached
    return min(sums.values())


def adopted(made: Planner, took_s: float, now_s: float) -> Solved:
    task = made.task()
    solved = task.solve()
    made.adopt(task, solved, took_s, now_s)
    return solved


def test_favourites_become_hot_within_the_slots():
    made = planner(slots=6)
    observed(made)
    plan = made.task().solve().plan
    assert plan.solver_status == "OPTIMAL"
    assert plan.wanted().sum() <= 6
    assert plan.wanted()[:, [0, 3]].all(), (
        "the only experts in use are worth their slots: a worker is nine times slower"
    )
    assert plan.link_budget_bytes >= 6 * SHAPE.expert_bytes


@pytest.mark.parametrize("slots", [1, 2, 5])
def test_never_more_hot_experts_than_slots(slots):
    made = planner(slots=slots)
    observed(made, steps=6)
    assert made.task().solve().plan.wanted().sum() <= slots


def test_the_link_limits_what_a_plan_may_move():
    made = planner()
    slow = [CostSample("link", 1, 0, 0.5)] * 20
    for _ in range(2):
        made.observe(window(0, 3), slow, (), step_s=0.02)
    task = made.task()
    assert task.problem.link_experts == 1, "a link slower than a step still moves one expert a plan"
    assert task.solve().plan.wanted().sum() <= 1


def test_a_plan_is_due_after_enough_steps_if_demand_has_drifted():
    made = planner()
    observed(made, steps=1)
    assert not made.due(0.0), "too few steps"
    observed(made, steps=1)
    assert made.due(0.0)
    adopted(made, took_s=0.001, now_s=10.0)
    assert not made.due(10.0)
    # Demand saturates: the same windows again and again change nothing more.
    observed(made, steps=60)
    adopted(made, took_s=0.001, now_s=20.0)
    observed(made, steps=8)
    assert not made.due(1e9)
    for _ in range(2):
        made.observe(window(5, 6), [], (), step_s=0.02)
    assert made.due(1e9), "other favourites"
    assert made.task().drift >= DRIFT


def test_utilities_are_renewed_after_every_step_against_the_thresholds_that_stand():
    made = planner(estimator="decayed")
    observed(made, steps=30)
    assert not made.refresh_due(0.0), "there are no thresholds yet"
    plan = adopted(made, took_s=0.001, now_s=10.0).plan
    assert not made.refresh_due(10.0), "no step has passed"
    observed(made, steps=1)
    assert made.refresh_due(10.0)
    same = made.refresh()
    assert same.epoch == plan.epoch + 1 and same.solver_status == plan.solver_status
    assert (same.wanted() == plan.wanted()).all() and same.transfer_cost == plan.transfer_cost
    assert not made.refresh_due(10.0)
    made.refreshed(took_s=0.002, now_s=10.0)
    made.observe(window(5, 6), [], (), step_s=0.02)
    assert not made.refresh_due(10.0 + 0.002 / REFRESH_DUTY - 0.0021) and made.refresh_due(10.1)
    moved = made.refresh()
    assert (moved.utilities[:, [5, 6]] > same.utilities[:, [5, 6]]).all()
    assert (moved.utilities[:, [0, 3]] < same.utilities[:, [0, 3]]).all()


def test_thresholds_rise_and_fall_with_what_a_slot_is_worth():
    made = planner(estimator="decayed")
    observed(made, steps=30)
    plan = adopted(made, took_s=0.001, now_s=10.0).plan
    for _ in range(200):
        made.observe(
            RoutingWindow(1, np.ones((3, 8), int) * np.eye(8, dtype=int)[[0]] + np.eye(8, dtype=int)[[3]]), [], (), 0.02
        )
    later = made.refresh()
    assert later.wanted()[:, [0, 3]].all() and later.thresholds.max() != plan.thresholds.max()


def test_planning_keeps_to_its_share_of_the_time():
    made = planner()
    observed(made)
    adopted(made, took_s=1.0, now_s=100.0)
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
    first, second = one.task().solve().plan, two.task().solve().plan
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


def test_a_plan_that_the_link_held_back_is_followed_by_another():
    made = planner(form="assignment", replan_every=1)
    slow, worker = CostSample("link", 1, 0, 0.0065), CostSample("cpu-0", 2, 10, 5e-3)
    for _ in range(60):
        made.observe(window(0, 3), [slow, worker], (), step_s=0.02)
    assert adopted(made, took_s=0.0, now_s=0.0).transfers == 3, "as many as the link moves in a step"
    made.observe(window(0, 3), [], (), step_s=0.02)
    assert made.due(1.0), "demand is the same, but three of six favourites are still missing"


def test_useless_transfers_are_stopped_and_probed():
    made = planner()
    useless = [tuple(ExpertKey(layer, e) for layer in SHAPE.layer_ids for e in pair) for pair in ((4, 5), (6, 7))]
    for step in range(40):
        made.observe(window(0, 3), [], useless[step // 2 % 2], step_s=0.02)
    assert made.prefetch_recall == 0.0
    tasks = [made.task() for _ in range(40)]
    assert sum(task.problem.link_experts > 0 for task in tasks) == 40 // PROBE_EVERY
    assert all(task.link_budget_bytes == task.problem.link_experts * SHAPE.expert_bytes for task in tasks)
    assert tasks[0].solve().transfers == 0


def test_the_per_expert_form_keeps_budgets_and_wants_the_favourites():
    for slots, workers in ((6, ["cpu-0"]), (3, ["cpu-0", "cpu-1"]), (4, [])):
        made = Planner(SHAPE, slots, "gpu-0", workers, replace(SETTINGS, form="assignment"))
        observed(made, steps=20)
        solved = adopted(made, took_s=0.0, now_s=0.0)
        hot = solved.plan.wanted()
        assert hot.sum() <= slots and not hot[:, [1, 2, 4, 5, 6, 7]].any()
        assert hot[:, [0, 3]].sum() == min(slots, 6)
        assert solved.plan.solver_status in ("OPTIMAL", "FEASIBLE")
        observed(made)
        again = made.task()
        assert (again.solve().plan.wanted() == hot).all() and again.hint is solved.hint


@pytest.mark.parametrize(
    ("slots", "workers", "resident", "link_s"),
    [
        (6, {"cpu-0": 3e-4}, (), 50e-6),
        (9, {"cpu-0": 3e-4, "cpu-1": 5e-5}, (), 50e-6),
        (9, {"cpu-0": 1e-4}, ((1, 5), (2, 6), (4, 0)), 6e-3),
        (5, {}, ((1, 0), (4, 3)), 2e-3),
    ],
)
def test_the_per_expert_form_finds_what_brute_force_finds(slots, workers, resident, link_s):
    """Unequal workers, few slots, experts that lie there already, a link that moves one a layer unnoticed."""
    made = Planner(LARGE, slots, "gpu-0", list(workers), replace(SETTINGS, estimator="decayed", form="assignment"))
    samples = [CostSample("link", 1, 0, link_s)] * 4 + varied("gpu-0", 2e-5, 1e-5, 1e-6)
    for name, expert_s in workers.items():
        samples += varied(name, 1e-4, expert_s, expert_s / 10)
    rng = np.random.default_rng(slots)
    likely = rng.dirichlet(np.full(8, 0.8), 3) * 0.9 + 0.1 / 8
    for _ in range(24):
        chosen = [[rng.choice(8, 2, replace=False, p=share) for _ in range(5)] for share in likely]
        counts = np.stack([np.bincount(np.ravel(layer), minlength=8) for layer in chosen])
        made.observe(RoutingWindow(5, counts), samples, [ExpertKey(*key) for key in resident], step_s=0.02)
    task = made.task()
    solved = task.solve()
    problem, device = task.assignment, solved.hint.device
    assert problem.within_budgets(device) and (solved.plan.hot() == (device == 0)).all()
    assert problem.objective(device) <= 1.02 * least_seconds(problem)
    # Neither all on the device nor all on the workers is as good: there was something to be found.
    assert problem.objective(device) < 0.9 * problem.objective(np.ones_like(device))


def test_without_time_the_per_expert_form_still_has_a_valid_plan():
    made = Planner(SHAPE, 4, "gpu-0", ["cpu-0"], replace(SETTINGS, form="assignment", deterministic=False))
    observed(made)
    solved = made.task().solve(lambda: 0.0)
    assert solved.plan.solver_status == "GREEDY" and solved.plan.wanted().sum() <= 4


def test_the_next_token_reaches_the_estimator(monkeypatch):
    made, asked = planner(), []
    monkeypatch.setattr(
        made._estimator,
        "expected_counts",
        lambda tokens, draft=None, request="": asked.append((tokens, draft)) or np.full((3, 8), 2.0 * tokens / 8),
    )
    made.observe(window(0, 3), [], (), step_s=0.02, next_token=17)
    made.task()
    made.observe(window(0, 3), [], (), step_s=0.02)
    made.task()
    assert (5, (17,)) in asked and set(asked[-2:]) == {(5, ()), (5, None)}


def test_a_planner_takes_up_measured_costs():
    settings = replace(SETTINGS, form="assignment")
    taught, fresh = (Planner(LARGE, 6, "gpu-0", ["cpu-0"], settings) for _ in range(2))
    for _ in range(4):
        taught.observe(window(0, 3), varied("gpu-0", 2e-5, 1e-5, 1e-6) + varied("cpu-0", 1e-4, 3e-4, 3e-5), (), 0.02)
    fresh.take_up_costs(taught.cost_samples())
    for made in (taught, fresh):
        made.observe(window(0, 3), [], (), 0.02)
    ours, theirs = (made.task().assignment.executors for made in (fresh, taught))
    assert ours == theirs and ours[1].expert_s == pytest.approx(3e-4, rel=0.1)


def test_a_planner_takes_up_what_another_has_learned():
    taught, fresh = planner(estimator="best"), planner(estimator="best")
    observed(taught, steps=6)
    fresh.take_up(taught.learned())
    for each in (taught, fresh):
        # Of another request: what the text at hand taught of itself goes with its request.
        each.observe(replace(window(0, 3), request="next"), [CostSample("link", 1, 0, 50e-6)], (), step_s=0.02)
    np.testing.assert_allclose(fresh.task().problem.expected_counts, taught.task().problem.expected_counts, rtol=1e-6)


@given(utilities=arrays(np.int64, (3, 8), elements=st.integers(0, 3000)), slots=st.integers(1, 30))
def test_borders_are_utilities_that_experts_have_the_closest_where_slots_run_out(utilities, slots):
    at = borders(utilities, slots)
    assert (np.diff(at) > 0).all() and set(at.tolist()) <= set(utilities.ravel().tolist()) - {0}
    last = np.sort(utilities, axis=None)[::-1][min(slots, utilities.size) - 1]
    assert slots > utilities.size or last == 0 or last in at


@pytest.mark.parametrize("name", ["as_described", "as_released"])
def test_the_papers_levels_decide_where_they_are_asked_for(name):
    made, alike = planner(estimator=name), make_estimator(name, SHAPE)
    observed(made, steps=3)
    for _ in range(3):
        alike.observe(window(0, 3))
    levels, plan = alike.utilities(), adopted(made, took_s=0.0, now_s=0.0).plan
    assert plan.transfer_cost == 0 and (plan.utilities == levels * (MOST // max(1, alike.top_level))).all()


def test_renewing_a_plan_is_no_reason_to_probe():
    gate, asked = PrefetchGate(1, 1), 0
    gate.open = False
    while not gate.allowance(10, 1 / 8):
        asked += 1
    assert asked == 8 * PROBE_EVERY - 1
