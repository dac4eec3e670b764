"""What all drafts have in common: they propose a chain of tokens, which the target then verifies in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from ...core import Proposal
from ...policy.chain import Chain
from ...policy.sampler import Sampler
from ..kv import RequestCache
from ..passes import Pass


class DraftState(Protocol):
    """What a draft keeps of one request between its proposals."""

    def rollback(self, length: int) -> None:
        """Forgets every token from position `length` on; nothing happens where fewer are held."""

    def nbytes(self) -> int:
        """Bytes of KV cache beside the target's."""

    def behind(self, tokens: int) -> int:
        """Of the request's first `tokens`, those that must be computed before the next proposal, beyond the last."""


class Draft(Protocol):
    """One kind of draft. It cannot make a token wrong, only a step slow."""

    def open(self, target_cache: RequestCache) -> DraftState:
        """The state of a request of which nothing is known yet; `target_cache` is the target's."""

    def propose(self, tokens: Sequence[int], state: Any, chain: Chain, sampler: Sampler, run: Pass) -> Proposal:
        """Tokens to follow `tokens`, in the target's vocabulary, for as long as `chain` wants more; none where it has
        no idea.

        `chain` is new, and told of each token. Every token drawn is proposed: whether another is drawn may depend on
        those before it, but leaving out one for what it is would bias what rejection sampling puts out.
        `state`: of this draft's `open`; it may hold any prefix of `tokens`. The caller rolls it back to what was
        accepted, and also if this raises.
        """

    def closed(self, tokens: Sequence[int]) -> None:
        """A request has ended with `tokens`."""


class NothingKept:
    """The state of a draft that keeps nothing of its own."""

    def rollback(self, length: int) -> None:
        pass

    def nbytes(self) -> int:
        return 0

    def behind(self, tokens: int) -> int:
        return 0
