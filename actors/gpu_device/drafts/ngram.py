"""Drafts copied from where the same tokens stood before: in the request itself, or in earlier ones."""

from __future__ import annotations

from collections.abc import Sequence

from ...core import Proposal
from ...policy.ngram import History, TokenArray, continuation
from ...policy.sampler import Sampler
from ..kv import RequestCache
from ..passes import Pass
from .interface import NothingKept


class OwnText(NothingKept):
    """A request's tokens as an array, so that a proposal need not convert them all."""

    def __init__(self) -> None:
        self.held = TokenArray()

    def of(self, tokens: Sequence[int]) -> TokenArray:
        """`tokens`, of which those decided before are held: decided tokens never change."""
        self.held.extend(tokens[len(self.held) :])
        return self.held


class NgramDraft:
    """Prompt lookup; `memory_bytes` for the texts of earlier requests."""

    def __init__(self, memory_bytes: int):
        self._history = History(memory_bytes)

    def open(self, target_cache: RequestCache) -> OwnText:
        return OwnText()

    def propose(self, tokens: Sequence[int], state: OwnText, gamma: int, sampler: Sampler, run: Pass) -> Proposal:
        return Proposal(tuple(continuation(state.of(tokens).view(), self._history.view(), gamma)))

    def closed(self, tokens: Sequence[int]) -> None:
        self._history.remember(tokens)
