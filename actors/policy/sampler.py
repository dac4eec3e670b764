"""One request's sampling: the same transforms wherever a token is chosen, drafted or verified.

Order: logit bias, repetition penalty, presence and frequency penalties, temperature, top-k, top-p, min-p. In a
verification pass each position is given the drafts before it, so penalties are those of decoding token by token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..core import Sampling
from .penalties import penalise
from .sampling import choose_token, draw_token, warp


@dataclass(frozen=True)
class Sampler:
    """`prompt_tokens`: how many of a request's tokens are its prompt; a resumed request's output is not."""

    sampling: Sampling
    prompt_tokens: int
    window: int | None = None
    """Of a sampler that drafts for rejection sampling: the position its window starts at."""

    def drafting(self, position: int) -> Sampler:
        """The sampler that drafts the window from `position` on.

        Coupled drafts share the target's noise. Rejection sampling needs q to be independent of the noise that draws
        from it, and a draft that fell may have changed which experts are resident, hence the next q of a self-draft:
        so every window has noise of its own.
        """
        rejects = self.sampling.verification == "rejection" and not self.sampling.greedy
        return replace(self, window=position) if rejects else self

    def choose(self, logits: np.ndarray, tokens: Sequence[int]) -> int:
        """The token to follow `tokens` (prompt included), by coupled sampling, from `logits`, float [vocab]."""
        return choose_token(self._penalised(logits, tokens), self.sampling, len(tokens), self.window)

    def draw(self, logits: np.ndarray, tokens: Sequence[int]) -> tuple[int, float]:
        """The token that `choose` gives, for a draft, and how sure the draft is that it will stand (`draw_token`)."""
        return draw_token(self._penalised(logits, tokens), self.sampling, len(tokens), self.window)

    def log_probabilities(self, logits: np.ndarray, tokens: Sequence[int]) -> np.ndarray:
        """What `choose` draws from: float64 [vocab], −inf for excluded tokens. The temperature must be above 0."""
        return warp(self._penalised(logits, tokens), self.sampling)

    def _penalised(self, logits: np.ndarray, tokens: Sequence[int]) -> np.ndarray:
        return penalise(logits, self.sampling, tokens, self.prompt_tokens)
