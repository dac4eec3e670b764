"""The dense draft: proposes a chain of tokens with its own KV cache."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ...core import Proposal
from ...policy.chain import Chain
from ...policy.sampler import Sampler
from ..kv import RequestCache
from ..passes import Pass
from ..trunk import LoadedModel

CATCH_UP_TOKENS = 512
"""Most tokens of one draft pass over a prompt: bounds the attention matrix of eager attention."""


class OwnCache(RequestCache):
    """The draft's cache of one request."""

    def rollback(self, length: int) -> None:
        super().rollback(min(length, self.length))

    def behind(self, tokens: int) -> int:
        return max(0, tokens - 1 - self.length)


class DenseDraft:
    """Draws draft tokens from a small model with the noise that the target will use, so that equal
    distributions propose equal tokens (coupled sampling)."""

    def __init__(self, model: LoadedModel, target_vocab: int):
        self.model = model
        self._target_vocab = target_vocab

    def open(self, target_cache: RequestCache) -> OwnCache:
        return OwnCache(self.model, target_cache.positions)

    def propose(self, tokens: Sequence[int], state: OwnCache, chain: Chain, sampler: Sampler, run: Pass) -> Proposal:
        """Fewer tokens where the draft's context ends; `state` then holds the proposal too, but its last token."""
        whole, rows = list(tokens), []
        while len(whole) <= self.model.context_length and chain.wants_more():
            rows.append(self._forward(whole[state.length :], state))
            token, confidence = sampler.draw(rows[-1], whole)
            whole.append(token)
            chain.add(confidence)
        return Proposal(tuple(whole[len(tokens) :]), tuple(rows), tuple(chain.places))

    def closed(self, tokens: Sequence[int]) -> None:
        pass

    def _forward(self, pending: Sequence[int], cache: RequestCache) -> np.ndarray:
        for start in range(0, len(pending), CATCH_UP_TOKENS):
            chunk = pending[start : start + CATCH_UP_TOKENS]
            # Of a token beyond its vocabulary the draft knows nothing; another in its place costs acceptance at most.
            ids = torch.tensor([chunk], device=self.model.device).clamp_(max=self.model.vocab_size - 1)
            logits = self.model.model(ids, past_key_values=cache.cache, use_cache=True, logits_to_keep=1).logits
            cache.grown(len(chunk))
        return self._in_target_vocab(logits[0, -1].float().cpu().numpy())

    def _in_target_vocab(self, logits: np.ndarray) -> np.ndarray:
        """Embeddings may be padded to different lengths; noise and tokens are the target's."""
        if len(logits) >= self._target_vocab:
            return logits[: self._target_vocab]
        padding = np.full(self._target_vocab - len(logits), -np.inf, dtype=np.float32)
        return np.concatenate([logits, padding])
