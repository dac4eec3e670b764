"""What a draft that ends itself will come to, before its first token."""

from __future__ import annotations

from functools import cache

import numpy as np

CELLS, STEP = 28, 0.15
"""The chance that a chain stands is kept in so many steps of its logarithm; below the last it is none."""
LAG = np.arange(CELLS) - np.arange(CELLS)[:, None]
LAG[LAG < 0] = CELLS
"""From row to column; CELLS: upwards, where no chain goes."""
LEVELS = np.append(np.exp(-STEP * np.arange(CELLS - 1)), 0.0)


def forecast(chances: np.ndarray, shares: np.ndarray, floors: np.ndarray) -> tuple[float, np.ndarray]:
    """Expected tokens of a step, the target's own included, and the distribution of the draft's length.

    `chances`: that a token at each place stands, given that all before it do, float64 [places], in (0, 1]; `shares`:
    how often each place occurs, float64 [places], of sum 1; places are taken to be independent of one another.
    `floors`: as `DraftChoice.floors`, one a token that may be drafted, float64 [γ]. Lengths: float64 [γ + 1].
    """
    moves = _moves(chances, shares)
    rows = np.zeros((len(floors) + 1, CELLS))
    rows[0, 0] = 1.0
    lengths = np.zeros(len(floors) + 1)
    # Cells below the floor end their chain; the levels descend, so that they are the last ones.
    going = np.searchsorted(-LEVELS, -floors, side="right")
    for drafted, cells in enumerate(going.tolist()):
        lengths[drafted] = rows[drafted, cells:].sum()
        if not cells:
            break
        np.matmul(rows[drafted, :cells], moves[:cells], out=rows[drafted + 1])
    else:
        lengths[-1] = rows[-1].sum()
    return 1.0 + float((rows[1:] @ LEVELS).sum()), lengths


def floors_of(costs: np.ndarray, chance: float) -> np.ndarray:
    """Where a draft should end itself: `DraftChoice.floors`, float64 [γ]; the first is 0, one token is always drafted.

    `costs`: of each token in emitted ones, float64 [γ]; `chance`: that a token stands whose draft is not made yet. A
    chain that stands with chance S goes on if for some number of further tokens Σ S · chance^i is worth what they
    cost: later ones may be cheaper than the next.
    """
    ends, further = _stretches(len(costs))
    spent = np.concatenate([[0.0], np.cumsum(costs)])
    gained = np.cumsum(chance ** np.arange(1, len(costs) + 1))
    floors = np.maximum((spent[ends] - spent[:-1, None]) / gained[further], 0.0).min(axis=1)
    floors[0] = 0.0
    return floors


@cache
def _stretches(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Row j, column n: where n + 1 tokens beyond the first j of `count` end, and how many they are, less one."""
    first = np.arange(count)[:, None]
    ends = np.minimum(first + np.arange(count) + 1, count)
    return ends, ends - first - 1


def _moves(chances: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Where a chain in each cell is after another token; float64 [CELLS, CELLS]."""
    far = -np.log(chances) / STEP
    cell = far.astype(np.intp)
    upper, lower = np.exp(-STEP * cell), np.exp(-STEP * (cell + 1))
    # Divided between two cells so that the mean chance is right.
    weight = np.minimum(np.maximum((chances - lower) / (upper - lower), 0.0), 1.0)
    places = np.minimum(np.concatenate([cell, cell + 1]), CELLS)
    row = np.bincount(places, np.concatenate([shares * weight, shares * (1.0 - weight)]), CELLS + 1)
    moves = row[LAG]
    moves[LAG > CELLS - 1] = 0.0
    # Whatever falls further than the last cell is in it.
    moves[:, -1] = row[::-1].cumsum()[1:]
    return moves
