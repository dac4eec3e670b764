"""The dense draft: proposes a chain of tokens with its own KV cache."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ..core import Sampling
from ..policy.sampling import choose_token
from .kv import RequestCache
from .trunk import LoadedModel

CATCH_UP_TOKENS = 512
"""Most tokens of one draft pass over a prompt: bounds the attention matrix of eager attention."""


class Drafter:
    """Draws draft tokens from a small model with the noise that the target will use, so that equal
    distributions propose equal tokens (coupled sampling)."""

    def __init__(self, model: LoadedModel, target_vocab: int):
        self.model = model
        self._target_vocab = target_vocab

    def propose(self, tokens: Sequence[int], cache: RequestCache, gamma: int, sampling: Sampling) -> list[int]:
        """At most `gamma` tokens to follow `tokens`; fewer where the draft's context ends.

        `cache` holds any prefix of `tokens` before; afterwards all of `tokens` and the proposal but its last
        token, so the caller rolls it back to what was accepted. If this raises, roll it back as well.
        """
        gamma = min(gamma, self.model.context_length - len(tokens) + 1)
        proposal: list[int] = []
        pending = list(tokens[cache.length :])
        while len(proposal) < gamma:
            logits = self._forward(pending, cache)
            proposal.append(choose_token(logits, sampling, len(tokens) + len(proposal)))
            pending = proposal[-1:]
        return proposal

    def _forward(self, pending: Sequence[int], cache: RequestCache) -> np.ndarray:
        for start in range(0, len(pending), CATCH_UP_TOKENS):
            chunk = pending[start : start + CATCH_UP_TOKENS]
            ids = torch.tensor([chunk], device=self.model.device)
            logits = self.model.model(ids, past_key_values=cache.cache, use_cache=True, logits_to_keep=1).logits
            cache.grown(len(chunk))
        return self._in_target_vocab(logits[0, -1].float().cpu().numpy())

    def _in_target_vocab(self, logits: np.ndarray) -> np.ndarray:
        """Embeddings may be padded to different lengths; noise and tokens are the target's."""
        if len(logits) >= self._target_vocab:
            return logits[: self._target_vocab]
        padding = np.full(self._target_vocab - len(logits), -np.inf, dtype=np.float32)
        return np.concatenate([logits, padding])
