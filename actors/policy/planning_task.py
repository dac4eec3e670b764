"""One plan: everything it depends on, frozen, so that it can be solved on another thread. No clock, no gRPC."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..core import Plan
from .assignment import Hint, StepLimit, plan_assignment
from .assignment_problem import AssignmentProblem
from .balancer import ThresholdProblem, plan_thresholds
from .prefetch_order import MOST, net

PlanForm = Literal["threshold", "assignment"]
"""Hot by utility, one threshold a layer, exact; or expert by expert, as good as time allows."""
NOBODY = MOST + 1
"""A threshold that no utility reaches."""
STEP_LIMIT = 700
"""Steps of the per-expert form where plans must not depend on the clock."""


@dataclass(frozen=True)
class Solved:
    """A plan, how good it is known to be, and what the next one can start from."""

    plan: Plan
    gap: float
    """(objective − bound) / objective; 0 is proved optimal."""
    hot: int
    """Experts it wants resident: those there, and those worth a transfer."""
    transfers: int
    """Experts it wants that were not resident."""
    hint: np.ndarray | Hint
    thresholds: np.ndarray
    """What the plan's hot experts come to in `prefetch_order`'s utilities: int [n_layers], for utilities to come."""


@dataclass(frozen=True)
class PlanningTask:
    """The inputs of a plan."""

    epoch: int
    problem: ThresholdProblem
    utilities: np.ndarray
    """Of every expert, int64 [n_layers, n_experts]; the problem's are levels of them, by `borders`."""
    borders: np.ndarray
    """Ascending."""
    transfer_cost: int
    """Taken off the utility of those that are not resident, for their levels."""
    assignment: AssignmentProblem | None
    """The same for the per-expert form, the device first among the executors; None where thresholds are planned."""
    hint: np.ndarray | Hint | None
    """Of the plan before."""
    drift: float
    """Of demand since the plan before; 1 for the first."""
    link_budget_bytes: int
    deadline_s: float
    deterministic: bool

    def solve(self, time_left: Callable[[], float] | None = None) -> Solved:
        """Within the deadline; always a valid plan.

        `time_left`: seconds of the deadline still left, for the per-expert form; not asked where `deterministic`.
        """
        if self.assignment is not None:
            return self._assign(self.assignment, time_left)
        hint = self.hint if isinstance(self.hint, np.ndarray) else None
        found = plan_thresholds(self.problem, self.deadline_s, self.deterministic, hint)
        # Level k is reached at the k-th border; none lies above the last.
        thresholds = np.append(self.borders, NOBODY)[np.minimum(found.thresholds - 1, len(self.borders))]
        return self._solved(thresholds, self.utilities, found.status, found.gap, found.thresholds, thresholds)

    def _assign(self, problem: AssignmentProblem, time_left: Callable[[], float] | None) -> Solved:
        limit = StepLimit(STEP_LIMIT) if self.deterministic or time_left is None else time_left
        found = plan_assignment(problem, limit, self.hint if isinstance(self.hint, Hint) else None)
        hot = found.device == 0
        # Hot experts above all cold ones; among either, utilities order transfers and evictions as ever.
        above = np.full(len(hot), NOBODY)
        utilities = self.utilities + (NOBODY + self.transfer_cost) * hot
        standing = self._reached_by(hot.sum(axis=1))
        return self._solved(above, utilities, found.status, found.gap, found.hint, standing)

    def _reached_by(self, counts: np.ndarray) -> np.ndarray:
        """Thresholds that at most `counts` experts of each layer reach: the most useful ones, as all cost the same."""
        worth = net(self.utilities, self.problem.resident, self.transfer_cost)
        rows, descending = np.arange(len(counts)), -np.sort(-worth, axis=1)
        padded = np.pad(descending, ((0, 0), (1, 1)), constant_values=((0, 0), (NOBODY, 0)))
        last, following = padded[rows, counts], padded[rows, counts + 1]
        return np.maximum(np.where(last > following, last, last + 1), 1)

    def _solved(
        self,
        thresholds: np.ndarray,
        utilities: np.ndarray,
        status: str,
        gap: float,
        hint: np.ndarray | Hint,
        standing: np.ndarray,
    ) -> Solved:
        plan = Plan(self.epoch, thresholds, utilities, self.link_budget_bytes, status, self.transfer_cost)
        here = self.problem.resident
        transfers, kept = int((plan.wanted() & ~here).sum()), int((plan.hot() & here).sum())
        return Solved(plan, gap, kept + transfers, transfers, hint, standing)
