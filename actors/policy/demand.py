"""How often each expert is asked for: the part of utility estimation that all estimators share."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np

from ..core import ModelShape, RoutingWindow

PROMPT_BYPASS_TOKENS = 32
"""Prefill windows of at least this many tokens leave utilities alone, as in the released code."""

ALPHA = 0.02
"""Weight of one new token against all older ones: an observation has lost half its weight after 34 tokens."""

PROMPT_WEIGHT = 0.5
"""Most that a prompt counts against all before it."""
PROMPTS_REMEMBERED = 64
"""Requests whose prompts may come in turns, a chunk each."""


class DecayedDemand:
    """Exponentially decayed probability that a token is routed to an expert.

    A window of T tokens weighs 1 − (1 − ALPHA)^T, so that long and short windows count by their tokens.
    Windows that bypass the utilities are seen here: a prompt says nothing of bursts, but it does say what the
    text wants. All its chunks together weigh PROMPT_WEIGHT at most, lest a long one wash out what decoding taught.
    Before the first window every expert is equally likely.
    """

    def __init__(self, shape: ModelShape) -> None:
        self._per_token = np.full((shape.n_layers, shape.n_experts), shape.top_k / shape.n_experts)
        self._prompt_left: OrderedDict[str, float] = OrderedDict()

    def observe(self, window: RoutingWindow) -> None:
        keep = (1.0 - ALPHA) ** window.tokens
        if window.prefill:
            keep = self._kept(window.request, keep)
        self._per_token = keep * self._per_token + (1.0 - keep) * (window.counts / window.tokens)

    def _kept(self, request: str, keep: float) -> float:
        """`keep`, or as much more as the chunks before leave of the prompt's weight."""
        before = self._prompt_left.pop(request, 1.0)
        left = max(before * keep, 1.0 - PROMPT_WEIGHT)
        self._prompt_left[request] = left
        if len(self._prompt_left) > PROMPTS_REMEMBERED:
            self._prompt_left.popitem(last=False)
        return left / before

    def state(self) -> np.ndarray:
        """What was learned: float64 [n_layers, n_experts]."""
        return self._per_token.copy()

    def restore(self, state: np.ndarray) -> None:
        """Takes up what `state` gave. Raises ValueError when it is another model's."""
        if np.shape(state) != self._per_token.shape:
            raise ValueError(f"demand has shape {np.shape(state)}, not {self._per_token.shape}: discard it")
        self._per_token = np.array(state, dtype=np.float64)

    def expected_counts(self, tokens: int) -> np.ndarray:
        """Expected (token, slot) pairs of a window of `tokens` tokens.

        float64 [n_layers, n_experts]; each row sums to tokens · top_k, no element exceeds `tokens`.
        """
        if tokens < 0:
            raise ValueError(f"tokens is {tokens}; expected 0 or more")
        return tokens * self._per_token


def check_window(window: RoutingWindow, shape: ModelShape) -> None:
    """Raises ValueError unless `window.counts` can be the routing of `window.tokens` tokens of this model."""
    counts, expected = np.asarray(window.counts), (shape.n_layers, shape.n_experts)
    if counts.shape != expected:
        raise ValueError(f"routing window: counts have shape {counts.shape}; the model's is {expected}")
    if window.tokens < 1:
        raise ValueError(f"routing window: tokens is {window.tokens}; expected at least 1")
    if counts.min() < 0 or counts.max() > window.tokens:
        raise ValueError(f"routing window: counts must lie in 0..{window.tokens}, the tokens of the window")
    if (counts.sum(axis=1) != window.tokens * shape.top_k).any():
        raise ValueError(
            f"routing window: every layer's counts must sum to tokens · top_k = {window.tokens * shape.top_k}"
        )


def bypasses_utilities(window: RoutingWindow) -> bool:
    """True for a prefill window long enough to leave utilities alone."""
    return window.prefill and window.tokens >= PROMPT_BYPASS_TOKENS


def with_mass(weights: np.ndarray, tokens: int, top_k: int) -> np.ndarray:
    """Expected counts in proportion to `weights` > 0 [n_layers, n_experts], as far as the window allows.

    float64; each row sums to tokens · top_k and no element exceeds `tokens`: what does not fit under that bound goes
    to the others, in proportion again.
    """
    largest = -np.sort(-weights, axis=1)
    rest = np.cumsum(largest[:, ::-1], axis=1)[:, ::-1]
    full = np.arange(weights.shape[1])
    scales = np.maximum(top_k - full, 0) / rest
    rows = np.arange(len(weights))
    first_below = np.argmax(scales * largest <= 1.0 + 1e-12, axis=1)
    return tokens * np.minimum(1.0, scales[rows, first_below][:, None] * weights)
