"""From routing windows to plans: what is known, when a new plan is due, and the plan itself. No clock, no gRPC.

The solver says from which utility on an expert of a layer is hot; it is asked anew when demand has drifted. Utilities
are renewed after every step, against the thresholds that stand: that takes a millisecond.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..core import CostSample, ExpertKey, ModelShape, Plan, RoutingWindow
from .assignment import Hint
from .assignment_problem import AssignmentProblem, Executor
from .balancer import ThresholdProblem
from .cost import LINK, CostModel
from .demand import DecayedDemand
from .drift import drift
from .estimator import UtilityEstimator, make_estimator
from .levels import borders
from .planning_task import NOBODY, PlanForm, PlanningTask, Solved
from .prefetch_gate import PrefetchGate
from .prefetch_order import LATER, MOST, Outlook, as_utilities, exchanges, net, price, transfer_cost, value

MAX_DUTY = 0.05
"""Largest share of one core's time that planning takes."""
STEP_SMOOTHING = 0.2
"""Weight of the newest step in the means of its time and of its tokens."""
REFRESH_DUTY = 0.05
"""Largest share of one core's time that renewing utilities takes; with MAX_DUTY, 5 % of a machine of two cores."""
DRIFT = 0.05
"""Share of the expected pairs that has moved to other experts when a new plan is worth its time."""
SAMPLES_PER_STEP = 4
"""Measurements of each actor that a step adds to the cost model; a deep model makes a hundred."""
LATELY = "lately"
"""Part of what was learned: how often experts were used lately, whatever the estimator."""


def _used(counts: np.ndarray, tokens: int) -> np.ndarray:
    """P(at least one pair) of expected `counts` in a window, each of its tokens taken to choose independently."""
    return 1.0 - (1.0 - np.minimum(counts / tokens, 1.0)) ** tokens


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

    def __init__(
        self,
        shape: ModelShape,
        slots: int,
        device: str,
        workers: Sequence[str],
        settings: PlannerSettings,
        estimator: UtilityEstimator | None = None,
    ) -> None:
        """`estimator`: instead of the one that the settings name."""
        self._shape, self._slots, self._workers, self._settings = shape, slots, tuple(workers), settings
        self._estimator = estimator or make_estimator(settings.estimator, shape)
        self._lately = DecayedDemand(shape)
        self._device = device
        self._costs = CostModel(shape.expert_bytes, device)
        self._resident = np.zeros((shape.n_layers, shape.n_experts), dtype=bool)
        self._rows = {layer: row for row, layer in enumerate(shape.layer_ids)}
        self._step_s = self._draft_s = 0.0
        self._step_tokens = 0.0
        self._steps_since_plan = 0
        self._next_plan_s = self._next_refresh_s = 0.0
        self._thresholds: np.ndarray | None = None
        self._price, self._status = 0, ""
        self._refreshed = True
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
        draft_s: float = 0.0,
    ) -> None:
        """One step: its routing, its measurements, what was resident when it ended, and how long it took.

        `next_token`: id of the first token of the request's next window, where it is known. `draft_s`: of `step_s`.
        """
        self._estimator.observe(window)
        self._lately.observe(window)
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
            self._draft_s += (draft_s - self._draft_s) * weight
            self._step_tokens += (window.tokens - self._step_tokens) * weight
            self._steps_since_plan += 1
            self._refreshed = False

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
        self._steps_since_plan, self._refreshed = 0, True
        self._planned_counts = self._expected()
        outlook = self._outlook()
        utilities, cost = self._utilities(outlook)
        at = borders(net(utilities, self._resident, cost), self._slots)
        # Of a window within the time that residents are expected to serve; pairs are taken as Poisson.
        used = np.minimum(value(outlook) / (1.0 + LATER), 0.999)
        link_experts = self._transfers(exchanges(utilities, self._resident, self._slots, cost))
        window_s = self._step_s * self._settings.replan_every / self._shape.n_layers
        problem = ThresholdProblem(
            utilities=np.searchsorted(at, net(utilities, self._resident, cost), side="right"),
            expected_counts=-np.log1p(-used),
            resident=self._resident.copy(),
            slots=self._slots,
            link_experts=link_experts,
            costs=self._costs.costs(self._workers, window_s),
        )
        return PlanningTask(
            epoch=self.epoch,
            problem=problem,
            utilities=utilities,
            borders=at,
            transfer_cost=cost,
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
        self._thresholds, self._status = solved.thresholds, solved.plan.solver_status
        self._price = price(task.utilities, self._slots)
        allowed = task.problem.link_experts
        self._short_of_link = 0 < allowed < self._slots and solved.transfers >= allowed
        self._next_plan_s = now_s + took_s * (1 / MAX_DUTY - 1)

    def refresh_due(self, now_s: float) -> bool:
        """Whether utilities should be renewed: a step has passed, and there are thresholds to go by."""
        return self._thresholds is not None and not self._refreshed and now_s >= self._next_refresh_s

    def refresh(self) -> Plan:
        """The last plan with the utilities of now. Not while another plan is being solved: that would be the older."""
        self.epoch += 1
        self._refreshed = True
        outlook = self._outlook()
        utilities, cost = self._utilities(outlook)
        paying = exchanges(utilities, self._resident, self._slots, cost)
        budget = self._transfers(paying, 1 / self._settings.replan_every) * self._shape.expert_bytes
        # Where all demand has risen or fallen, so has what a slot is worth.
        moved = price(utilities, self._slots) - self._price
        thresholds = np.where(self._thresholds < NOBODY, np.maximum(self._thresholds + moved, 1), NOBODY)
        return Plan(self.epoch, thresholds, utilities, budget, self._status, cost)

    def refreshed(self, took_s: float, now_s: float) -> None:
        """Utilities were renewed in `took_s` seconds."""
        self._next_refresh_s = now_s + took_s * (1 / REFRESH_DUTY - 1)

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
        """What would be lost in a restart; empty where the estimator keeps nothing."""
        state = self._estimator.state()
        return {**state, LATELY: self._lately.state()} if state else {}

    def cost_samples(self) -> list[CostSample]:
        """What the cost model would lose in a restart."""
        return self._costs.samples()

    def take_up_costs(self, samples: Sequence[CostSample]) -> None:
        """Goes on from what `cost_samples` gave."""
        self._costs.take_up(samples)

    def take_up(self, state: Mapping[str, np.ndarray]) -> None:
        """Starts from what `learned` gave. Raises ValueError or KeyError when it is another model's."""
        lately = DecayedDemand(self._shape)
        if LATELY in state:
            lately.restore(state[LATELY])
        self._estimator.restore(state)
        self._lately = lately

    def _expected(self) -> np.ndarray:
        return self._estimator.expected_counts(max(1, round(self._step_tokens)), self._draft)

    def _outlook(self) -> Outlook:
        tokens = max(1, round(self._step_tokens))
        forecast = _used(self._estimator.expected_counts(tokens), tokens)
        return Outlook(
            coming=_used(self._estimator.expected_counts(tokens, self._draft), tokens),
            # Windows to come are like the next one, and like those before: of two guesses, their mean.
            lasting=(forecast + _used(self._lately.expected_counts(tokens), tokens)) / 2,
            held=self._resident,
            idle_s=self._draft_s,
            layer_s=(self._step_s - self._draft_s) / self._shape.n_layers,
            transfer_s=self._costs.predict(LINK, 1, 0),
        )

    def _utilities(self, outlook: Outlook) -> tuple[np.ndarray, int]:
        """Of every expert, int64 [n_layers, n_experts] in 0..MOST, and what a transfer must gain."""
        if self._estimator.by_level:
            return self._estimator.utilities() * (MOST // max(1, self._estimator.top_level)), 0
        return as_utilities(value(outlook)), transfer_cost(outlook)

    def _transfers(self, paying: int, plans: float = 1.0) -> int:
        """Transfers that a plan may make; `paying`: those that gain something; `plans`: as of the gate's allowance."""
        link_s = self._step_s * self._settings.replan_every
        # At least one: with a link slower than a step, nothing would ever change otherwise.
        return self._gate.allowance(min(paying, max(1, int(link_s / self._costs.predict(LINK, 1, 0)))), plans)

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
