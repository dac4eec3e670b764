"""What the latest tokens were routed to, bit by bit, in bounded memory."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


class RoutingHistory:
    """Rows of zeros and ones, one a token; each has a number that counts up. The oldest of `capacity` give way."""

    def __init__(self, width: int, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}; expected at least 1 token")
        self._width, self.capacity = width, capacity
        self._bits = np.zeros((capacity, (width + 7) // 8), dtype=np.uint8)
        self.added = 0
        """Tokens ever added: the number of the next one."""

    @property
    def held(self) -> range:
        """Numbers of the tokens held."""
        return range(max(0, self.added - self.capacity), self.added)

    def slots(self, numbers: range | np.ndarray) -> np.ndarray:
        """int64: where tokens of these numbers lie in arrays of `capacity` that go along with the rows."""
        return np.asarray(numbers, dtype=np.int64) % self.capacity

    def add(self, rows: np.ndarray) -> range:
        """Takes `rows` [tokens, width], at most `capacity`; the numbers they got."""
        numbers = range(self.added, self.added + len(rows))
        self._bits[self.slots(numbers)] = np.packbits(rows > 0, axis=1)
        self.added = numbers.stop
        return numbers

    def rows(self, numbers: np.ndarray) -> np.ndarray:
        """uint8 [tokens, width] of zeros and ones, of tokens that are held."""
        return np.unpackbits(self._bits[self.slots(numbers)], axis=1, count=self._width)

    def state(self) -> dict[str, np.ndarray]:
        """The rows held, oldest first."""
        return {"bits": self._bits[self.slots(self.held)]}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Takes up what `state` gave, numbered from 0; of more rows than `capacity` the newest."""
        bits = np.asarray(state["bits"])[-self.capacity :]
        if bits.shape != (len(bits), self._bits.shape[1]):
            raise ValueError(f"routing history: rows have shape {bits.shape}; expected {(len(bits), self._width)} bits")
        self._bits[: len(bits)], self.added = bits, len(bits)
