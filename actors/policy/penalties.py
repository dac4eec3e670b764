"""Changes to logits that depend on which token it is and on the tokens before: logit bias and penalties."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..core import Sampling


def penalise(logits: np.ndarray, sampling: Sampling, tokens: Sequence[int], prompt_tokens: int) -> np.ndarray:
    """Logits of the position after `tokens`, of which the first `prompt_tokens` are the prompt; float64 [vocab].

    Bias first, then the repetition penalty, in transformers' order and with its rules (SequenceBias and
    RepetitionPenalty); then presence and frequency penalties, which transformers lacks and which are OpenAI's:
    logit −= presence · [count > 0] + frequency · count, counted in the output only. Returns `logits` itself where
    nothing applies. Raises ValueError for invalid parameters and tokens beyond the vocabulary.
    """
    if not depends_on_tokens(sampling) and not sampling.logit_bias:
        return logits
    _check(sampling)
    scores = np.array(logits, dtype=np.float64)
    _check_range("logit_bias", np.array([token for token, _ in sampling.logit_bias], dtype=np.int64), scores.size)
    for token, bias in sampling.logit_bias:
        scores[token] += bias
    if not depends_on_tokens(sampling):
        return scores
    before = np.asarray(tokens, dtype=np.int64)
    _check_range("tokens", before, scores.size)
    if sampling.repetition_penalty != 1.0:
        seen = np.unique(before)
        penalty, of_seen = sampling.repetition_penalty, scores[seen]
        scores[seen] = np.where(of_seen < 0, of_seen * penalty, of_seen / penalty)
    if sampling.presence_penalty or sampling.frequency_penalty:
        emitted, counts = np.unique(before[prompt_tokens:], return_counts=True)
        scores[emitted] -= sampling.presence_penalty + sampling.frequency_penalty * counts
    return scores


def depends_on_tokens(sampling: Sampling) -> bool:
    """Whether the tokens before a position change its logits."""
    return sampling.repetition_penalty != 1.0 or sampling.presence_penalty != 0.0 or sampling.frequency_penalty != 0.0


def _check(sampling: Sampling) -> None:
    if not (math.isfinite(sampling.repetition_penalty) and sampling.repetition_penalty > 0):
        raise ValueError(f"repetition_penalty is {sampling.repetition_penalty}; expected a finite number above 0")
    for name in ("presence_penalty", "frequency_penalty"):
        if not math.isfinite(value := getattr(sampling, name)):
            raise ValueError(f"{name} is {value}; expected a finite number")
    for token, bias in sampling.logit_bias:
        if not math.isfinite(bias):
            raise ValueError(f"logit_bias of token {token} is {bias}; expected a finite number")


def _check_range(name: str, tokens: np.ndarray, vocabulary: int) -> None:
    if tokens.size and not (tokens.min() >= 0 and tokens.max() < vocabulary):
        raise ValueError(f"{name} has tokens {tokens.min()} to {tokens.max()}; the vocabulary has {vocabulary}")
