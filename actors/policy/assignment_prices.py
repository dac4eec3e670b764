"""Prices under which the assignment falls apart into experts: a lower bound, and the way to good assignments.

Each layer's makespan is at least any weighted mean of its devices' times, weights w_l >= 0 adding up to 1; budgets
are paid for at λ_d a slot and μ_d a transfer; of the exposed transfer time max(0, m·transfer − window) at least any
share φ/w in 0..1 of m·transfer − window is counted. What remains is a choice for every expert by itself,

    c_ed = w_ld·work_ed + λ_d + [e not held by d]·(μ_d + φ_ld·transfer_d),

so that, with F_d = call_d + delay_d and r_e the second least c_ed minus the least,

    Σ_e min_d c_ed + Σ_ld (min(w_ld·F_d, Σ_{e chooses d} r_e) − φ_ld·window_d) − Σ_d (λ_d·slots_d + μ_d·link_d)

is a lower bound on the objective, whatever the prices. (A call's cost may be charged to the experts that make it, as
long as none of them would rather go elsewhere: the dual of facility location, Erlenkotter 1978.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .assignment_problem import AssignmentProblem

PACE = 0.3
"""Power of asked over available in a price's change, relative to the softness: the softer, the less demand falls."""
SOFT = 0.05
"""Softness where one is needed besides an ascent."""
SMALLEST = 1e-6
"""Weights and prices, relative to where they start, never fall below this: from 0 none would come back."""


@dataclass(frozen=True)
class Prices:
    """One set of prices; seconds except `weight`."""

    weight: np.ndarray
    """w: [n_devices, n_layers], columns sum to 1."""
    exposure: np.ndarray
    """φ/w: [n_devices, n_layers], 0..1."""
    slot: np.ndarray
    """λ: [n_devices]."""
    link: np.ndarray
    """μ: [n_devices]."""


class Pricing:
    """A problem, prepared for being priced many times."""

    def __init__(self, problem: AssignmentProblem) -> None:
        self.problem = problem
        self.absent = ~problem.resident
        self.absent32 = self.absent.astype(np.float32)
        self.active = problem.expected_counts > 0
        self.slots, self.links = problem.column("slots"), problem.column("link_experts")
        # Transfers come whole: where one exceeds the window, what m of them expose is m·(transfer − window) +
        # (m − 1)·window, of which the first part belongs to each. So fractions of transfers get nothing for free.
        transfer, self.window = problem.column("transfer_s"), problem.column("window_s")
        self.transfer = np.minimum(transfer, self.window)
        self.work = problem.work() + self.absent * (transfer - self.transfer)[:, None, None]
        self.work32 = self.work.astype(np.float32)
        self.charge = problem.column("call_s") + problem.column("delay_s")
        # A pool that can hold everything never has a price.
        total = problem.expected_counts.size
        self.slots_scarce = self.slots < total
        self.links_scarce = self.links < self.absent.sum(axis=(1, 2))

    def start(self) -> Prices:
        """Prices to begin with: layers balanced, each scarce pool at the mean work of an expert."""
        devices, layers = len(self.slots), self.work.shape[1]
        mean = float(self.work.mean()) / devices
        return Prices(
            weight=np.full((devices, layers), 1.0 / devices),
            exposure=np.full((devices, layers), 0.5),
            slot=np.where(self.slots_scarce, mean, 0.0),
            link=np.where(self.links_scarce, mean, 0.0),
        )

    def priced(self, prices: Prices, roughly: bool = False) -> np.ndarray:
        """c: float64 (`roughly`: float32, faster) [n_devices, n_layers, n_experts]."""
        dtype = np.float32 if roughly else np.float64
        absent = (prices.weight * prices.exposure * self.transfer[:, None] + prices.link[:, None]).astype(dtype)
        cost = prices.weight.astype(dtype)[:, :, None] * (self.work32 if roughly else self.work)
        cost += self.absent32 * absent[:, :, None]
        cost += prices.slot.astype(dtype)[:, None, None]
        return cost

    def bound(self, prices: Prices) -> float:
        """The lower bound of these prices, seconds."""
        return float(self.layer_bounds(prices).sum() - self.pools(prices))

    def pools(self, prices: Prices) -> float:
        """What all budgets together cost at these prices, seconds."""
        return float(prices.slot @ self.slots + prices.link @ self.links)

    def layer_bounds(self, prices: Prices, all_called: bool = False) -> np.ndarray:
        """What each layer adds to the bound, seconds [n_layers]; `all_called`: where every device has to be called."""
        cost = self.priced(prices)
        if len(cost) > 1:
            two = np.partition(cost, 1, axis=0)[:2]
            regret = np.where(self.active, two[1] - two[0], 0.0)
        else:
            regret = np.where(self.active, np.inf, 0.0)
        chosen = cost.argmin(axis=0)
        waiting = np.stack([(regret * (chosen == d)).sum(axis=1) for d in range(len(cost))])
        charges = prices.weight * self.charge[:, None]
        if not all_called:
            charges = np.minimum(charges, waiting)
        windows = prices.weight * prices.exposure * self.window[:, None]
        return cost.min(axis=0).sum(axis=1) + (charges - windows).sum(axis=0)

    def ascend(
        self,
        prices: Prices,
        steps: int,
        softness: tuple[float, float],
        spent: Callable[[], float] = lambda: 0.0,
        pools: bool = True,
    ) -> Prices:
        """Better prices, each multiplied by a power of what is asked for relative to what there is.

        Experts answer softly, in shares that fall by e where a device is dearer than the cheapest by `softness`
        (first, last; relative to the layer's mean least cost), so that a small change of prices never moves a whole
        layer at once. `spent`, asked before each step, is the share of the time for all this that is gone: it ends
        at 1. Without `pools` the budgets' prices stay.
        """
        weight, exposure, slot, link = prices.weight, prices.exposure, prices.slot, prices.link
        for step in range(steps):
            done = max(step / max(1, steps - 1), spent())
            if done >= 1 and step:
                break
            soft = softness[0] * (softness[1] / softness[0]) ** min(done, 1.0)
            pace = PACE * soft
            times, moves, held = self._response(Prices(weight, exposure, slot, link), soft)
            level = np.maximum((weight * times).sum(axis=0), 1e-12)
            weight = np.maximum(weight * np.clip(times / level, 0.2, 5.0) ** pace, SMALLEST)
            weight = weight / weight.sum(axis=0)
            over = (moves * self.transfer[:, None] - self.window[:, None]) / level
            exposure = np.clip(exposure + pace * np.clip(over, -1.0, 1.0), 0.0, 1.0)
            if not pools:
                continue
            slot = np.where(self.slots_scarce, slot * _factor(held, self.slots, pace), 0.0)
            link = np.where(self.links_scarce, link * _factor(moves.sum(axis=1), self.links, pace), 0.0)
        return Prices(weight, exposure, slot, link)

    def level(self, prices: Prices) -> np.ndarray:
        """The makespan of each layer by these prices, seconds [n_layers]: the weighted mean of its devices' times."""
        times, _, _ = self._response(prices, SOFT)
        return (prices.weight * times).sum(axis=0)

    def _response(self, prices: Prices, soft: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Times [n_devices, n_layers], transfers [n_devices, n_layers] and slots [n_devices] asked for."""
        cost = self.priced(prices, roughly=True)
        least = cost.min(axis=0)
        cost -= least
        cost *= (-1.0 / (soft * np.maximum(least.mean(axis=1), 1e-15)))[:, None]
        share = np.exp(cost, out=cost)
        share /= share.sum(axis=0)
        moves = np.einsum("dle,dle->dl", share, self.absent32)
        times = np.einsum("dle,dle->dl", share, self.work32)
        times += np.maximum(moves * self.transfer[:, None] - self.window[:, None], 0.0)
        times += np.minimum(share.sum(axis=2), 1.0) * self.charge[:, None]
        return times, moves, share.sum(axis=(1, 2))


def _factor(asked: np.ndarray, budget: np.ndarray, pace: float) -> np.ndarray:
    return np.clip(asked / np.maximum(budget, 1.0), 0.2, 5.0) ** pace
