"""One plan: everything it depends on, frozen, so that it can be solved on another thread. No clock, no gRPC."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..core import Plan
from ..policy.assignment import Hint, StepLimit, plan_assignment
from ..policy.assignment_problem import AssignmentProblem
from ..policy.balancer import ThresholdProblem, plan_thresholds

PlanForm = Literal["threshold", "assignment"]
"""Hot by utility, one threshold a layer, exact; or expert by expert, as good as time allows."""
STEP_LIMIT = 700
"""Steps of the per-expert form where plans must not depend on the clock."""


@dataclass(frozen=True)
class Solved:
    """A plan, how good it is known to be, and what the next one can start from."""

    plan: Plan
    gap: float
    """(objective − bound) / objective; 0 is proved optimal."""
    transfers: int
    """Experts it wants that were not resident."""
    hint: np.ndarray | Hint


@dataclass(frozen=True)
class PlanningTask:
    """The inputs of a plan."""

    epoch: int
    problem: ThresholdProblem
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
        return self._solved(found.thresholds, self.problem.utilities, found.status, found.gap, found.thresholds)

    def _assign(self, problem: AssignmentProblem, time_left: Callable[[], float] | None) -> Solved:
        limit = StepLimit(STEP_LIMIT) if self.deterministic or time_left is None else time_left
        found = plan_assignment(problem, limit, self.hint if isinstance(self.hint, Hint) else None)
        # Hot experts above all cold ones; among either, utilities order transfers and evictions as ever.
        utilities, hot = self.problem.utilities, found.device == 0
        above = int(utilities.max()) + 1
        thresholds = np.full(len(utilities), above)
        return self._solved(thresholds, utilities + above * hot, found.status, found.gap, found.hint)

    def _solved(
        self, thresholds: np.ndarray, utilities: np.ndarray, status: str, gap: float, hint: np.ndarray | Hint
    ) -> Solved:
        plan = Plan(self.epoch, thresholds, utilities, self.link_budget_bytes, status)
        return Solved(plan, gap, int((plan.hot() & ~self.problem.resident).sum()), hint)
