"""What the plans have come to since the scheduler started. Times are passed in."""

from __future__ import annotations

from collections import Counter

from ...protos.v1 import generation_pb2 as pb
from ..histogram import empty_histogram, observe

PLAN_BOUNDS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1.0)


class PlanTotals:
    """Counters that only grow, and the last plan."""

    def __init__(self) -> None:
        self._made: Counter[tuple[str, str]] = Counter()
        self._last: pb.PlanInfo | None = None
        self._plan_s = empty_histogram(PLAN_BOUNDS_S)
        self._steps_s = 0.0
        self.undelivered = 0
        """Plans that did not reach the device."""

    def add_step(self, seconds: float) -> None:
        """Of decoding or prefill: what planning is held against."""
        self._steps_s += seconds

    def add_plan(self, plan: pb.PlanInfo) -> None:
        self._made[plan.solver, plan.status] += 1
        self._last = plan
        observe(self._plan_s, plan.seconds)

    def message(self) -> pb.PlanningStatus:
        """Without what the planner itself knows."""
        return pb.PlanningStatus(
            plans=[
                pb.PlanCount(solver=solver, status=status, plans=plans)
                for (solver, status), plans in sorted(self._made.items())
            ],
            last=self._last,
            plan_s=self._plan_s,
            duty=self._plan_s.sum / self._steps_s if self._steps_s else 0.0,
            undelivered=self.undelivered,
        )
