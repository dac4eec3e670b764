"""Next-layer gates that no trace holds, as the true routing with a stated share of errors.

Policies that apply a later layer's router to an earlier hidden state need activations; a trace has routing only. Here
a prediction is the true routing in which every (token, slot) pair is, independently with probability 1 − accuracy,
replaced by a uniformly drawn expert. Accuracy for three layers ahead is accuracy³: each layer in between errs anew.
"""

from __future__ import annotations

import numpy as np


def perturbed(counts: np.ndarray, accuracy: float, random: np.random.Generator) -> np.ndarray:
    """Predicted pairs of a whole window, int [n_layers, n_experts], of the true `counts` alike: errors as above."""
    right = random.binomial(counts, accuracy)
    wrong = (counts - right).sum(axis=1)
    n_experts = counts.shape[1]
    return right + random.multinomial(wrong, np.full(n_experts, 1 / n_experts))


class GatePredictor:
    """Seeded errors: equal calls in equal order give equal predictions."""

    def __init__(self, n_experts: int, accuracy: float, seed: int = 0) -> None:
        if not 0.0 <= accuracy <= 1.0:
            raise ValueError(f"gate accuracy is {accuracy}; expected 0 to 1")
        self._n_experts, self._accuracy = n_experts, accuracy
        self._random = np.random.default_rng(seed)

    def counts(self, routing: np.ndarray, layers_ahead: int = 1) -> np.ndarray:
        """Predicted pairs of each expert, int [n_experts], of true `routing`, int [tokens, top_k]."""
        flat = np.asarray(routing, dtype=np.int64).ravel()
        wrong = self._random.random(flat.size) >= self._accuracy**layers_ahead
        drawn = self._random.integers(0, self._n_experts, flat.size)
        return np.bincount(np.where(wrong, drawn, flat), minlength=self._n_experts)
