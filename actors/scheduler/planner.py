"""From routing windows to plans: what is known, when a new plan is due, and the plan itself. No clock, no gRPC."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..core import CostSample, ExpertKey, ModelShape, Plan, RoutingWindow
from ..policy.balancer import ThresholdProblem, plan_thresholds
from ..policy.cost import LINK, CostModel
from ..policy.estimator import make_estimator

MAX_DUTY = 0.05
"""Largest share of one core's time that planning takes."""
STEP_SMOOTHING = 0.2
"""Weight of the newest step in the means of its time and of its tokens."""


SAMPLES_PER_STEP = 4
"""Measurements of each actor that a step adds to the cost model; a deep model makes a hundred."""


def _thinned(samples: Sequence[CostSample]) -> list[CostSample]:
    """At most SAMPLES_PER_STEP of each actor, spread over the step."""
    by_actor: dict[str, list[CostSample]] = {}
    for sample in samples:
        by_actor.setdefault(sample.actor, []).append(sample)
    return [sample for group in by_actor.values() for sample in group[:: -(-len(group) // SAMPLES_PER_STEP)]]


@dataclass(frozen=True)
class PlannerSettings:
    """`estimator`: name of the utility estimator; `replan_every`: steps between plans; `deadline_s`: solver's limit."""

    estimator: str
    replan_every: int
    deadline_s: float
    deterministic: bool = False
    """The deadline is in the solver's deterministic time: equal inputs give equal plans."""


@dataclass(frozen=True)
class PlanningTask:
    """Everything a plan depends on, frozen, so that it can be solved on another thread."""

    epoch: int
    problem: ThresholdProblem
    hint: np.ndarray | None
    link_budget_bytes: int
    deadline_s: float
    deterministic: bool

    def solve(self) -> Plan:
        """Within the deadline; always a valid plan."""
        solution = plan_thresholds(self.problem, self.deadline_s, self.deterministic, self.hint)
        return Plan(
            epoch=self.epoch,
            thresholds=solution.thresholds,
            utilities=self.problem.utilities,
            link_budget_bytes=self.link_budget_bytes,
            solver_status=solution.status,
        )


class Planner:
    """Learns from every step; says when a plan is due and what it is to be made from."""

    def __init__(self, shape: ModelShape, slots: int, device: str, workers: Sequence[str], settings: PlannerSettings):
        self._shape, self._slots, self._workers, self._settings = shape, slots, tuple(workers), settings
        self._estimator = make_estimator(settings.estimator, shape)
        self._costs = CostModel(shape.expert_bytes, device)
        self._resident = np.zeros((shape.n_layers, shape.n_experts), dtype=bool)
        self._rows = {layer: row for row, layer in enumerate(shape.layer_ids)}
        self._step_s = 0.0
        self._step_tokens = 1.0
        self._steps_since_plan = 0
        self._next_plan_s = 0.0
        self._planned_utilities: np.ndarray | None = None
        self._hint: np.ndarray | None = None
        self.epoch = 0
        """Of the newest plan begun."""

    def observe(
        self,
        window: RoutingWindow,
        samples: Sequence[CostSample],
        resident: Sequence[ExpertKey],
        step_s: float,
    ) -> None:
        """One step: its routing, its measurements, what was resident when it ended, and how long it took."""
        self._estimator.observe(window)
        for sample in _thinned(samples):
            self._costs.observe(sample)
        self._resident[:] = False
        for key in resident:
            self._resident[self._rows[key.layer], key.expert] = True
        if not window.prefill:
            self._step_s += (step_s - self._step_s) * (STEP_SMOOTHING if self._step_s else 1.0)
            self._step_tokens += (window.tokens - self._step_tokens) * STEP_SMOOTHING
            self._steps_since_plan += 1

    def due(self, now_s: float) -> bool:
        """A plan is due when utilities have changed since the last, often enough but not too often."""
        if self._slots == 0 or self._steps_since_plan < self._settings.replan_every or now_s < self._next_plan_s:
            return False
        utilities = self._estimator.utilities()
        return self._planned_utilities is None or not np.array_equal(utilities, self._planned_utilities)

    def task(self) -> PlanningTask:
        """The next plan's inputs, as known now."""
        self.epoch += 1
        self._steps_since_plan = 0
        self._planned_utilities = self._estimator.utilities()
        window_s = self._step_s / self._shape.n_layers
        costs = self._costs.costs(self._workers, window_s)
        link_s = self._step_s * self._settings.replan_every
        one_s = self._costs.predict(LINK, 1, 0)
        # At least one transfer a plan: with a link slower than a step, nothing would ever change otherwise.
        link_experts = min(self._slots, max(1, int(link_s / one_s)))
        return PlanningTask(
            epoch=self.epoch,
            problem=ThresholdProblem(
                utilities=self._planned_utilities,
                expected_counts=self._estimator.expected_counts(max(1, round(self._step_tokens))),
                resident=self._resident.copy(),
                slots=self._slots,
                link_experts=link_experts,
                costs=costs,
            ),
            hint=self._hint,
            link_budget_bytes=link_experts * self._shape.expert_bytes,
            deadline_s=self._settings.deadline_s,
            deterministic=self._settings.deterministic,
        )

    def adopt(self, plan: Plan, took_s: float, now_s: float) -> None:
        """The plan was made, in `took_s` seconds all told: the next may not come before its share of time is up."""
        self._hint = plan.thresholds
        self._next_plan_s = now_s + took_s * (1 / MAX_DUTY - 1)

    def redo(self) -> None:
        """The last plan has not arrived everywhere: the next is due although nothing may have changed."""
        self._planned_utilities = None
