"""The target as its own draft: only experts that are resident are computed, nothing is waited for.

No weights beside the target's. What its routers would have chosen is noted for every layer: the verification will
want much the same, from every expert and not only from the residents.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...core import Proposal
from ...policy.chain import Chain
from ...policy.sampler import Sampler
from ..hook import experts_computed_by
from ..kv import RequestCache
from ..layer import LayerExecutor
from ..passes import Pass
from ..trunk import LoadedModel
from .interface import NothingKept


class TargetCache(NothingKept):
    """The target's own cache, whose last rows a proposal borrows."""

    def __init__(self, cache: RequestCache):
        self.cache = cache


class ResidentDraft:
    """Drafts with the target's trunk and its resident experts, weights renormalised over those."""

    def __init__(self, target: LoadedModel, executor: LayerExecutor):
        self._target, self._executor = target, executor

    def open(self, target_cache: RequestCache) -> TargetCache:
        return TargetCache(target_cache)

    def propose(self, tokens: Sequence[int], state: TargetCache, chain: Chain, sampler: Sampler, run: Pass) -> Proposal:
        """Needs the target's cache to hold all of `tokens` but the last, and leaves it as it was."""
        cache, whole, rows = state.cache, list(tokens), []
        held = cache.length
        try:
            with experts_computed_by(self._executor.residents_only(run)):
                while chain.wants_more():
                    ids = torch.tensor([whole[cache.length :]], device=self._target.device)
                    out = self._target.model(ids, past_key_values=cache.cache, use_cache=True, logits_to_keep=1)
                    cache.grown(ids.shape[1])
                    rows.append(out.logits[0, -1].float().cpu().numpy())
                    token, confidence = sampler.draw(rows[-1], whole)
                    whole.append(token)
                    chain.add(confidence)
        finally:
            # Its rows were made without the experts that are away: the verification computes them anew.
            cache.rollback(held)
        return Proposal(tuple(whole[len(tokens) :]), tuple(rows), tuple(chain.places))

    def closed(self, tokens: Sequence[int]) -> None:
        pass
