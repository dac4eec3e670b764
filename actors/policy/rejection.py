"""Classical rejection sampling of drafts: what is emitted is distributed as the target's own tokens.

A draft token x, drawn from q, stands with probability min(1, p(x) / q(x)); else a token from norm(max(0, p − q))
takes its place and the rest of the draft falls. Behind a whole draft one more token is drawn from p (Leviathan et
al., arXiv 2211.17192, and Chen et al., arXiv 2302.01318).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .acceptance import Acceptance
from .sampling import independent_noise


def accept_by_rejection(
    draft: Sequence[int], p: Sequence[np.ndarray], q: Sequence[np.ndarray], seed: int, position: int
) -> Acceptance:
    """Which of `draft` stand, and the token behind them.

    `p`: γ+1 rows, p[i] the target's probabilities after the context and draft[:i]; `q`: γ rows, what draft[i] was
    drawn from; float [vocab] each, sums 1. `position`: of draft[0] in the whole sequence. The noise is a function of
    (seed, position) and independent of that which drew the draft. Raises ValueError when the lengths do not fit and
    for a draft token that q excludes.
    """
    if not len(p) == len(q) + 1 == len(draft) + 1:
        raise ValueError(f"{len(p)} rows of p and {len(q)} of q; a draft of {len(draft)} needs one more, and as many")
    for accepted, token in enumerate(draft):
        if not q[accepted][token] > 0:
            raise ValueError(f"draft token {token} at {accepted} has no probability in the q it was drawn from")
        uniform, noise = independent_noise(seed, position + accepted, len(p[accepted]))
        if not uniform < acceptance_probabilities(p[accepted], q[accepted])[token]:
            return Acceptance((*draft[:accepted], _draw(residual(p[accepted], q[accepted]), noise)), accepted)
    _, noise = independent_noise(seed, position + len(draft), len(p[-1]))
    return Acceptance((*draft, _draw(p[-1], noise)), len(draft))


def acceptance_probabilities(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """min(1, p / q) of every token, float64 [vocab]; NaN where q is 0: such a token is never drafted."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.asarray(p, dtype=np.float64) / q
    return np.where(np.asarray(q) > 0, np.minimum(1.0, ratio), np.nan)


def residual(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """norm(max(0, p − q)), float64 [vocab]; p itself where nothing is left, which only rounding can reach."""
    rest = np.maximum(0.0, np.asarray(p, dtype=np.float64) - q)
    total = rest.sum()
    return rest / total if total > 0 else np.asarray(p, dtype=np.float64)


def point_mass(token: int, vocab: int) -> np.ndarray:
    """q of a drafter that proposes without drawing: all on `token`, float64 [vocab]."""
    q = np.zeros(vocab)
    q[token] = 1.0
    return q


def _draw(probabilities: np.ndarray, noise: np.ndarray) -> int:
    with np.errstate(divide="ignore"):
        return int(np.argmax(np.log(probabilities) + noise))
