"""A small regression that survives outliers, few samples and samples that all look alike."""

from __future__ import annotations

from itertools import combinations

import numpy as np

ITERATIONS = 8
HUBER = 1.345
"""Residuals beyond this many standard deviations count linearly (Huber 1964; 95 % efficient if normal)."""
PRIOR_WEIGHT = 0.01
"""Of each coefficient's pull towards its start; a sample has weight 1."""
SMALLEST_SCALE = 0.02
"""Relative noise assumed at least; below it nothing counts as an outlier."""


def fit_coefficients(features: np.ndarray, seconds: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """Non-negative β [k] such that `features` [n, k] @ β is about `seconds` [n], both >= 0, `prior` [k] too.

    Starts from `prior` scaled by the median of measured over predicted, so that one sample is enough and no
    minority of outliers moves the start. Then iteratively reweighted least squares with Huber's loss on errors
    relative to the prediction (relative to the measurement, one sample far too small would outweigh all others),
    held to the scaled prior with `PRIOR_WEIGHT`: directions the samples say nothing of stay there.
    """
    start = prior * max(np.median(seconds / (features @ prior)), 1e-9)
    scaled = features * start
    theta = np.ones(len(prior))
    for _ in range(ITERATIONS):
        # No prediction is taken to be below a tenth of the start's, or its error would count without bound.
        predicted = np.maximum(scaled @ theta, 0.1 * scaled.sum(axis=1))
        relative, target = scaled / predicted[:, None], seconds / predicted
        error = np.abs(relative @ theta - target)
        scale = max(SMALLEST_SCALE, 1.4826 * float(np.median(error)))
        weight = np.minimum(1.0, HUBER * scale / np.maximum(error, 1e-12))
        gram = (relative * weight[:, None]).T @ relative + PRIOR_WEIGHT * np.eye(len(prior))
        theta = _non_negative(gram, relative.T @ (weight * target) + PRIOR_WEIGHT)
    return theta * start


def _non_negative(gram: np.ndarray, target: np.ndarray) -> np.ndarray:
    """argmin over θ >= 0 of ½ θᵀ·gram·θ − targetᵀ·θ, exactly: by trying every set of non-zero elements (k is 3)."""
    free = np.linalg.solve(gram, target)
    if (free >= 0).all():
        return free
    best, best_value = np.zeros(len(target)), 0.0
    for size in range(1, len(target)):
        for support in combinations(range(len(target)), size):
            chosen = list(support)
            solution = np.linalg.solve(gram[np.ix_(chosen, chosen)], target[chosen])
            value = -0.5 * float(target[chosen] @ solution)
            if (solution >= 0).all() and value < best_value:
                best, best_value = np.zeros(len(target)), value
                best[chosen] = solution
    return best
