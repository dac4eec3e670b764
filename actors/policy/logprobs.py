"""Log-probabilities of emitted tokens, for clients that ask for them."""

from __future__ import annotations

import numpy as np

from ..core import TokenLogprobs


def token_logprobs(logits: np.ndarray, token: int, top: int) -> TokenLogprobs:
    """`token`'s log-probability and the `top` most probable tokens, the lowest index first among equals.

    Of softmax(logits), float [vocab]: the model's own distribution, at temperature 1 and before bias, penalties and
    limits, whatever the token was drawn from.
    """
    scores = np.asarray(logits, dtype=np.float64)
    shifted = scores - scores.max()
    logp = shifted - np.log(np.exp(shifted).sum())
    best = _largest(logp, min(top, logp.size))
    return TokenLogprobs(token, float(logp[token]), tuple((int(i), float(logp[i])) for i in best))


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    """Indices of the `count` largest, descending, ties by index."""
    if count == 0:
        return np.empty(0, dtype=np.int64)
    bound = np.partition(values, -count)[-count]
    candidates = np.flatnonzero(values >= bound)
    return candidates[np.argsort(-values[candidates], kind="stable")][:count]
