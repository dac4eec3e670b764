"""From prices to a first assignment: devices are filled up to their layer's level, the heaviest experts first."""

from __future__ import annotations

import numpy as np

from .assignment_prices import Prices, Pricing


def filled(pricing: Pricing, prices: Prices) -> np.ndarray | None:
    """The executing device of each expert, int [layers, experts], within the budgets; None where this way finds none.

    Each layer places its experts in descending order of their least work. An expert goes where its priced cost is
    least; what it adds above the layer's level, its makespan by the prices, counts as makespan. By prices alone
    whole groups of similar experts would go to the same device.
    """
    cost, absent = pricing.priced(prices), pricing.absent
    devices, layers, experts = cost.shape
    order = np.argsort(-pricing.work.min(axis=0), axis=1, kind="stable")
    rows, level = np.arange(layers), pricing.level(prices)
    transfer, window, charge = (column[:, None] for column in (pricing.transfer, pricing.window, pricing.charge))
    load, moves, called = np.zeros((devices, layers)), np.zeros((devices, layers)), np.zeros((devices, layers), bool)
    slots, links = pricing.slots.copy(), pricing.links.copy()
    device = np.empty((layers, experts), dtype=np.int64)
    for expert in order.T:
        moved = absent[:, rows, expert]
        exposed = np.maximum((moves + moved) * transfer - window, 0.0) - np.maximum(moves * transfer - window, 0.0)
        adds = pricing.work[:, rows, expert] + exposed + charge * ~called
        wish = cost[:, rows, expert] + np.maximum(load + adds - level, 0.0) - np.maximum(load - level, 0.0)
        chosen = _within(wish, moved, slots, links)
        if chosen is None:
            return None
        device[rows, expert] = chosen
        load[chosen, rows] += adds[chosen, rows]
        moves[chosen, rows] += moved[chosen, rows]
        called[chosen, rows] = True
        slots -= np.bincount(chosen, minlength=devices)
        links -= np.bincount(chosen, weights=moved[chosen, rows], minlength=devices)
    return device


def _within(wish: np.ndarray, moved: np.ndarray, slots: np.ndarray, links: np.ndarray) -> np.ndarray | None:
    """For each layer the device of least `wish` [devices, layers], those with most to lose first where room is low."""
    devices, rows = len(wish), np.arange(wish.shape[1])
    wish = np.where((slots < 1)[:, None] | ((links < 1)[:, None] & moved), np.inf, wish)
    for _ in range(2 * devices + 1):
        chosen = wish.argmin(axis=0)
        if not np.isfinite(wish[chosen, rows]).all():
            return None
        over_link = np.bincount(chosen, weights=moved[chosen, rows], minlength=devices) > links
        over = np.flatnonzero(over_link | (np.bincount(chosen, minlength=devices) > slots))
        if not len(over):
            return chosen
        d = over[0]
        asking = np.flatnonzero((chosen == d) & (moved[d] if over_link[d] else True))
        others = np.delete(wish, d, axis=0).min(axis=0, initial=np.inf) - wish[d]
        asking = asking[np.argsort(-others[asking], kind="stable")]
        wish[d, asking[int(links[d] if over_link[d] else slots[d]) :]] = np.inf
    return None
