"""The least makespan of a layer's experts on executors of unequal speed, by CP-SAT: the yardstick of `split_misses`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from ortools.sat.python import cp_model

from moespac.actors.policy.cost import WorkerCost

TICK_S = 1e-8


def least_makespan(
    pairs: Mapping[int, int], workers: Sequence[WorkerCost], limit_s: float = 10.0
) -> tuple[float, bool]:
    """Seconds, a proven lower bound on the makespan, and whether it is reached.

    Experts of equal pairs cost the same, so what is decided is how many of each kind an executor gets.
    """
    model, kinds = cp_model.CpModel(), Counter(pairs.values())
    longest = model.new_int_var(0, int(1e9 / 1), "longest")
    shares = {(p, d): model.new_int_var(0, n, "") for p, n in kinds.items() for d in range(len(workers))}
    for p, n in kinds.items():
        model.add(sum(shares[p, d] for d in range(len(workers))) == n)
    for d, worker in enumerate(workers):
        called = model.new_bool_var("")
        for p, n in kinds.items():
            model.add(shares[p, d] <= n * called)
        # Rounded down, so that the bound holds for the true costs.
        cost = {p: int((worker.expert_s + worker.pair_s * p) / TICK_S) for p in kinds}
        model.add(sum(cost[p] * shares[p, d] for p in kinds) + int(worker.call_s / TICK_S) * called <= longest)
    model.minimize(longest)
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.max_deterministic_time = limit_s
    status = solver.solve(model)
    return solver.best_objective_bound * TICK_S, status == cp_model.OPTIMAL
