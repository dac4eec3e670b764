"""Where each request stands in its text: its last tokens, and what its latest tokens were routed to."""

from __future__ import annotations

import copy
from collections import OrderedDict

import numpy as np

from .shares import DecayedShares
from .similar_routing import NOWHERE

REQUESTS_HELD = 64
"""Requests remembered at a time; the one silent longest is forgotten."""
SURPRISE_RATES = (0.3, 0.06)
"""Memory lengths, in windows, of what a forecast missed."""

TEXT_PRIOR = 10.0
"""Tokens that the routing before a text counts for in the text's own mean."""


class TextPosition:
    """The last two token ids of one request (None: unknown), decayed means of its routing and of what forecasts missed.

    `mean`: its own routing from its beginning on, float32 [width]. `place`: number of its last token in
    `SimilarRouting`.
    """

    def __init__(self, shares: DecayedShares, surprises: DecayedShares) -> None:
        self.last_tokens: tuple[int | None, int | None] = (None, None)
        self.shares = shares
        self.surprises = surprises
        self.mean = shares.values[-1].copy()
        self._seen = TEXT_PRIOR
        self.place = NOWHERE

    @property
    def last_token(self) -> int | None:
        return self.last_tokens[1]

    def snapshot(self) -> TextPosition:
        """A copy that later tokens leave alone."""
        return copy.deepcopy(self)

    def advance(self, rows: np.ndarray, ids: list[int] | None, most: float) -> None:
        """The text has grown by `rows`, and by the tokens `ids` where they are known."""
        self.shares.add(rows, most)
        if len(rows):
            weight = min(most, len(rows) / (self._seen + len(rows)))
            self.mean += np.float32(weight) * (rows.mean(axis=0) - self.mean)
            self._seen /= 1.0 - weight
        if ids is not None:
            older, last = [*self.last_tokens, *ids][-2:]
            self.last_tokens = (older, last)
        elif len(rows):
            self.last_tokens = (None, None)


class TextPositions:
    """One `TextPosition` for each of the latest requests.

    A new request starts with the shares and surprises of whichever advanced last: what the machine serves now tells
    more of it than the mean of all time.
    """

    def __init__(self, rates: tuple[float, ...], shares: np.ndarray, surprises: np.ndarray) -> None:
        self._rates, self._shares, self._surprises = rates, shares, surprises
        self._held: OrderedDict[str, TextPosition] = OrderedDict()

    def of(self, request: str) -> TextPosition:
        """The position of `request`; '' means the one that advanced last. Not remembered until it advances."""
        if request == "" and self._held:
            return next(reversed(self._held.values()))
        return self._held.get(request) or TextPosition(
            DecayedShares(self._rates, self.latest_shares()), DecayedShares(SURPRISE_RATES, self.latest_surprises())
        )

    def advance(self, request: str, rows: np.ndarray, ids: list[int] | None, most: float = 1.0) -> TextPosition:
        """Moves `request` on by `rows` and `ids`; together they weigh at most `most` in its shares."""
        position = self.of(request)
        position.advance(rows, ids, most)
        self._held[request] = position
        self._held.move_to_end(request)
        if len(self._held) > REQUESTS_HELD:
            self._held.popitem(last=False)
        return position

    def latest_shares(self) -> np.ndarray:
        """float32 [rates, width]: of the request that advanced last."""
        return next(reversed(self._held.values())).shares.values if self._held else self._shares

    def latest_surprises(self) -> np.ndarray:
        """float32 [surprise rates, width]: of the request that advanced last."""
        return next(reversed(self._held.values())).surprises.values if self._held else self._surprises
