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
    rows = np.arange(len(cost))
    choice = np.full(len(cost), cost.shape[1] - 1)
    slots_left, link_left = slots, link_experts
    while True:
        gain = cost[rows, choice][:, None] - cost
        more_slots = size - size[rows, choice][:, None]
        more_link = transfers - transfers[rows, choice][:, None]
        possible = (gain > 0) & (more_slots <= slots_left) & (more_link <= link_left)
        # Only to larger hot sets: the search cannot go round in circles.
        possible &= more_slots > 0
        if not possible.any():
            return choice
        share = more_slots / max(slots, 1) + more_link / max(link_experts, 1)
        worth = np.where(possible, gain / np.where(possible, share, 1.0), -1.0)
        # From the right, so that argmax meets the smallest hot set of a layer first.
        layer, from_right = divmod(int(np.argmax(worth[:, ::-1])), worth.shape[1])
        column = worth.shape[1] - 1 - from_right
        slots_left -= int(more_slots[layer, column])
        link_left -= int(more_link[layer, column])
        choice[layer] = column
