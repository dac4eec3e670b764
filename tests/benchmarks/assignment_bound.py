"""A proved lower bound of the per-expert form, better than the solver's own and far slower: yardstick of its gap."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from moespac.actors.policy.assignment_prices import Prices, Pricing
from moespac.actors.policy.assignment_problem import AssignmentProblem

LADDER = (0.2, 0.1, 0.05, 0.03, 0.02, 0.01, 0.005)
"""Softness of the way to better prices, one stage after the other."""
NEVER = 1e6
"""Seconds an expert; whoever asks this price is not called."""


class Barred(Pricing):
    """A problem in which one device is never called."""

    def __init__(self, problem: AssignmentProblem, device: int) -> None:
        super().__init__(problem)
        self._barred = device

    def priced(self, prices: Prices, roughly: bool = False) -> np.ndarray:
        cost = super().priced(prices, roughly)
        cost[self._barred] += NEVER * self.active
        return cost


def best_bound(problem: AssignmentProblem, prices: Prices) -> float:
    """Seconds that no assignment can do better than; starts from the solver's `prices`.

    At the best budget prices found each layer either calls all devices, and then pays for all calls, or leaves one
    of them out: the least of these cases, each with the weights that suit it best, bounds the layer.
    """
    pricing, best, at = Pricing(problem), 0.0, prices
    for soft in LADDER:
        for _ in range(6):
            prices = pricing.ascend(prices, 40, (soft, soft))
            if (value := pricing.bound(prices)) > best:
                best, at = value, prices
    cases = [_weighed(pricing, at, all_called=True)]
    cases += [_weighed(Barred(problem, d), _without(at, d), all_called=False) for d in range(len(problem.executors))]
    return max(best, float(np.min(cases, axis=0).sum()) - pricing.pools(at))


def _weighed(pricing: Pricing, prices: Prices, all_called: bool) -> np.ndarray:
    """The best bound of every layer over its weights, the budgets' prices fixed; seconds [n_layers]."""
    best = pricing.layer_bounds(prices, all_called)
    for soft in LADDER:
        for _ in range(3):
            prices = pricing.ascend(prices, 30, (soft, soft), pools=False)
            best = np.maximum(best, pricing.layer_bounds(prices, all_called))
    return best


def _without(prices: Prices, device: int) -> Prices:
    weight = prices.weight.copy()
    weight[device] = 1e-9
    return replace(prices, weight=weight / weight.sum(axis=0))
