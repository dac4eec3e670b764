"""How good and how fast the planning is, on made-up problems with the skew of recorded routing (`instances.py`).

* `threshold_optimal`: on 1,000 small problems the thresholds cost what the best of all thresholds cost.
* `threshold_p99_ms`: from a problem to its thresholds, 48 layers of 128 experts, six thresholds; `_unproved` counts
  problems not proved optimal.
* `assignment_gap_250ms`, `_1s`: (objective − bound) / objective of the per-expert form after so long, preparation
  included, from nothing; the worst of the problems; `_mean` beside it. The bound is proved, with far more time.
* `reactive_p99_us`, `reactive_mean_gap`: sharing 64 active experts out to 4 executors, against CP-SAT's lower bound.
* `plan_duty`: time spent on planning over time spent on decoding in an hour on the paper's box (`planning_hour.py`).

Times are wall times of one thread on a machine that should do nothing else; `_cpu` keys count the thread's own time.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable
from itertools import product

import numpy as np
from assignment_bound import best_bound
from instances import assignment_instance, reactive_instance, threshold_instance
from planning_hour import planning_duty
from reactive_optimum import least_makespan
from rich.console import Console
from rich.progress import track

from moespac.actors.policy.assignment import plan_assignment
from moespac.actors.policy.balancer import TICK_S, ThresholdProblem, choice_table, plan_thresholds
from moespac.actors.policy.reactive import makespan, split_misses

SMALL, LARGE, REACTIVE, ASSIGNMENTS = 1000, 400, 400, 8
REPEATS = 5
"""Of each reactive problem."""


def progress(items: Iterable, what: str) -> Iterable:
    return track(items, what, console=Console(stderr=True), transient=True)


def timed(work: Callable[[], object]) -> tuple[object, float, float]:
    """The result, wall seconds and the thread's own seconds."""
    wall, own = time.perf_counter(), time.thread_time()
    result = work()
    return result, time.perf_counter() - wall, time.thread_time() - own


def p99(seconds: list[float], unit: float) -> float:
    return round(float(np.percentile(seconds, 99)) / unit, 3)


def least_seconds(problem: ThresholdProblem) -> float:
    """Σ max(T_gpu, T_cpu) of the best thresholds, by trying all."""
    table, rows = choice_table(problem), np.arange(len(problem.utilities))
    choices = (np.array(c) for c in product(range(table.cost.shape[1]), repeat=len(rows)))
    return min(table.total(c) for c in choices if table.feasible(c, problem)) * TICK_S


def measure_threshold() -> dict:
    optimal = True
    for seed in progress(range(SMALL), "small thresholds"):
        rng = np.random.default_rng(seed)
        problem = threshold_instance(10_000 + seed, int(rng.integers(1, 5)), int(rng.integers(4, 13)))
        solution = plan_thresholds(problem, 10.0, deterministic=True)
        optimal &= solution.status == "OPTIMAL" and abs(solution.objective_s - least_seconds(problem)) < TICK_S / 2
    wall, own, unproved = [], [], 0
    for seed in progress(range(LARGE), "thresholds"):
        problem = threshold_instance(seed)
        solution, seconds, cpu = timed(lambda problem=problem: plan_thresholds(problem, 0.03))
        wall.append(seconds)
        own.append(cpu)
        unproved += solution.status != "OPTIMAL"
    return {
        "threshold_optimal": bool(optimal),
        "threshold_p99_ms": p99(wall, 1e-3),
        "threshold_p99_cpu_ms": p99(own, 1e-3),
        "threshold_unproved": unproved,
    }


def measure_assignment(key: str, layers: int, experts: int, devices: int, limit_s: float) -> dict:
    gaps, seconds, proved_alone = [], [], []
    for seed in progress(range(ASSIGNMENTS), key):
        problem = assignment_instance(seed, layers, experts, devices)
        ends = time.perf_counter() + limit_s
        solution, wall, _ = timed(lambda p=problem, ends=ends: plan_assignment(p, lambda: ends - time.perf_counter()))
        bound = max(solution.bound_s, best_bound(problem, solution.prices))
        gaps.append(1 - min(bound / solution.objective_s, 1.0))
        proved_alone.append(solution.gap)
        seconds.append(wall)
    return {
        key: round(max(gaps), 4),
        f"{key}_mean": round(float(np.mean(gaps)), 4),
        f"{key}_own_bound_mean": round(float(np.mean(proved_alone)), 4),
        f"{key}_took_s": round(max(seconds), 3),
    }


def measure_reactive() -> dict:
    gaps, wall, own = [], [], []
    for seed in progress(range(REACTIVE), "reactive"):
        pairs, workers = reactive_instance(seed)
        for _ in range(REPEATS):
            shares, seconds, cpu = timed(lambda p=pairs, w=workers: split_misses(p, w))
            wall.append(seconds)
            own.append(cpu)
        least, _ = least_makespan(pairs, workers, limit_s=0.5)
        gaps.append(makespan(pairs, workers, shares) / least - 1)
    return {
        "reactive_p99_us": p99(wall, 1e-6),
        "reactive_p99_cpu_us": p99(own, 1e-6),
        "reactive_mean_gap": round(float(np.mean(gaps)), 4),
    }


PARTS: dict[str, Callable[[], dict]] = {
    "threshold": measure_threshold,
    "reactive": measure_reactive,
    "assignment-2": lambda: measure_assignment("assignment_gap_250ms", 48, 128, 2, 0.25),
    "assignment-8": lambda: measure_assignment("assignment_gap_1s", 61, 256, 8, 1.0),
    "duty": lambda: planning_duty(progress),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--only", choices=tuple(PARTS), help="one part")
    options = parser.parse_args()
    result: dict = {}
    for name in [options.only] if options.only else PARTS:
        result |= PARTS[name]()
    if options.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name:36} {value}")


if __name__ == "__main__":
    main()
