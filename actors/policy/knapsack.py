"""Exact choice of one column a row under two shared budgets: Lagrangian bound, then states that the bound leaves.

Choose a column of every row to minimise Σ cost subject to Σ size <= slots and Σ transfers <= link. For prices
(λ, μ) >= 0 of the budgets

    L(λ, μ) = Σ_rows min_columns (cost + λ·size + μ·transfers) − λ·slots − μ·link

is a lower bound (Fisher 1981), and a solution that costs U at most pays at most U − L in *excess*: what its columns
cost above their rows' minima, and what it leaves of the budgets at their prices. Rows are taken one by one; of all
partial solutions only those whose excess is affordable survive, few where L is near U (Pisinger 1995).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

NARROW, WIDE = 300, 2_000
"""Partial solutions kept for a good solution, then for a proof."""
CUTS = 90
"""Steps of the ellipsoid method; each leaves 77 % of the prices' area."""
NEAR = 1.0
"""Of the bound's largest value it is near enough; costs are whole numbers."""


@dataclass(frozen=True)
class Chosen:
    """One column a row, and what is known of it."""

    choice: np.ndarray
    """int64 [rows]."""
    bound: int
    """No choice costs less."""
    proved: bool
    """The choice is optimal."""


@dataclass(frozen=True)
class _Prices:
    value: float
    """L(λ, μ)."""
    at: np.ndarray
    """(λ, μ)."""
    excess: np.ndarray
    """Of every column above its row's minimum; float [rows, columns]."""


def solve_choices(
    cost: np.ndarray, size: np.ndarray, transfers: np.ndarray, slots: int, link: int, start: np.ndarray
) -> Chosen:
    """The best choice found, never worse than `start`, which must be within the budgets.

    `cost`, `size` and `transfers` are int64 [rows, columns], 0 or more; in the last column `size` and `transfers` are
    0. Deterministic; about 10 ms for 48 rows of 6 columns. Not `proved` where more than WIDE partial solutions matter.
    """
    rows = np.arange(len(cost))
    weights = np.stack([size, transfers]).astype(np.float64)
    budgets = np.array([slots, link], dtype=np.float64)
    best, most = start, int(cost[rows, start].sum())
    prices = _best_prices(cost.astype(np.float64), weights, budgets)
    bound = max(int(np.ceil(prices.value - 1e-6 * max(1.0, abs(prices.value)))), int(cost.min(axis=1).sum()))
    for width in (NARROW, WIDE):
        if bound >= most:
            break
        found, complete = _search(cost, weights, budgets, prices, most, width)
        if found is not None:
            best, most = found, int(cost[rows, found].sum())
        if complete:
            bound = most
    return Chosen(best, min(bound, most), bound >= most)


def _best_prices(cost: np.ndarray, weights: np.ndarray, budgets: np.ndarray) -> _Prices:
    """Prices whose bound is nearly the largest, by the ellipsoid method in two dimensions (Shor 1977)."""
    rows = np.arange(len(cost))
    # No price beyond the dearest saving a unit can make is needed; the first ellipse holds all up to it.
    saving = cost[:, -1:] - cost
    highest = np.array([max(1e-9, float((saving / np.maximum(w, 1.0)).max())) for w in weights])
    centre, shape = highest / 2, np.diag((highest / 2) ** 2 * 2)
    best = None
    for _ in range(CUTS):
        if (centre < 0).any():
            slope = (centre < 0).astype(np.float64)
        else:
            reduced = cost + np.tensordot(centre, weights, axes=1)
            columns = reduced.argmin(axis=1)
            minima = reduced[rows, columns]
            value = float(minima.sum() - centre @ budgets)
            if best is None or value > best.value:
                best = _Prices(value, centre.copy(), reduced - minima[:, None])
            slope = weights[:, rows, columns].sum(axis=1) - budgets
        length = float(np.sqrt(max(slope @ shape @ slope, 0.0)))
        # No prices in the ellipse raise the bound by more than this.
        if length < NEAR:
            break
        step = shape @ slope / length
        # The half in which `slope` points: there the bound is larger.
        centre = centre + step / 3
        shape = 4 / 3 * (shape - 2 / 3 * np.outer(step, step))
    return best if best is not None else _unpriced(cost)


def _unpriced(cost: np.ndarray) -> _Prices:
    minima = cost.min(axis=1, keepdims=True)
    return _Prices(float(minima.sum()), np.zeros(2), cost - minima)


def _search(
    cost: np.ndarray, weights: np.ndarray, budgets: np.ndarray, prices: _Prices, most: int, width: int
) -> tuple[np.ndarray | None, bool]:
    """A choice that costs less than `most` or None, and whether nothing was left out on the way."""
    affordable = most - 1 - prices.value + 1e-6 * max(1.0, abs(prices.value))
    columns = [np.flatnonzero(row <= affordable) for row in prices.excess]
    order = sorted(range(len(columns)), key=lambda row: len(columns[row]))
    # Rows with one column left first: they widen nothing.
    used, excess = np.zeros((2, 1)), np.zeros(1)
    trail: list[tuple[np.ndarray, np.ndarray]] = []
    complete = True
    for row in order:
        cells = columns[row]
        if not len(cells):
            return None, complete
        used = (used[:, :, None] + weights[:, row, cells][:, None, :]).reshape(2, -1)
        excess = (excess[:, None] + prices.excess[row, cells]).ravel()
        keep = np.flatnonzero((used <= budgets[:, None]).all(axis=0) & (excess <= affordable))
        keep = keep[_undominated(used[:, keep], excess[keep] - prices.at @ used[:, keep])]
        if len(keep) > width:
            complete = False
            keep = keep[np.argpartition(excess[keep], width)[:width]]
        if not len(keep):
            return None, complete
        used, excess = used[:, keep], excess[keep]
        trail.append((keep // len(cells), cells[keep % len(cells)]))
    total = excess + prices.at @ (budgets[:, None] - used)
    at = int(np.argmin(total))
    if total[at] > affordable:
        return None, complete
    choice = np.empty(len(order), dtype=np.int64)
    for row, (parent, cell) in zip(reversed(order), reversed(trail), strict=True):
        choice[row], at = cell[at], parent[at]
    return choice, complete


def _undominated(used: np.ndarray, cost: np.ndarray) -> np.ndarray:
    """Indices of partial solutions; of those that use the same, only the cheapest."""
    order = np.lexsort((cost, used[1], used[0]))
    first = np.ones(len(order), dtype=bool)
    first[1:] = (np.diff(used[:, order], axis=1) != 0).any(axis=0)
    return order[first]
