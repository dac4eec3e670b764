"""How far demand has moved since a plan was made from it."""

from __future__ import annotations

import numpy as np


def drift(planned: np.ndarray, present: np.ndarray) -> float:
    """Share of the expected pairs that are now wanted of other experts; 0 (the same) to 1 (nothing in common).

    Both: expected counts, [n_layers, n_experts]. The mean over layers of the total variation distance between the
    layers' shares. A layer that expects nothing of anybody, then or now, counts as unmoved.
    """
    totals = planned.sum(axis=1, keepdims=True), present.sum(axis=1, keepdims=True)
    known = ((totals[0] > 0) & (totals[1] > 0))[:, 0]
    shares = [counts[known] / total[known] for counts, total in zip((planned, present), totals, strict=True)]
    return float(np.abs(shares[0] - shares[1]).sum() / 2 / len(planned))
