"""Coupled sampling: the token at a position is a function of the logits, the sampling and the position alone.

token = argmax(log p + Gumbel(seed, position)), which is distributed as p (the Gumbel-max trick). Target and
draft use the same noise at the same position, so that a good draft is often equal to the target's choice, and
neither the draft length nor a restart changes what is said.
"""

from __future__ import annotations

import numpy as np

from ..core import Sampling


def choose_token(logits: np.ndarray, sampling: Sampling, position: int, window: int | None = None) -> int:
    """The token for `position` (index in the whole sequence, prompt included) from `logits`, float [vocab].

    `window`: None for the noise that target and drafts share; else noise that only drafts of this window have.
    Greedy: the largest logit, the lowest index among equals, as torch.argmax.
    Raises ValueError for NaN, +inf or all −inf logits and for invalid sampling parameters.
    """
    if sampling.greedy:
        return int(np.argmax(_checked(logits)))
    kept, _, scores = _scored(logits, sampling, position, window)
    return int(kept[np.argmax(scores)])


def draw_token(logits: np.ndarray, sampling: Sampling, position: int, window: int | None = None) -> tuple[int, float]:
    """`choose_token` for a draft: the token, and how sure the draft is that it will stand, in (0, 1].

    That is the token's share in the softmax of the scores it is the largest of. Coupled, these are log p + noise: the
    target's noise is the same, so a token that leads by much here will lead there too, however improbable it was.
    Noise of a window says nothing of the target: the confidence is then the token's probability.
    """
    if sampling.greedy:
        scores = _checked(logits)
        token = int(np.argmax(scores))
        return token, _share(scores, token)
    kept, logp, scores = _scored(logits, sampling, position, window)
    at = int(np.argmax(scores))
    return int(kept[at]), _share(scores, at) if window is None else float(np.exp(logp[at]))


def _scored(
    logits: np.ndarray, sampling: Sampling, position: int, window: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens that are not excluded, ascending, their log-probabilities, and those with noise; [kept] each."""
    logp = warp(logits, sampling)
    kept = np.flatnonzero(np.isfinite(logp))
    noise = _to_gumbel(_noise(sampling.seed, position, int(kept[-1]) + 1, window)[kept])
    logp = logp[kept]
    return kept, logp, logp + noise


def _share(scores: np.ndarray, largest: int) -> float:
    """Of the largest of `scores` in their softmax."""
    with np.errstate(over="ignore"):
        return float(1.0 / np.exp(scores - scores[largest]).sum(dtype=np.float64))


def warp(logits: np.ndarray, sampling: Sampling) -> np.ndarray:
    """Log-probabilities the sampling draws from: float64 [vocab], −inf for excluded tokens.

    Temperature, top-k, top-p, then min-p, in the order and with the rules of transformers' warpers. Top-k keeps
    every token whose logit equals or exceeds the k-th largest, so ties may keep more than k. Top-p drops the
    least probable tokens while their cumulative probability (of what top-k left) is <= 1 − top_p, and always
    keeps the most probable; of equal logits at that cut the lowest index is kept longest (transformers leaves
    it open: its sort is not stable). Min-p drops tokens less probable, after top-p, than that share of the most
    probable. Computed in float64 where transformers uses the logits' type. Bias and penalties come before all this:
    see `penalties.py`.
    """
    _check_sampling(sampling)
    scores = _checked(logits).astype(np.float64)
    # With the maximum subtracted a tiny temperature can only overflow to −inf, which is right.
    with np.errstate(over="ignore"):
        scores = (scores - scores.max()) / sampling.temperature
    if 0 < sampling.top_k < scores.size:
        kth = np.partition(scores, -sampling.top_k)[-sampling.top_k]
        scores[scores < kth] = -np.inf
    if sampling.top_p < 1.0:
        scores[~_nucleus(scores, 1.0 - sampling.top_p)] = -np.inf
    if sampling.min_p > 0.0:
        # The largest score is 0: a token's score is the logarithm of its share of the most probable one's.
        scores[scores < np.log(sampling.min_p)] = -np.inf
    return scores - np.log(np.exp(scores).sum())


def _nucleus(scores: np.ndarray, excess: float) -> np.ndarray:
    """bool [vocab]: False for the least probable tokens, while their cumulative probability is <= `excess`."""
    probabilities = np.exp(scores)
    probabilities /= probabilities.sum()
    # Tokens below this cannot exceed `excess` even all together, so only the others need sorting.
    kept = probabilities >= min(excess / scores.size, probabilities.max())
    # From the highest index, so that the stable sort puts it first among equals.
    candidates = np.flatnonzero(kept)[::-1]
    ascending = candidates[np.argsort(scores[candidates], kind="stable")]
    cumulative = probabilities[~kept].sum() + np.cumsum(probabilities[ascending])
    kept[ascending[:-1][cumulative[:-1] <= excess]] = False
    return kept


def gumbel(seed: int, position: int, vocab: int) -> np.ndarray:
    """Standard Gumbel noise, float64 [vocab]; element i does not depend on `vocab`.

    numpy's Philox raw stream (frozen by numpy's compatibility policy) under the key (seed, position); the
    step from 64 random bits to a number is ours, because numpy's Generator may change.
    """
    return _to_gumbel(_raw(seed, position, vocab))


def independent_noise(seed: int, position: int, vocab: int) -> tuple[float, np.ndarray]:
    """A uniform number in (0, 1) and Gumbel noise, float64 [vocab], independent of `gumbel` of the same position."""
    raw = _raw(seed, position, vocab + 1, stream=1)
    return float(_to_uniform(raw[:1])[0]), _to_gumbel(raw[1:])


def _noise(seed: int, position: int, count: int, window: int | None) -> np.ndarray:
    return _raw(seed, position, count) if window is None else _raw(seed, position, count, stream=2, window=window)


def _raw(seed: int, position: int, count: int, stream: int = 0, window: int = 0) -> np.ndarray:
    for name, value in (("seed", seed), ("position", position)):
        if not 0 <= value < 2**64:
            raise ValueError(f"{name} is {value}; expected 0 to 2**64 − 1")
    key = np.array([seed, position], dtype=np.uint64)
    # Parts of one cycle: streams are 2**192 blocks apart, windows 2**128.
    counter = np.array([0, 0, window, stream], dtype=np.uint64)
    return np.random.Philox(key=key, counter=counter).random_raw(count)


def _to_uniform(raw: np.ndarray) -> np.ndarray:
    # 52 bits and a half: exactly representable and never 0 or 1, so that both logarithms of Gumbel noise are finite.
    return ((raw >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def _to_gumbel(raw: np.ndarray) -> np.ndarray:
    return -np.log(-np.log(_to_uniform(raw)))


def _checked(logits: np.ndarray) -> np.ndarray:
    logits = np.asarray(logits)
    if logits.ndim != 1 or logits.size == 0:
        raise ValueError(f"logits have shape {logits.shape}; expected one row of the vocabulary")
    # NaN wins every maximum, so this one comparison finds NaN, +inf and rows of −inf.
    if not np.isfinite(logits.max()):
        raise ValueError("logits contain NaN or +inf, or exclude every token; the model's output is broken")
    return logits


def _check_sampling(sampling: Sampling) -> None:
    if not sampling.temperature > 0.0 or not np.isfinite(sampling.temperature):
        raise ValueError(f"temperature is {sampling.temperature}; expected 0 (greedy) or a finite number above it")
    if not 0.0 < sampling.top_p <= 1.0:
        raise ValueError(f"top_p is {sampling.top_p}; expected more than 0 and at most 1")
    if sampling.top_k < 0:
        raise ValueError(f"top_k is {sampling.top_k}; expected 0 (all tokens) or more")
    if not 0.0 <= sampling.min_p <= 1.0:
        raise ValueError(f"min_p is {sampling.min_p}; expected 0 (no limit) to 1")
