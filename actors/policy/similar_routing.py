"""What came after tokens that were routed much like the latest one."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .routing_history import RoutingHistory

KEY_RANKS = (48, 16)
"""Directions in which a token's own routing is compared, and that of the token before it."""
EARLIER = 0.5
"""Weight of the token before in the comparison."""
NEIGHBOURS = 8
"""Most similar tokens whose followers are averaged."""
SHARPNESS = 5.0
"""A neighbour's weight is exp(SHARPNESS · (cosine - 1))."""
RECENT_WEIGHT = 0.05
"""Weight of recent routing beside the neighbours."""
FEATURES = 3
NOWHERE = -1


class SimilarRouting:
    """Nearest neighbours of the latest token among those remembered, by their routing, and what followed them.

    MoE-Infinity (2401.14361) finds the stored sequence whose activations are nearest; here it is a place in the text:
    a token's routing tells it and its context nearly apart, so that templates and phrases are found again though no
    token id is known.
    """

    def __init__(self, width: int, capacity: int) -> None:
        self._width = width
        self._history = RoutingHistory(width, capacity)
        self._keys = np.zeros((capacity, sum(KEY_RANKS)), dtype=np.float32)
        self._next = np.full(capacity, NOWHERE, dtype=np.int64)

    def remember(self, place: int, rows: np.ndarray, coordinates: np.ndarray, earlier: np.ndarray) -> int:
        """`rows` [tokens, width] came after the token of number `place`, NOWHERE in a new text; the last one's number.

        `coordinates` [tokens, rank]: of the rows, strongest direction first; `earlier` [rank]: of the row before them.
        """
        kept = slice(-self._history.capacity, None)
        before = np.concatenate([earlier[None], coordinates[:-1]])[kept]
        numbers = self._history.add(rows[kept])
        slots = self._history.slots(numbers)
        own, other = _unit(coordinates[kept, : KEY_RANKS[0]]), EARLIER * _unit(before[:, : KEY_RANKS[1]])
        self._keys[slots] = 0.0
        self._keys[slots, : own.shape[1]] = own
        self._keys[slots, KEY_RANKS[0] : KEY_RANKS[0] + other.shape[1]] = other
        self._keys[slots] = _unit(self._keys[slots])
        self._next[slots] = [*numbers[1:], NOWHERE]
        if place in self._history.held and place < numbers.start:
            self._next[place % self._history.capacity] = numbers.start
        return numbers[-1]

    def features(self, place: int, tokens: int, recent: np.ndarray) -> np.ndarray:
        """float64 [FEATURES, width]: of the `tokens` tokens after `place`; `recent` [width]: shares lately.

        Log of the probability of use; the same times the nearest neighbour's weight; that weight. Zeros where the
        place is not known.
        """
        held = self._history.held
        if place not in held or len(held) <= 2 * (tokens + NEIGHBOURS):
            return np.zeros((FEATURES, self._width))
        likeness = self._keys[: len(held)] @ self._keys[place % self._history.capacity]
        likeness[self._next[: len(held)] < held.start] = -1.0
        nearest = np.argpartition(-likeness, NEIGHBOURS)[:NEIGHBOURS]
        weights = np.exp(SHARPNESS * (likeness[nearest] - 1.0))
        following = np.empty((tokens, NEIGHBOURS), dtype=np.int64)
        following[0] = self._next[nearest]
        for token in range(1, tokens):
            after = self._next[self._history.slots(following[token - 1])]
            following[token] = np.where(following[token - 1] >= held.start, after, NOWHERE)
        known = np.where(following >= held.start, weights, 0.0).astype(np.float32)
        rows = self._history.rows(following.ravel()).reshape(tokens, NEIGHBOURS, self._width).astype(np.float32)
        shares = (np.matmul(known[:, None], rows)[:, 0] + RECENT_WEIGHT * recent) / (weights.sum() + RECENT_WEIGHT)
        unused = np.prod(1.0 - np.clip(shares, 0.0, 0.97), axis=0, dtype=np.float64)
        logs = np.log(1.02 - unused) + 2.0
        return np.stack([logs, weights.max() * logs, np.full(self._width, weights.max())])

    def state(self) -> dict[str, np.ndarray]:
        """Rows, keys and followers of the tokens held, oldest first."""
        held = self._history.held
        slots = self._history.slots(held)
        following = np.maximum(self._next[slots] - held.start, NOWHERE)
        return {**self._history.state(), "keys": self._keys[slots], "next": following}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Takes up what `state` gave; ValueError when it is for rows of another width."""
        self._history.restore(state)
        count = len(self._history.held)
        keys, following = np.asarray(state["keys"])[-count:], np.asarray(state["next"], dtype=np.int64)
        if keys.shape != (count, self._keys.shape[1]) or following.ndim != 1 or len(following) < count:
            raise ValueError(f"similar routing: keys have shape {keys.shape}; expected {(count, self._keys.shape[1])}")
        dropped = len(following) - count
        self._keys[:count], self._next[:count] = keys, np.maximum(following[dropped:] - dropped, NOWHERE)


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / (np.linalg.norm(rows, axis=1, keepdims=True) + 1e-6)
