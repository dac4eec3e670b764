"""One layer after the other solved by CP-SAT while all others stay as they are."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from ortools.sat.python import cp_model

from .assignment_prices import Prices
from .assignment_search import Search

TICK_S = 1e-7
"""Costs are whole ticks of 0.1 µs."""
CHOICES = 3
"""Devices an expert may go to: the one where it is and the cheapest others."""
LAYER_TIME = 0.05
"""CP-SAT's deterministic time for one layer: roughly seconds."""
SHORTEST_S = 0.05
"""No layer is begun with less time left: building its model takes about half of it."""


def polish(search: Search, prices: Prices, time_left: Callable[[], float]) -> None:
    """Improves `search` layer by layer, those first whose devices differ most; asks `time_left`, seconds, before each.

    A layer's makespan and the prices of the budgets it takes are minimised together, within what others leave.
    """
    times = search.times()
    uneven = times.max(axis=0) - (prices.weight * times).sum(axis=0)
    cost = search.pricing.priced(prices)
    for layer in np.argsort(-uneven, kind="stable").tolist():
        left = time_left()
        if left < SHORTEST_S:
            return
        _solve_layer(search, prices, cost, layer, left / 2)


def _solve_layer(search: Search, prices: Prices, cost: np.ndarray, layer: int, limit_s: float) -> None:
    p, device = search.pricing, search.device[layer]
    devices, experts = cost.shape[0], cost.shape[2]
    near = cost[:, layer].copy()
    near[device, np.arange(experts)] = -np.inf
    allowed = near.argsort(axis=0, kind="stable")[: min(CHOICES, devices)]

    model, ticks = cp_model.CpModel(), np.rint(p.work[:, layer] / TICK_S).astype(np.int64)
    taken: list[list[cp_model.IntVar]] = [[] for _ in range(devices)]
    places: list[list[int]] = [[] for _ in range(devices)]
    for expert in range(experts):
        options = [model.new_bool_var("") for _ in allowed]
        model.add_exactly_one(options)
        for option, d in zip(options, allowed[:, expert].tolist(), strict=True):
            model.add_hint(option, d == device[expert])
            taken[d].append(option)
            places[d].append(expert)
    most = int(search.times()[:, layer].max() / TICK_S) + devices + 1
    longest = model.new_int_var(0, most, "")
    slots, links = search.room()
    priced = [longest]
    for d in range(devices):
        at, total = np.array(places[d], dtype=np.int64), cp_model.LinearExpr.weighted_sum
        here = device == d
        absent = p.absent[d, layer, at].astype(np.int64)
        model.add(sum(taken[d]) <= int(here.sum() + slots[d]))
        model.add(total(taken[d], absent) <= int(search.moves[d, layer] + links[d]))
        called, exposed = model.new_bool_var(""), model.new_int_var(0, most, "")
        for option, expert in zip(taken[d], places[d], strict=True):
            if p.active[layer, expert]:
                model.add_implication(option, called)
        moves = total(taken[d], absent * round(p.transfer[d] / TICK_S))
        model.add(exposed >= moves - round(p.window[d] / TICK_S))
        model.add(total(taken[d], ticks[d, at]) + exposed + round(p.charge[d] / TICK_S) * called <= longest)
        price = np.rint((prices.slot[d] + prices.link[d] * absent) / TICK_S).astype(np.int64)
        priced.append(total(taken[d], price))
    model.minimize(sum(priced))

    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = 0
    solver.parameters.max_deterministic_time = LAYER_TIME
    if limit_s < float("inf"):
        solver.parameters.max_time_in_seconds = limit_s
    if solver.solve(model) not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return
    found = device.copy()
    for d in range(devices):
        for option, expert in zip(taken[d], places[d], strict=True):
            if solver.boolean_value(option):
                found[expert] = d
    _keep_if_better(search, prices, layer, found)


def _keep_if_better(search: Search, prices: Prices, layer: int, found: np.ndarray) -> None:
    def value() -> float:
        slots, links = search.room()
        return float(search.times()[:, layer].max() - prices.slot @ slots - prices.link @ links)

    changed = np.flatnonzero(found != search.device[layer])
    before, old = value(), search.device[layer, changed].copy()
    rows = np.full(len(changed), layer)
    search.put(rows, changed, found[changed])
    if value() > before - 1e-12:
        search.put(rows, changed, old)
