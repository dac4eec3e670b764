"""An hour of decoding on the paper's box by a simulated clock, planned for by the engine's own planner.

RTX 4090 (1,008 GB/s, of which 80 % are attained), PCIe 4.0 (25 GB/s from page-locked memory), a processor with 60 GB/s,
Qwen3-30B-A3B in F16 with 1,024 slots, γ = 8 from a draft of 4 GB. Routing is made up: demand as in `instances.py`, its
logarithm drifting so that after 40 tokens it correlates with itself as recorded demand does. Only the planner's
time is measured, the rest is computed; planning and decoding go on at the same time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import numpy as np
from instances import EXPERT_BYTES, TOP_K, demand

from moespac.actors.core import CostSample, ExpertKey, ModelShape, RoutingWindow
from moespac.actors.policy.cost import LINK
from moespac.actors.policy.planner import Planner, PlannerSettings

SHAPE = ModelShape(tuple(range(48)), 128, TOP_K, 2048, 768, EXPERT_BYTES)
SLOTS, GAMMA, ACCEPTED = 1024, 8, 5
"""Of the paper; tokens a step adds at an acceptance of 0.8, rounded up: (1 − 0.8⁹) / 0.2 = 4.3."""
DEVICE_S, CPU_S, LINK_S = EXPERT_BYTES / 0.8 / 1008e9, EXPERT_BYTES / 60e9, EXPERT_BYTES / 25e9
DRAFT_S = GAMMA * 4.0e9 / 0.8 / 1008e9
OTHER_S = DRAFT_S + 48 * 100e-6
"""A step's draft, and what the trunk takes."""
PAIR_SHARE = 0.1
"""Of an expert's time on the processor for each further pair."""
DRIFT_A_STEP = 0.08
"""Standard deviation of the logarithm of demand gained a step; half of what it has returns to the mean in 40 steps."""


class Box:
    """Demand, residents and the time that steps take."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._base = np.log(demand(self._rng, 48, 128, TOP_K))
        self._moved = np.zeros_like(self._base)
        self.resident = np.zeros((48, 128), dtype=bool)
        self.hot, self._worth = self.resident.copy(), self._base
        self._budget = 0.0

    def step(self) -> tuple[RoutingWindow, list[CostSample], float]:
        """One verification: its routing, its measurements, its seconds."""
        self._moved *= 0.5 ** (1 / 40)
        self._moved += self._rng.normal(0.0, DRIFT_A_STEP, self._moved.shape)
        noisy = (self._base + self._moved) + self._rng.gumbel(size=(GAMMA + 1, 48, 128))
        chosen = np.argpartition(-noisy, TOP_K, axis=2)[:, :, :TOP_K]
        counts = np.zeros((48, 128), dtype=np.int64)
        for ids in chosen:
            np.add.at(counts, (np.arange(48)[:, None], ids), 1)
        device = DEVICE_S * (self.resident & (counts > 0)).sum(axis=1)
        cold = np.where(self.resident, 0, counts)
        processor = CPU_S * ((cold > 0) + PAIR_SHARE * cold).sum(axis=1) + 40e-6
        samples = [
            CostSample("gpu", max(1, int((self.resident & (counts > 0))[0].sum())), 1, max(float(device[0]), DEVICE_S)),
            CostSample("cpu", max(1, int((cold > 0)[0].sum())), int(cold[0].sum()), float(processor[0])),
            CostSample(LINK, 1, 0, LINK_S),
        ]
        return RoutingWindow(GAMMA + 1, counts), samples, float(np.maximum(device, processor).sum()) + OTHER_S

    def take(self, hot: np.ndarray, utilities: np.ndarray, transfers: int) -> None:
        """A plan arrives: what it wants, and how many transfers it may cause."""
        self.hot, self._worth, self._budget = hot, utilities, float(transfers)

    def transfer(self, seconds: float) -> None:
        """The link works for so long: the most wanted come, the least wanted leave."""
        missing = np.flatnonzero(self.hot & ~self.resident)
        count = int(min(seconds / LINK_S, self._budget, len(missing)))
        self._budget -= count
        worth = self._worth.ravel() + (self._worth.max() + 1.0) * self.hot.ravel()
        resident = self.resident.ravel()
        resident[missing[np.argsort(-worth[missing], kind="stable")[:count]]] = True
        here = np.flatnonzero(resident)
        leave = max(0, len(here) - SLOTS)
        resident[here[np.argsort(worth[here], kind="stable")[:leave]]] = False

    def keys(self) -> list[ExpertKey]:
        return [ExpertKey(layer, expert) for layer, expert in zip(*np.nonzero(self.resident), strict=True)]


def planning_duty(progress: Callable[[Iterable, str], Iterable], seconds: int = 3600) -> dict:
    """`plan_duty` is the larger of the two forms' shares; beside it plans made, their time, and tokens a second."""
    result: dict = {}
    for form in ("threshold", "assignment"):
        result |= _hour(form, seconds, progress)
    return {"plan_duty": max(result["plan_duty_threshold"], result["plan_duty_assignment"])} | result


def _hour(form: str, seconds: int, progress: Callable[[Iterable, str], Iterable]) -> dict:
    planner = Planner(SHAPE, SLOTS, "gpu", ["cpu"], PlannerSettings("as_described", 8, 0.03, form=form))
    box, now, planning, steps, took = Box(seed=1), 0.0, 0.0, 0, []
    for second in progress(range(seconds), f"an hour, {form}"):
        while now < second:
            window, samples, step_s = box.step()
            now += step_s
            steps += 1
            box.transfer(step_s)
            planner.observe(window, samples, box.keys(), step_s, draft_s=DRAFT_S)
            began = time.perf_counter()
            if planner.due(now):
                task = planner.task()
                ends = began + task.deadline_s
                solved = task.solve(lambda ends=ends: ends - time.perf_counter())
                took.append(time.perf_counter() - began)
                planner.adopt(task, solved, took[-1], now + took[-1])
                box.take(solved.plan.wanted(), solved.plan.utilities, task.problem.link_experts)
            elif planner.refresh_due(now):
                plan = planner.refresh()
                spent = time.perf_counter() - began
                planner.refreshed(spent, now + spent)
                box.take(plan.wanted(), plan.utilities, plan.link_budget_bytes // EXPERT_BYTES)
            planning += time.perf_counter() - began
    return {
        f"plan_duty_{form}": round(planning / now, 5),
        f"plan_duty_{form}_plans": len(took),
        f"plan_duty_{form}_ms_p99": round(float(np.percentile(took, 99)) * 1e3, 2),
        f"plan_duty_{form}_tokens_per_s": round(steps * ACCEPTED / now, 2),
        f"plan_duty_{form}_recall": planner.prefetch_recall and round(planner.prefetch_recall, 3),
    }
