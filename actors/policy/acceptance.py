"""Which draft tokens stand. Lossless: what is emitted is always the target's own choice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Acceptance:
    """What one verification yields."""

    emitted: tuple[int, ...]
    """Accepted draft tokens, then the target's own token; 1 to γ+1 of them."""
    accepted: int
    """Draft tokens among them."""


def accept(draft: Sequence[int], chosen: Sequence[int]) -> Acceptance:
    """The longest prefix of `draft` equal to the target's choices, then the target's own next token.

    `draft`: γ tokens. `chosen`: γ+1 tokens, chosen[i] being the target's choice after the context and
    draft[:i]. Greedy and coupled sampling alike: the choice at a position depends on the target's logits and
    the position alone, so equality is all there is to check. Raises ValueError when the lengths do not fit.
    """
    if len(chosen) != len(draft) + 1:
        raise ValueError(f"chosen has {len(chosen)} tokens; a draft of {len(draft)} needs {len(draft) + 1}")
    accepted = 0
    while accepted < len(draft) and draft[accepted] == chosen[accepted]:
        accepted += 1
    return Acceptance(emitted=tuple(chosen[: accepted + 1]), accepted=accepted)
