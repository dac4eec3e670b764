"""Which draft tokens stand. Lossless: what is emitted is always the target's own choice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Acceptance:
    """What one verification yields."""

    emitted: tuple[int, ...]
    """Accepted draft tokens, then the target's own token; 1 to γ+1 of them."""
    accepted: int
    """Draft tokens among them."""


def accept(draft: Sequence[int], choose: Callable[[int], int]) -> Acceptance:
    """The longest prefix of `draft` equal to the target's choices, then the target's own next token.

    `choose(i)`: the target's choice after the context and draft[:i]; asked from 0 on, as far as drafts agree. Greedy
    and coupled sampling alike: the choice depends on the target's logits, the tokens before and the position alone,
    so equality is all there is to check.
    """
    for accepted, token in enumerate(draft):
        chosen = choose(accepted)
        if chosen != token:
            return Acceptance((*draft[:accepted], chosen), accepted)
    return Acceptance((*draft, choose(len(draft))), len(draft))
