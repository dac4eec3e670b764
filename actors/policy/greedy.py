"""Thresholds without a solver: take the best bargain until a budget is spent."""

from __future__ import annotations

import numpy as np


def greedy_choices(
    cost: np.ndarray, size: np.ndarray, transfers: np.ndarray, slots: int, link_experts: int
) -> np.ndarray:
    """One column a layer, int64 [layers], with Σ size <= `slots` and Σ transfers <= `link_experts`.

    `cost`, `size` and `transfers` are int64 [layers, columns]; both `size` and `transfers` fall from left to
    right and are 0 in the last column, where every layer starts. Each round takes, of all moves that save
    cost and fit, the one that saves most per share of the budgets it takes (slots and link added up); ties go
    to the first layer and to the smallest hot set. At most layers · columns rounds.
    """
    columns = cost.shape[1]
    choice = np.full(len(cost), columns - 1)
    slots_left, link_left = slots, link_experts
    # Of every move, seen from where its layer stands now.
    more_slots, more_link, worth = (np.empty(cost.shape, dtype) for dtype in (np.int64, np.int64, np.float64))

    def look(layer: slice | int, at: int) -> None:
        gain = cost[layer, at : at + 1] - cost[layer]
        more_slots[layer] = size[layer] - size[layer, at : at + 1]
        more_link[layer] = transfers[layer] - transfers[layer, at : at + 1]
        share = more_slots[layer] / max(slots, 1) + more_link[layer] / max(link_experts, 1)
        # Only to larger hot sets: the search cannot go round in circles.
        possible = (gain > 0) & (more_slots[layer] > 0)
        worth[layer] = np.where(possible, gain / np.where(possible, share, 1.0), -1.0)

    look(slice(None), columns - 1)
    while True:
        worth[(more_slots > slots_left) | (more_link > link_left)] = -1.0
        # From the right, so that argmax meets the smallest hot set of a layer first.
        layer, from_right = divmod(int(np.argmax(worth[:, ::-1])), columns)
        column = columns - 1 - from_right
        if worth[layer, column] <= 0:
            return choice
        slots_left -= int(more_slots[layer, column])
        link_left -= int(more_link[layer, column])
        choice[layer] = column
        look(layer, column)
