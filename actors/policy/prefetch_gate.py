"""Whether speculation pays: transfers are stopped while few of them are used, and tried again now and then."""

from __future__ import annotations

import numpy as np

PATIENCE = 64
"""Windows in which a transferred expert has to be used to count as useful, if it is not evicted before."""
MEMORY = 128
"""Transfers that the measured recall looks back on, about."""
CLOSE_BELOW, OPEN_ABOVE = 0.15, 0.3
"""Recall at which transfers stop and start again; apart, so that chance does not toggle them."""
PROBE_EVERY = 16
"""Plans between probes while closed."""
PROBE_SHARE = 0.1
"""Of a plan's transfers that a probe may make; at least one."""
ENOUGH = 24
"""Outcomes known before the gate may close, and of probes before it may open."""


class PrefetchGate:
    """Follows experts from their arrival in a slot to their first use, or to their end without one.

    Recall is the share of transferred bytes (all experts are equally large) that were used before eviction. Arrivals
    and ends are seen by comparing the residents of one window with those of the next; deterministic, no clock.
    """

    def __init__(self, n_layers: int, n_experts: int) -> None:
        self._resident: np.ndarray | None = None
        self._age = np.full((n_layers, n_experts), -1)
        self._used = self._known = 0.0
        self._outcomes = 0
        self._plans_closed = 0.0
        self.open = True
        """Whether plans may transfer freely."""

    @property
    def recall(self) -> float | None:
        """Share of recently transferred experts that were used in time; None before the first outcome."""
        return self._used / self._known if self._known else None

    def observe(self, counts: np.ndarray, resident: np.ndarray) -> None:
        """One window: its counts [n_layers, n_experts], and who was resident when it ended (bool, the same shape).

        Who arrived in the course of the window is judged from the next one on. Residents of the first window were not
        transferred by plans.
        """
        waiting = self._age >= 0
        useful = waiting & (counts > 0)
        self._age[waiting] += 1
        useless = waiting & ~useful & (~resident | (self._age >= PATIENCE))
        self._age[useful | useless] = -1
        if self._resident is not None:
            self._age[resident & ~self._resident] = 0
        self._resident = resident.copy()
        self._learn(int(useful.sum()), int(useless.sum()))

    def allowance(self, transfers: int, plans: float = 1.0) -> int:
        """How many of `transfers` the next plan may make; to be asked once a plan.

        `plans`: what it counts for; less than 1 where the plan that stands is only renewed.
        """
        if self.open:
            return transfers
        before, self._plans_closed = self._plans_closed, self._plans_closed + plans
        if self._plans_closed // PROBE_EVERY == before // PROBE_EVERY:
            return 0
        return min(transfers, max(1, int(PROBE_SHARE * transfers)))

    def _learn(self, useful: int, useless: int) -> None:
        new = useful + useless
        if not new:
            return
        keep = (1 - 1 / MEMORY) ** new
        self._used = keep * self._used + useful
        self._known = keep * self._known + new
        self._outcomes += new
        recall = self._used / self._known
        turns = recall < CLOSE_BELOW if self.open else recall > OPEN_ABOVE
        if turns and self._outcomes >= ENOUGH:
            self.open, self._outcomes, self._plans_closed = not self.open, 0, 0
            # What led here weighs no more than what is needed to lead back.
            self._used, self._known = recall * ENOUGH, float(ENOUGH)
