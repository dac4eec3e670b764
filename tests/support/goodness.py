"""Whether draws follow a law: chi-square with a pooled tail."""

from __future__ import annotations

import numpy as np
import torch

MOST_BINS = 20
LEAST_EXPECTED = 10.0
"""Fewer expected draws in a bin and the statistic is no longer chi-square."""


def p_value(drawn: np.ndarray, law: np.ndarray) -> float:
    """Of the hypothesis that `drawn`, counts [vocab], follow `law`, probabilities [vocab].

    The most probable tokens have bins of their own, at most MOST_BINS − 1; all others share one. A token that the law
    excludes makes it 0.
    """
    if drawn[law == 0].any():
        return 0.0
    expected = law * drawn.sum()
    order = np.argsort(-expected)
    own = min(MOST_BINS - 1, int((expected >= LEAST_EXPECTED).sum()))
    while own > 1 and 0 < expected[order[own:]].sum() < LEAST_EXPECTED:
        own -= 1
    bins = [(drawn[i], expected[i]) for i in order[:own]]
    rest = order[own:]
    if expected[rest].sum() > 0:
        bins.append((drawn[rest].sum(), expected[rest].sum()))
    statistic = sum((count - mean) ** 2 / mean for count, mean in bins)
    half = torch.tensor([(len(bins) - 1) / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))
