"""From routing windows to plans: what is known, when a new plan is due, and the plan itself. No clock, no gRPC."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..core import CostSample, ExpertKey, ModelShape, RoutingWindow
from ..policy.assignment import Hint
from ..policy.assignment_problem import AssignmentProblem, Executor
from ..policy.balancer import ThresholdProblem
from ..policy.cost import LINK, CostModel
from ..policy.drift import drift
from ..policy.estimator import make_estimator
from ..policy.prefetch_gate import PrefetchGate
from .planning_task import PlanForm, PlanningTask, Solved

MAX_DUTY = 0.05
"""Largest share of one core's time that planning takes."""
STEP_SMOOTHING = 0.2
"""Weight of the newest step in the means of its time and of its tokens."""
DRIFT = 0.05
"""Share of the expected pairs that has moved to other experts when a new plan is worth its time."""


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
    form: PlanForm = "threshold"


class Planner:
    """Learns from every step; says when a plan is due and what it is to be made from."""

    def __init__(self, shape: ModelShape, slots: int, device: str, workers: Sequence[str], settings: PlannerSettings):
        self._shape, self._slots, self._workers, self._settings = shape, slots, tuple(workers), settings
        self._estimator = make_estimator(settings.estimator, shape)
        self._device = device
        self._costs = CostModel(shape.expert_bytes, device)
        self._resident = np.zeros((shape.n_layers, shape.n_experts), dtype=bool)
        self._rows = {layer: row for row, layer in enumerate(shape.layer_ids)}
        self._step_s = 0.0
        self._step_tokens = 0.0
        self._steps_since_plan = 0
        self._next_plan_s = 0.0
        self._planned_counts: np.ndarray | None = None
        self._hint: np.ndarray | Hint | None = None
        self._gate = PrefetchGate(shape.n_layers, shape.n_experts)
        self._short_of_link = False
        self._draft: tuple[int, ...] = ()
        self.epoch = 0
        """Of the newest plan begun."""

    def observe(
        self,
        window: RoutingWindow,
        samples: Sequence[CostSample],
        resident: Sequence[ExpertKey],
        step_s: float,
        next_token: int | None = None,
    ) -> None:
        """One step: its routing, its measurements, what was resident when it ended, and how long it took.

        `next_token`: id of the first token of the request's next window, where it is known.
        """
        self._estimator.observe(window)
        self._draft = () if next_token is None else (next_token,)
        for sample in _thinned(samples):
            self._costs.observe(sample)
        self._resident[:] = False
        for key in resident:
            self._resident[self._rows[key.layer], key.expert] = True
        if not window.prefill:
            self._gate.observe(window.counts, self._resident)
            weight = STEP_SMOOTHING if self._step_s else 1.0
            self._step_s += (step_s - self._step_s) * weight
            self._step_tokens += (window.tokens - self._step_tokens) * weight
            self._steps_since_plan += 1

    def due(self, now_s: float) -> bool:
        """A plan is due when demand has drifted since the last, or its link budget was too small; looked at every
        `replan_every` steps, and never so often that planning takes more than its share of the time."""
        steps, every = self._steps_since_plan, self._settings.replan_every
        if self._slots == 0 or steps == 0 or steps % every or now_s < self._next_plan_s:
            return False
        return self._planned_counts is None or self._short_of_link or self._drift() >= DRIFT

    def task(self) -> PlanningTask:
        """The next plan's inputs, as known now."""
        moved = self._drift()
        self.epoch += 1
        self._steps_since_plan = 0
        self._planned_counts = self._expected()
        link_s = self._step_s * self._settings.replan_every
        one_s = self._costs.predict(LINK, 1, 0)
        # At least one transfer a plan: with a link slower than a step, nothing would ever change otherwise.
        link_experts = self._gate.allowance(min(self._slots, max(1, int(link_s / one_s))))
        problem = ThresholdProblem(
            utilities=self._estimator.utilities(),
            expected_counts=self._planned_counts,
            resident=self._resident.copy(),
            slots=self._slots,
            link_experts=link_experts,
            costs=self._costs.costs(self._workers, self._step_s / self._shape.n_layers),
        )
        return PlanningTask(
            epoch=self.epoch,
            problem=problem,
            assignment=self._assignment(problem) if self._settings.form == "assignment" else None,
            hint=self._hint,
            drift=moved,
            link_budget_bytes=link_experts * self._shape.expert_bytes,
            deadline_s=self._settings.deadline_s,
            deterministic=self._settings.deterministic,
        )

    def adopt(self, task: PlanningTask, solved: Solved, took_s: float, now_s: float) -> None:
        """The plan was made, in `took_s` seconds all told: the next may not come before its share of time is up."""
        self._hint = solved.hint
        allowed = task.problem.link_experts
        self._short_of_link = 0 < allowed < self._slots and solved.transfers >= allowed
        self._next_plan_s = now_s + took_s * (1 / MAX_DUTY - 1)

    def redo(self) -> None:
        """The last plan has not arrived everywhere: the next is due although nothing may have changed."""
        self._planned_counts = None

    def prediction_errors(self) -> dict[str, float]:
        """Of the cost model, by measured actor: median |predicted − measured| / measured."""
        return self._costs.error()

    @property
    def prefetch_recall(self) -> float | None:
        """Share of recently transferred bytes that were used before eviction; None before any is known."""
        return self._gate.recall

    @property
    def prefetch_open(self) -> bool:
        """Whether plans may transfer freely; else few transfers were used, and only probes are made."""
        return self._gate.open

    @property
    def estimator(self) -> str:
        """Its name."""
        return self._settings.estimator

    def learned(self) -> dict[str, np.ndarray]:
        """What the estimator would lose in a restart."""
        return self._estimator.state()

    def cost_samples(self) -> list[CostSample]:
        """What the cost model would lose in a restart."""
        return self._costs.samples()

    def take_up_costs(self, samples: Sequence[CostSample]) -> None:
        """Goes on from what `cost_samples` gave."""
        self._costs.take_up(samples)

    def take_up(self, state: Mapping[str, np.ndarray]) -> None:
        """Starts from what `learned` gave. Raises ValueError or KeyError when it is another model's."""
        self._estimator.restore(state)

    def _expected(self) -> np.ndarray:
        return self._estimator.expected_counts(max(1, round(self._step_tokens)), self._draft)

    def _drift(self) -> float:
        return 1.0 if self._planned_counts is None else drift(self._planned_counts, self._expected())

    def _assignment(self, problem: ThresholdProblem) -> AssignmentProblem:
        """The same plan expert by expert: the device against the workers.

        Any worker may be asked for any expert: what its memory lacks it reads first, which its measured cost includes,
        as it does the way there and back.
        """
        costs, total = problem.costs, problem.resident.size
        (device,) = self._costs.worker_costs([self._device])
        elsewhere = self._costs.worker_costs(self._workers)
        executors = [
            Executor(
                device.name,
                problem.slots,
                problem.link_experts,
                costs.transfer_s,
                costs.window_s,
                device.call_s,
                0.0,
                device.expert_s,
                device.pair_s,
            )
        ]
        for worker in elsewhere:
            executors.append(
                Executor(worker.name, total, 0, 0.0, 0.0, worker.call_s, 0.0, worker.expert_s, worker.pair_s)
            )
        if not elsewhere:
            executors.append(Executor("host", total, 0, 0.0, 0.0, 0.0, 0.0, costs.worker_call_s, costs.worker_pair_s))
        everywhere = np.ones_like(problem.resident)
        resident = np.stack([problem.resident, *[everywhere] * (len(executors) - 1)])
        return AssignmentProblem(problem.expected_counts, resident, tuple(executors))
