"""What happened at earlier places in texts that are like the coming one: found by token ids, or else by routing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .repeated_tokens import RepeatedTokens
from .similar_routing import SimilarRouting
from .text_position import TextPosition

TOKENS_HELD, ROUTING_HELD = 16_384, 8_192
"""Tokens that are found again by their ids, and by their routing: every window compares itself with all of these."""
RECENT_RATE = 3
"""Which of a position's shares stands in where no place is alike."""
PLACE_FEATURES = 3


class EarlierPlaces:
    """`RepeatedTokens` where texts have token ids, `SimilarRouting` where they have none.

    Each gives PLACE_FEATURES numbers an expert, whose meaning a regression has to learn.
    """

    def __init__(self, width: int, by_token: bool) -> None:
        self._by_id = RepeatedTokens(width, TOKENS_HELD) if by_token else None
        self._by_routing = None if by_token else SimilarRouting(width, ROUTING_HELD)

    def features(self, position: TextPosition, tokens: int, draft: Sequence[int]) -> np.ndarray:
        """float64 [PLACE_FEATURES, width]: of the `tokens` tokens after `position`, the first of which are `draft`."""
        if self._by_routing is not None:
            return self._by_routing.features(position.place, tokens, position.shares.values[RECENT_RATE])
        return self._by_id.features(position.last_tokens, draft[:tokens])

    def remember(
        self, position: TextPosition, rows: np.ndarray, ids: list[int] | None, kept: int, coordinates: np.ndarray
    ) -> int:
        """Takes the tokens after `position`; number of the last one that stays in the text.

        `rows` [tokens, width] of zeros and ones, the first `kept` of which stay; `coordinates` [1 + tokens, rank]: of
        the row before them, and theirs. Token ids teach from rejected tokens too.
        """
        if self._by_routing is not None:
            if kept == 0:
                return position.place
            return self._by_routing.remember(position.place, rows[:kept], coordinates[1 : 1 + kept], coordinates[0])
        if ids is not None:
            self._by_id.remember(position.last_tokens, ids, rows)
        return position.place

    def state(self) -> dict[str, np.ndarray]:
        """Everything remembered."""
        return self._part().state()

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Takes up what `state` gave; ValueError when it is another model's."""
        self._part().restore(state)

    def _part(self) -> RepeatedTokens | SimilarRouting:
        return self._by_id if self._by_routing is None else self._by_routing
