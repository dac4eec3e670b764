"""What a draft that ends itself will come to, before its first token."""

from __future__ import annotations

import numpy as np

CELLS, STEP = 28, 0.15
"""The chance that a chain stands is kept in so many steps of its logarithm; below the last it is none."""
LEVELS = np.append(np.exp(-STEP * np.arange(CELLS - 1)), 0.0)


def forecast(chances: np.ndarray, shares: np.ndarray, floors: np.ndarray) -> tuple[float, np.ndarray]:
    """Expected tokens of a step, the target's own included, and the distribution of the draft's length.

    `chances`: that a token at each place stands, given that all before it do, float64 [places], in (0, 1]; `shares`:
    how often each place occurs, float64 [places], of sum 1; places are taken to be independent of one another.
    `floors`: as `DraftChoice.floors`, one a token that may be drafted, float64 [γ]. Lengths: float64 [γ + 1].
    """
    moves = _moves(chances, shares)
    at = np.zeros(CELLS)
    at[0] = 1.0
    tokens, lengths = 1.0, np.zeros(len(floors) + 1)
    # Cells below the floor end their chain; the levels descend, so that they are the last ones.
    going = np.searchsorted(-LEVELS, -floors, side="right")
    for drafted, cells in enumerate(going.tolist()):
        lengths[drafted] = at[cells:].sum()
        if not cells:
            return tokens, lengths
        at = at[:cells] @ moves[:cells]
        tokens += float(at @ LEVELS)
    lengths[-1] = at.sum()
    return tokens, lengths


def floors_of(costs: np.ndarray, chance: float) -> np.ndarray:
    """Where a draft should end itself: `DraftChoice.floors`, float64 [γ]; the first is 0, one token is always drafted.

    `costs`: of each token in emitted ones, float64 [γ]; `chance`: that a token stands whose draft is not made yet. A
    chain that stands with chance S goes on if for some number of further tokens Σ S · chance^i is worth what they
    cost: later ones may be cheaper than the next.
    """
    count = len(costs)
    spent = np.concatenate([[0.0], np.cumsum(costs)])
    gained = np.cumsum(chance ** np.arange(1, count + 1))
    # Row j, column n: what n + 1 tokens beyond the first j cost, over what they are worth if those stand.
    ends = np.minimum(np.arange(count)[:, None] + np.arange(count) + 1, count)
    further = ends - np.arange(count)[:, None]
    floors = np.maximum((spent[ends] - spent[:count, None]) / gained[further - 1], 0.0).min(axis=1)
    floors[0] = 0.0
    return floors


def _moves(chances: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Where a chain in each cell is after another token; float64 [CELLS, CELLS]."""
    far = -np.log(chances) / STEP
    cell = np.floor(far).astype(int)
    upper, lower = np.exp(-STEP * cell), np.exp(-STEP * (cell + 1))
    # Divided between two cells so that the mean chance is right.
    weight = np.clip((chances - lower) / (upper - lower), 0.0, 1.0)
    row = np.zeros(2 * CELLS)
    np.add.at(row, np.minimum(cell, CELLS), shares * weight)
    np.add.at(row, np.minimum(cell + 1, CELLS), shares * (1.0 - weight))
    moves = np.zeros((CELLS, CELLS))
    for start in range(CELLS):
        moves[start, start:] = row[: CELLS - start]
        moves[start, -1] += row[CELLS - start :].sum()
    return moves
