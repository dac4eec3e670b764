"""Where each request stands in its text: its last token, and what its latest tokens were routed to."""

from __future__ import annotations

import copy
from collections import OrderedDict

import numpy as np

from .shares import DecayedShares

REQUESTS_HELD = 64
"""Requests remembered at a time; the one silent longest is forgotten."""


class TextPosition:
    """The last token id of one request (None: unknown) and the decayed means of its routing."""

    def __init__(self, shares: DecayedShares) -> None:
        self.last_token: int | None = None
        self.shares = shares

    def snapshot(self) -> TextPosition:
        """A copy that later tokens leave alone."""
        return copy.deepcopy(self)

    def advance(self, rows: np.ndarray, ids: list[int] | None, most: float) -> None:
        """The text has grown by `rows`, and by the tokens `ids` where they are known."""
        self.shares.add(rows, most)
        if ids is not None:
            self.last_token = ids[-1] if ids else self.last_token
        elif len(rows):
            self.last_token = None


class TextPositions:
    """One `TextPosition` for each of the latest requests.

    A new request starts with the shares of whichever advanced last: what the machine serves now tells more of it
    than the mean of all time.
    """

    def __init__(self, rates: tuple[float, ...], start: np.ndarray) -> None:
        self._rates, self._start = rates, start
        self._held: OrderedDict[str, TextPosition] = OrderedDict()

    def of(self, request: str) -> TextPosition:
        """The position of `request`; '' means the one that advanced last. Not remembered until it advances."""
        if request == "" and self._held:
            return next(reversed(self._held.values()))
        return self._held.get(request) or TextPosition(DecayedShares(self._rates, self.latest_shares()))

    def advance(self, request: str, rows: np.ndarray, ids: list[int] | None, most: float = 1.0) -> None:
        """Moves `request` on by `rows` and `ids`; together they weigh at most `most` in its shares."""
        position = self.of(request)
        position.advance(rows, ids, most)
        self._held[request] = position
        self._held.move_to_end(request)
        if len(self._held) > REQUESTS_HELD:
            self._held.popitem(last=False)

    def latest_shares(self) -> np.ndarray:
        """float32 [rates, width]: of the request that advanced last."""
        return next(reversed(self._held.values())).shares.values if self._held else self._start
