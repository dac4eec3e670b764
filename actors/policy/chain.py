"""How long a draft goes on: as long as the chance that all of it stands pays for another token.

A draft says of each token how sure it is (`sampling.draw_token`); how often tokens it is so sure of stand is measured.
The product over a chain is what the next token is worth at most, so it ends itself where the text becomes hard.
"""

from __future__ import annotations

from bisect import bisect_right

from ..core import DraftChoice

LONGEST = 16
"""Most draft tokens a step."""
EDGES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.96, 0.99)
"""Confidences between these are taken to be alike."""
UNKNOWN = len(EDGES) + 1
"""The place of tokens whose draft does not say how sure it is."""
PLACES = UNKNOWN + 1


def place_of(confidence: float | None) -> int:
    """Which of PLACES a token of this confidence has, the least sure first."""
    return UNKNOWN if confidence is None else bisect_right(EDGES, confidence)


class Chain:
    """A draft in the making: told how sure each token is, it says whether another one is wanted."""

    def __init__(self, choice: DraftChoice, room: int) -> None:
        """`room`: tokens that fit; `choice` without floors wants all of its tokens, however unlikely."""
        self.most = min(choice.gamma, room)
        self.choice = choice
        self.places: list[int] = []
        """Of the tokens so far."""
        self._stands = 1.0

    def wants_more(self) -> bool:
        drafted, floors = len(self.places), self.choice.floors
        return drafted < self.most and (not floors or self._stands >= floors[min(drafted, len(floors) - 1)])

    def add(self, confidence: float | None = None) -> None:
        """A token was drafted; None: its draft does not say how sure it is."""
        at = place_of(confidence)
        self.places.append(at)
        if self.choice.chances:
            self._stands *= self.choice.chances[at]
