"""Which device holds and executes which expert: the per-expert form of the plan, for any number of unequal devices.

What is decided and what it costs: `assignment_problem`. Prices from the Lagrangian dual (`assignment_prices`) split the
problem into experts; an assignment built from them is repaired and improved by local search (`assignment_search`);
then CP-SAT solves one layer at a time, the rest held fixed (`assignment_polish`). Each stage ends when told to stop,
and what there is by then is within the budgets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .assignment_fill import filled
from .assignment_flow import flow_assignment
from .assignment_polish import polish
from .assignment_prices import Prices, Pricing
from .assignment_problem import AssignmentProblem
from .assignment_search import Search

CELLS = 40_000_000
"""Device times layer times expert, priced in all steps of the ascent together: about a quarter of a second."""
FEWEST_STEPS, MOST_STEPS = 60, 600
KEPT = 0.4
"""Of the time that the ascent leaves to what follows."""
COLD, WARM = (0.5, 0.05), (0.15, 0.03)
"""Softness of the ascent, first and last: from nothing, and from the last plan's prices."""


@dataclass(frozen=True)
class Hint:
    """What the next plan starts from."""

    prices: Prices
    device: np.ndarray
    """int [n_layers, n_experts]."""


@dataclass(frozen=True)
class AssignmentSolution:
    """An executing device for every expert, and how good it is known to be."""

    device: np.ndarray
    """Index into the problem's executors; int [n_layers, n_experts]."""
    status: str
    """OPTIMAL (proved), FEASIBLE (the best by the end of time or search) or GREEDY (no time at all)."""
    objective_s: float
    """Σ_l max_d T_ld."""
    bound_s: float
    """No assignment can do better than this."""
    prices: Prices

    @property
    def gap(self) -> float:
        """(objective − bound) / objective; 0 is proved optimal."""
        return (self.objective_s - self.bound_s) / self.objective_s if self.objective_s > 0 else 0.0

    @property
    def hint(self) -> Hint:
        return Hint(self.prices, self.device)


def plan_assignment(
    problem: AssignmentProblem, time_left: Callable[[], float] = lambda: float("inf"), hint: Hint | None = None
) -> AssignmentSolution:
    """The best assignment found while `time_left`, asked every few milliseconds, says more than 0 seconds.

    A function of its arguments, so deterministic where `time_left` is (`StepLimit`). `hint`: of the last plan of the
    same model and executors; its prices start the ascent and its assignment is kept where it is better now. Raises
    ValueError when the executors cannot hold all experts.
    """

    def stop() -> bool:
        return time_left() <= 0

    def ascended() -> float:
        left = time_left()
        if left <= 0:
            return 1.0
        return 0.0 if left == float("inf") else (1 - left / whole) / (1 - KEPT)

    whole = time_left()
    pricing = Pricing(problem)
    start, softness = pricing.start(), COLD
    if hint is not None and hint.prices.weight.shape == start.weight.shape:
        start, softness = hint.prices, WARM
    steps = int(np.clip(CELLS / pricing.work.size, FEWEST_STEPS, MOST_STEPS))
    out_of_time = whole <= 0
    prices = start if out_of_time else pricing.ascend(start, steps, softness, ascended)
    search = _within_budgets(pricing, prices)
    if hint is not None and hint.device.shape == search.device.shape:
        old = Search(pricing, hint.device)
        if old.repair(prices) and old.objective() < search.objective():
            search = old
    search.descend(prices, stop)
    polish(search, prices, time_left)
    objective = search.objective()
    bound = min(pricing.bound(prices), objective)
    status = "GREEDY" if out_of_time else "OPTIMAL" if objective - bound <= 1e-9 * objective else "FEASIBLE"
    return AssignmentSolution(search.device, status, objective, bound, prices)


class StepLimit:
    """A `time_left` that runs out after so many steps: equal problems then get equal solutions on any machine."""

    def __init__(self, steps: int) -> None:
        self._left = steps

    def __call__(self) -> float:
        self._left -= 1
        return float("inf") if self._left >= 0 else 0.0


def _within_budgets(pricing: Pricing, prices: Prices) -> Search:
    device = filled(pricing, prices)
    return Search(pricing, flow_assignment(pricing, pricing.priced(prices)) if device is None else device)
