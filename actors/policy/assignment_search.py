"""Assignments within the budgets: built from prices, then improved by moving single experts, all layers at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from .assignment_exchange import exchange
from .assignment_prices import Prices, Pricing

MOST_SWEEPS = 100
"""At each discount; each moves at most one expert a layer."""
DISCOUNTS = (1.0, 0.3, 0.0)

LEAN = 0.2
"""Of a device's weighted time, counted even where it is not the slowest: room for later moves is worth something."""


class Search:
    """One assignment being improved: the executing device of every expert, and all that follows from it."""

    def __init__(self, pricing: Pricing, device: np.ndarray) -> None:
        """`device`: int [layers, experts]; within the budgets or not."""
        self.pricing, self.device = pricing, device.copy()
        self._rows = np.arange(len(device))
        self._count()

    def _count(self) -> None:
        p = self.pricing
        here = self.device[None] == np.arange(len(p.slots))[:, None, None]
        self.loads = (p.work * here).sum(axis=2)
        self.moves = (here & p.absent).sum(axis=2)
        self.calls = (here & p.active).sum(axis=2)
        self.held = here.sum(axis=(1, 2))

    def times(self) -> np.ndarray:
        """T_ld in seconds, [devices, layers]."""
        p = self.pricing
        return self.loads + self._exposed(self.moves) + (self.calls > 0) * p.charge[:, None]

    def objective(self) -> float:
        """Σ_l max_d T_ld in seconds."""
        return float(self.times().max(axis=0).sum())

    def room(self) -> tuple[np.ndarray, np.ndarray]:
        """Slots and transfers left, [devices]; negative where a budget is overdrawn."""
        p = self.pricing
        return p.slots - self.held, p.links - self.moves.sum(axis=1)

    def _exposed(self, moves: np.ndarray) -> np.ndarray:
        p = self.pricing
        return np.maximum(moves * p.transfer[:, None] - p.window[:, None], 0.0)

    def put(self, layers: np.ndarray, experts: np.ndarray, target: np.ndarray) -> None:
        """Moves these experts, at most one of each, to devices `target`."""
        p, source = self.pricing, self.device[layers, experts]
        active = p.active[layers, experts]
        for at, sign in ((source, -1), (target, 1)):
            np.add.at(self.loads, (at, layers), sign * p.work[at, layers, experts])
            np.add.at(self.moves, (at, layers), sign * p.absent[at, layers, experts])
            np.add.at(self.calls, (at, layers), sign * active)
            np.add.at(self.held, at, sign)
        self.device[layers, experts] = target

    def repair(self, prices: Prices) -> bool:
        """Moves out of overdrawn budgets what is dearest to keep relative to its next place; whether all fits now.

        May fail where no device has room for everything.
        """
        p, cost = self.pricing, self.pricing.priced(prices)
        for _ in range(4 * len(p.slots)):
            slots, links = self.room()
            over = np.flatnonzero((slots < 0) | (links < 0))
            if not len(over):
                return True
            d = int(over[np.argmin(np.minimum(slots, links)[over])])
            layers, experts = np.nonzero(self.device == d)
            absent = p.absent[d, layers, experts]
            only_link = slots[d] >= 0
            if only_link:
                layers, experts = layers[absent], experts[absent]
            open_to = (slots > 0)[:, None] & ((links > 0)[:, None] | ~p.absent[:, layers, experts])
            open_to[d] = False
            other = np.where(open_to, cost[:, layers, experts], np.inf)
            target = other.argmin(axis=0)
            loss = other.min(axis=0) - cost[d, layers, experts]
            order = np.argsort(loss, kind="stable")
            order = order[np.isfinite(loss[order])]
            excess = int(max(-links[d] if only_link else -slots[d], 1))
            chosen = self._affordable(order[: 4 * excess], layers, experts, target, excess)
            if not len(chosen):
                return False
            self.put(layers[chosen], experts[chosen], target[chosen])
        slots, links = self.room()
        return bool((slots >= 0).all() and (links >= 0).all())

    def _affordable(
        self, order: np.ndarray, layers: np.ndarray, experts: np.ndarray, target: np.ndarray, most: int
    ) -> np.ndarray:
        """The first `most` of `order` that fit their targets' budgets when taken one after the other."""
        slots, links = self.room()
        needs = self.pricing.absent[target, layers, experts]
        taken = []
        for at in order.tolist():
            d, transfer = target[at], needs[at]
            if slots[d] < 1 or links[d] < transfer:
                continue
            slots[d] -= 1
            links[d] -= transfer
            taken.append(at)
            if len(taken) == most:
                break
        return np.array(taken, dtype=np.int64)

    def descend(self, prices: Prices, stop: Callable[[], bool]) -> None:
        """Moves and exchanges experts while that lowers makespans plus the budgets' prices; asks `stop` each time.

        Prices of budgets that have room left are lowered twice, to nothing at last: what is not used is worth nothing.
        Budgets that hold before hold afterwards.
        """
        for discount in DISCOUNTS:
            slots, links = self.room()
            prices = replace(
                prices,
                slot=np.where(slots > 0, discount * prices.slot, prices.slot),
                link=np.where(links > 0, discount * prices.link, prices.link),
            )
            for _ in range(MOST_SWEEPS):
                if stop():
                    return
                if not (self._sweep(prices) or exchange(self, prices)):
                    break

    def _sweep(self, prices: Prices) -> bool:
        """The best move of every layer; whether anything was moved."""
        p, times, device, at = self.pricing, self.times(), self.device, self._rows[:, None]
        slowest = times.argmax(axis=0)
        longest = times[slowest, self._rows]
        rest = times.copy()
        rest[slowest, self._rows] = -np.inf
        second = rest.max(axis=0)
        slots, links = self.room()

        # What an expert takes off its device and adds to another, the transfers' exposed time included.
        exposed = self._exposed(self.moves)
        less, more = exposed - self._exposed(self.moves - 1), self._exposed(self.moves + 1) - exposed
        experts = np.arange(device.shape[1])
        absent_here = p.absent[device, at, experts]
        lighter = p.work[device, at, experts] + less[device, at] * absent_here
        lighter += p.charge[device] * (self.calls[device, at] == 1) * p.active
        left = np.maximum(longest[:, None] - lighter, second[:, None])
        left = np.where(device == slowest[:, None], left, longest[:, None])
        freed = prices.slot[device] + prices.link[device] * absent_here + LEAN * prices.weight[device, at] * lighter
        best, target = np.full(device.shape, -np.inf), np.zeros(device.shape, dtype=np.int64)
        for d in range(len(slots)):
            if slots[d] < 1:
                continue
            absent = p.absent[d]
            added = p.work[d] + more[d][:, None] * absent + p.charge[d] * (self.calls[d] == 0)[:, None] * p.active
            gain = (1 - LEAN) * (longest[:, None] - np.maximum(times[d][:, None] + added, left)) + freed
            gain -= prices.slot[d] + prices.link[d] * absent + LEAN * prices.weight[d][:, None] * added
            allowed = device != d
            if links[d] < 1:
                allowed &= ~absent
            better = allowed & (gain > best)
            best[better], target[better] = gain[better], d
        experts = best.argmax(axis=1)
        gains, targets = best[self._rows, experts], target[self._rows, experts]
        order = np.argsort(-gains, kind="stable")
        order = order[gains[order] > 1e-9]
        chosen = self._affordable(order, self._rows, experts, targets, len(order))
        self.put(chosen, experts[chosen], targets[chosen])
        return len(chosen) > 0
