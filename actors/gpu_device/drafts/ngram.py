"""Drafts copied from where the same tokens stood before: in the request itself, or in earlier ones."""

from __future__ import annotations

from collections.abc import Sequence

from ...core import Proposal
from ...policy.chain import LONGEST, Chain
from ...policy.ngram import Found, History, TokenArray, continuation
from ...policy.sampler import Sampler
from ..kv import RequestCache
from ..passes import Pass
from .interface import NothingKept


class OwnText(NothingKept):
    """A request's tokens as an array, so that a proposal need not convert them all, and what was found for them."""

    def __init__(self) -> None:
        self.held = TokenArray()
        self.found: Found | None = None
        """What follows all that is held; None: not looked for."""

    def of(self, tokens: Sequence[int]) -> TokenArray:
        """`tokens`, of which those decided before are held: decided tokens never change."""
        if len(tokens) > len(self.held):
            self.held.extend(tokens[len(self.held) :])
            self.found = None
        return self.held


class NgramDraft:
    """Prompt lookup; `memory_bytes` for the texts of earlier requests."""

    def __init__(self, memory_bytes: int):
        self._history = History(memory_bytes)

    def open(self, target_cache: RequestCache) -> OwnText:
        return OwnText()

    def look_up(self, tokens: Sequence[int], state: OwnText) -> Found:
        """At most LONGEST tokens to follow `tokens`; searched for once, however often it is asked for."""
        own = state.of(tokens).view()
        if state.found is None:
            state.found = continuation(own, self._history.view(), LONGEST)
        return state.found

    def propose(self, tokens: Sequence[int], state: OwnText, chain: Chain, sampler: Sampler, run: Pass) -> Proposal:
        """Passes over what agrees in fewer tokens than the choice wants. Says of no token how sure it is."""
        found = self.look_up(tokens, state)
        if found.match < chain.choice.least_match:
            return Proposal()
        while len(chain.places) < len(found.tokens) and chain.wants_more():
            chain.add()
        return Proposal(found.tokens[: len(chain.places)], places=tuple(chain.places))

    def closed(self, tokens: Sequence[int]) -> None:
        self._history.remember(tokens)
