"""Which experts should be hot: one utility threshold a layer, chosen for all layers together, exactly.

H_l(k) = {e: s_e >= k} is computed on the device, the rest on the workers, at the same time. For every layer l
and every threshold k

    T_gpu = Σ_{e∈H} (g0·u_e + g1·f_e) + max(0, |H∖R|·transfer − window)
    T_cpu = Σ_{e∉H} (c0·u_e + c1·f_e)

with R the residents, f_e the expected pairs of e, and u_e = 1 − exp(−f_e) the probability that e is used at
all (pairs taken as Poisson; with f_e an expectation it stands where a known count would have "f_e > 0"). One
k a layer is chosen to

    minimise Σ_l max(T_gpu, T_cpu)    subject to    Σ_l |H_l| <= slots,    Σ_l |H_l∖R| <= link_experts:

a multiple-choice knapsack. The empty set is always among the choices, so there is always a solution. `knapsack`
solves and proves nearly all of them in milliseconds; CP-SAT takes those it leaves open.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ortools.sat.python import cp_model

from .cost import Costs
from .greedy import greedy_choices
from .knapsack import solve_choices

TICK_S = 1e-7
"""Costs are whole ticks of 0.1 µs, for the solver and for everything reported."""

MOST_TICKS = 2**40
"""A layer is never counted dearer than this (30 hours), so that no sum overflows."""


@dataclass(frozen=True)
class ThresholdProblem:
    """What is known when a plan is made. Arrays are [n_layers, n_experts]."""

    utilities: np.ndarray
    """s: int, 0 or more."""
    expected_counts: np.ndarray
    """f: expected (token, slot) pairs of the coming window; float, 0 or more."""
    resident: np.ndarray
    """R: bool, in a slot now or on the way into one."""
    slots: int
    """Experts the device can hold, all layers together."""
    link_experts: int
    """Transfers this plan may cause."""
    costs: Costs

    def __post_init__(self) -> None:
        shapes = {np.shape(a) for a in (self.utilities, self.expected_counts, self.resident)}
        if len(shapes) != 1 or len(self.utilities.shape) != 2:
            raise ValueError(f"utilities, expected_counts and resident must be [layers, experts] alike; got {shapes}")
        if not np.isfinite(self.expected_counts).all() or (self.expected_counts < 0).any():
            raise ValueError("expected_counts must be finite and not negative")
        if self.utilities.size == 0 or (self.utilities < 0).any():
            raise ValueError("utilities must not be empty or negative")
        for name in ("slots", "link_experts"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0 or more")


@dataclass(frozen=True)
class ThresholdSolution:
    """Thresholds and how good they are known to be."""

    thresholds: np.ndarray
    """k: int [n_layers]; experts with utility >= k are hot; 1 or more."""
    status: str
    """OPTIMAL (proved), FEASIBLE (the best by the deadline) or GREEDY (fallback)."""
    objective_s: float
    """Σ_l max(T_gpu, T_cpu) of these thresholds."""
    bound_s: float
    """No thresholds can do better than this."""
    seconds: float
    """CP-SAT's own wall time; 0 if it was not asked."""

    @property
    def gap(self) -> float:
        """(objective − bound) / objective; 0 is proved optimal."""
        return (self.objective_s - self.bound_s) / self.objective_s if self.objective_s > 0 else 0.0


@dataclass(frozen=True)
class ChoiceTable:
    """Everything that matters of every (layer, threshold). Arrays are int64 [n_layers, K + 1]; column c is k
    = c + 1.

    K is the highest utility present, so the last column has H empty.
    """

    cost: np.ndarray
    """max(T_gpu, T_cpu) in ticks."""
    size: np.ndarray
    """|H|."""
    transfers: np.ndarray
    """|H∖R|."""

    def feasible(self, choice: np.ndarray, problem: ThresholdProblem) -> bool:
        rows = np.arange(len(choice))
        slots, transfers = self.size[rows, choice].sum(), self.transfers[rows, choice].sum()
        return bool(slots <= problem.slots and transfers <= problem.link_experts)

    def total(self, choice: np.ndarray) -> int:
        return int(self.cost[np.arange(len(choice)), choice].sum())


def choice_table(problem: ThresholdProblem) -> ChoiceTable:
    """Costs of all choices at once."""
    costs, counts = problem.costs, problem.expected_counts
    levels = np.arange(1, int(problem.utilities.max(initial=0)) + 2)
    hot = problem.utilities[:, None, :] >= levels[None, :, None]
    used = -np.expm1(-counts)
    device = costs.device_call_s * used + costs.device_pair_s * counts
    workers = costs.worker_call_s * used + costs.worker_pair_s * counts
    transfers = (hot & ~problem.resident[:, None, :]).sum(axis=2)
    on_device = np.einsum("lke,le->lk", hot, device)
    on_device += np.maximum(0.0, transfers * costs.transfer_s - costs.window_s)
    on_workers = np.einsum("lke,le->lk", ~hot, workers)
    cost = np.rint(np.minimum(np.maximum(on_device, on_workers) / TICK_S, MOST_TICKS)).astype(np.int64)
    return ChoiceTable(cost, hot.sum(axis=2), transfers)


def greedy_thresholds(problem: ThresholdProblem) -> ThresholdSolution:
    """Thresholds by marginal gain, without the solver; always within the budgets."""
    table = choice_table(problem)
    choice = greedy_choices(table.cost, table.size, table.transfers, problem.slots, problem.link_experts)
    return _solution(table, choice, "GREEDY", _trivial_bound(table), 0.0)


def plan_thresholds(
    problem: ThresholdProblem, deadline_s: float, deterministic: bool = False, hint: np.ndarray | None = None
) -> ThresholdSolution:
    """The best thresholds; CP-SAT, where it is needed, has one worker and `deadline_s` seconds of its wall time.

    `hint`: the last thresholds, int [n_layers]; the search starts from them or from the greedy solution,
    whichever is better now. `deterministic`: the deadline is in CP-SAT's deterministic time, so equal
    problems give equal solutions. Greedy answers where `deadline_s` <= 0.
    """
    table = choice_table(problem)
    start = _start(table, problem, hint)
    if deadline_s <= 0:
        return _solution(table, start, "GREEDY", _trivial_bound(table), 0.0)
    found = solve_choices(table.cost, table.size, table.transfers, problem.slots, problem.link_experts, start)
    if found.proved:
        return _solution(table, found.choice, "OPTIMAL", found.bound, 0.0)
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = 0
    if deterministic:
        solver.parameters.max_deterministic_time = deadline_s
    else:
        solver.parameters.max_time_in_seconds = deadline_s
    choice, status, bound = _solve(table, problem, found.choice, solver)
    if choice is None or table.total(choice) > table.total(found.choice):
        choice, status = found.choice, "FEASIBLE"
    return _solution(table, choice, status, max(bound, found.bound), solver.wall_time)


def _solve(
    table: ChoiceTable, problem: ThresholdProblem, start: np.ndarray, solver: cp_model.CpSolver
) -> tuple[np.ndarray | None, str, int]:
    """The solver's choice (None: none found in time), its status, and its lower bound in ticks."""
    model = cp_model.CpModel()
    useful = [_useful(table, layer) for layer in range(len(start))]
    rows = np.repeat(np.arange(len(useful)), [len(columns) for columns in useful])
    columns = np.concatenate(useful)
    taken = [model.new_bool_var("") for _ in columns]
    for layer in range(len(useful)):
        model.add_exactly_one(taken[i] for i in np.flatnonzero(rows == layer))
    weighted_sum = cp_model.LinearExpr.weighted_sum
    model.add(weighted_sum(taken, table.size[rows, columns]) <= problem.slots)
    model.add(weighted_sum(taken, table.transfers[rows, columns]) <= problem.link_experts)
    model.minimize(weighted_sum(taken, table.cost[rows, columns]))
    # Where the start is no useful column, the next useful one is smaller and costs no more.
    hinted = [columns[np.searchsorted(columns, at)] for columns, at in zip(useful, start, strict=True)]
    for variable, row, column in zip(taken, rows, columns, strict=True):
        model.add_hint(variable, bool(hinted[row] == column))

    status = solver.solve(model)
    if status in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        chosen = columns[[solver.boolean_value(variable) for variable in taken]]
        return chosen, solver.status_name(status), int(np.ceil(solver.best_objective_bound - 1e-6))
    if status == cp_model.UNKNOWN:
        return None, "UNKNOWN", 0
    raise RuntimeError(f"CP-SAT says {solver.status_name(status)} of a problem that has a solution; {model.validate()}")


def _start(table: ChoiceTable, problem: ThresholdProblem, hint: np.ndarray | None) -> np.ndarray:
    greedy = greedy_choices(table.cost, table.size, table.transfers, problem.slots, problem.link_experts)
    if hint is None or len(hint) != len(greedy):
        return greedy
    hinted = np.clip(np.asarray(hint, dtype=np.int64), 1, table.cost.shape[1]) - 1
    better = table.feasible(hinted, problem) and table.total(hinted) < table.total(greedy)
    return hinted if better else greedy


def _useful(table: ChoiceTable, layer: int) -> np.ndarray:
    """Columns of a layer that no smaller hot set matches at the same or a lower cost; ascending."""
    keep: list[int] = []
    for column in range(table.cost.shape[1] - 1, -1, -1):
        if not keep or table.cost[layer, column] < table.cost[layer, keep[-1]]:
            keep.append(column)
    return np.array(keep[::-1], dtype=np.int64)


def _trivial_bound(table: ChoiceTable) -> int:
    return int(table.cost.min(axis=1).sum())


def _solution(table: ChoiceTable, choice: np.ndarray, status: str, bound: int, seconds: float) -> ThresholdSolution:
    objective = table.total(choice)
    return ThresholdSolution(choice + 1, status, objective * TICK_S, min(bound, objective) * TICK_S, seconds)
