"""What a token was routed to when it last came after the same tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice

import numpy as np

from .routing_history import RoutingHistory

LONGEST = 3
"""Tokens that agree, at most: the token itself and those before it."""
OCCURRENCES = 4
"""Latest places with the same tokens whose routing is averaged."""
UNKNOWN = -1

Grams = list[tuple[int, ...]]


class RepeatedTokens:
    """Rows of the latest tokens, found again by the tokens before them (as prompt lookup finds what was said).

    Low-rank means of a token id lose what is particular about a place; a place whose last tokens agree repeats
    most of it.
    """

    def __init__(self, width: int, capacity: int) -> None:
        self._width = width
        self._history = RoutingHistory(width, capacity)
        self._tokens = np.full((capacity, LONGEST), UNKNOWN, dtype=np.int64)
        self._before = np.full((capacity, LONGEST), -1, dtype=np.int64)
        self._latest: dict[tuple[int, ...], int] = {}

    def __len__(self) -> int:
        return len(self._history.held)

    def remember(self, before: Sequence[int | None], ids: Sequence[int], rows: np.ndarray) -> None:
        """Tokens `ids`, which came after `before`, were routed to `rows` [tokens, width]."""
        seen = _with_those_before(before, ids)
        for start in range(0, len(ids), self._history.capacity):
            part = slice(start, start + self._history.capacity)
            self._add(seen[part], rows[part])

    def features(self, before: Sequence[int | None], ids: Sequence[int]) -> np.ndarray:
        """float64 [LONGEST, width]: uses to expect of the coming `ids`, each counted at its longest agreement."""
        found = np.zeros((LONGEST, self._width))
        for tokens in _with_those_before(before, ids):
            for index, gram in reversed(list(enumerate(_grams(tokens)))):
                places = self._places(gram)
                if places:
                    found[index] += self._history.rows(np.array(places)).mean(axis=0)
                    break
        return np.minimum(found, 1.5)

    def state(self) -> dict[str, np.ndarray]:
        """The rows held and the tokens of each, oldest first."""
        return {**self._history.state(), "tokens": self._tokens[self._history.slots(self._history.held)]}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Takes up what `state` gave; ValueError when it is for rows of another width."""
        self._history.restore(state)
        tokens = np.asarray(state["tokens"], dtype=np.int64)[-self._history.capacity :]
        if tokens.shape != (len(self), LONGEST):
            raise ValueError(f"repeated tokens: tokens have shape {tokens.shape}; expected {(len(self), LONGEST)}")
        self._latest = {}
        for number, each in enumerate(tokens):
            self._link(number, each)

    def _add(self, seen: np.ndarray, rows: np.ndarray) -> None:
        leaving = islice(self._history.held, max(0, len(self) + len(seen) - self._history.capacity))
        for number in list(leaving):
            for gram in _grams(self._tokens[number % self._history.capacity]):
                if self._latest.get(gram) == number:
                    del self._latest[gram]
        for number, tokens in zip(self._history.add(rows), seen, strict=True):
            self._link(number, tokens)

    def _link(self, number: int, tokens: np.ndarray) -> None:
        slot = number % self._history.capacity
        self._tokens[slot], self._before[slot] = tokens, -1
        for index, gram in enumerate(_grams(tokens)):
            self._before[slot, index] = self._latest.get(gram, -1)
            self._latest[gram] = number

    def _places(self, gram: tuple[int, ...]) -> list[int]:
        """Numbers of the latest places with these tokens, newest first."""
        places: list[int] = []
        number, first = self._latest.get(gram, -1), self._history.held.start
        while number >= first and len(places) < OCCURRENCES:
            places.append(number)
            number = int(self._before[number % self._history.capacity, len(gram) - 1])
        return places


def _with_those_before(before: Sequence[int | None], ids: Sequence[int]) -> np.ndarray:
    """int64 [ids, LONGEST]: each of `ids` with the tokens before it, itself last; UNKNOWN where there is none."""
    known = [UNKNOWN if token is None else token for token in before]
    line = np.array([*[UNKNOWN] * LONGEST, *known, *ids], dtype=np.int64)
    return np.lib.stride_tricks.sliding_window_view(line, LONGEST)[len(line) - LONGEST + 1 - len(ids) :]


def _grams(tokens: np.ndarray) -> Grams:
    """The last token, the last two, … as far as they are known."""
    line = tokens.tolist()
    known = next((length for length in range(1, LONGEST + 1) if line[-length] == UNKNOWN), LONGEST + 1) - 1
    return [tuple(line[-length:]) for length in range(1, known + 1)]
