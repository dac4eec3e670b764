"""What rejection sampling puts out, in closed form, from recorded distributions and the policy's own formulae."""

from __future__ import annotations

import numpy as np

from moespac.actors.policy.rejection import acceptance_probabilities, residual

TOLERANCE = 1e-6


def first_token(p: np.ndarray, q: np.ndarray, factor: float = 1.0) -> np.ndarray:
    """Law of the token at a drafted position, float64 [vocab]; `factor` falsifies the acceptance probabilities.

    q(x) · a(x) + (1 − Σ q · a) · r(x): drafted and accepted, or anything rejected and x in its place.
    """
    accepted = q * np.minimum(1.0, factor * np.nan_to_num(acceptance_probabilities(p, q)))
    return accepted + (1.0 - accepted.sum()) * residual(p, q)


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """The largest difference of two laws' probabilities."""
    return float(np.abs(one - other).max())
