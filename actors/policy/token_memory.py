"""What was seen with each token id: sums of vectors, in bounded memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping

import numpy as np


class TokenMemory:
    """Sum and number of the vectors of each key; the key used longest ago is forgotten when `capacity` are held.

    Keys are integers; vectors float32 [width].
    """

    def __init__(self, width: int, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}; expected at least 1 key")
        self._width, self._capacity = width, capacity
        self._places: OrderedDict[int, int] = OrderedDict()
        self._sums = np.zeros((0, width), dtype=np.float32)
        self._seen = np.zeros(0, dtype=np.float32)

    def __len__(self) -> int:
        return len(self._places)

    @property
    def nbytes(self) -> int:
        """Bytes of the sums and their counts."""
        return self._sums.nbytes + self._seen.nbytes

    def add(self, keys: Iterable[int], vectors: np.ndarray) -> None:
        """One vector for each key, [keys, width]."""
        for key, vector in zip(keys, vectors, strict=True):
            place = self._place(key)
            self._sums[place] += vector
            self._seen[place] += 1

    def means(self, keys: Iterable[int], pseudo: float, towards: np.ndarray) -> np.ndarray:
        """float32 [keys, width]: each key's mean, drawn `towards` [width] or [keys, width] by `pseudo` observations."""
        places = np.array([self._places.get(key, -1) for key in keys], dtype=np.int64)
        found = places >= 0
        sums = np.zeros((len(places), self._width), dtype=np.float32)
        seen = np.zeros((len(places), 1), dtype=np.float32)
        sums[found], seen[found, 0] = self._sums[places[found]], self._seen[places[found]]
        return (sums + pseudo * towards) / (seen + pseudo)

    def state(self) -> dict[str, np.ndarray]:
        """Keys from the one used longest ago to the newest, with their sums and counts."""
        places = np.fromiter(self._places.values(), dtype=np.int64, count=len(self._places))
        keys = np.fromiter(self._places.keys(), dtype=np.int64, count=len(self._places))
        return {"keys": keys, "sums": self._sums[places], "seen": self._seen[places]}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Takes up what `state` gave; of more keys than `capacity` the newest."""
        keys, sums, seen = (np.asarray(state[name])[-self._capacity :] for name in ("keys", "sums", "seen"))
        if sums.shape != (len(keys), self._width) or seen.shape != keys.shape:
            raise ValueError(f"token memory: sums have shape {sums.shape}; expected {(len(keys), self._width)}")
        self._places = OrderedDict((int(key), place) for place, key in enumerate(keys))
        self._sums, self._seen = sums.astype(np.float32), seen.astype(np.float32)

    def _place(self, key: int) -> int:
        place = self._places.get(key)
        if place is None:
            if len(self._places) < self._capacity:
                place = len(self._places)
                if place == len(self._sums):
                    grown = min(self._capacity, max(256, 2 * place))
                    self._sums = np.concatenate([self._sums, np.zeros((grown - place, self._width), np.float32)])
                    self._seen = np.concatenate([self._seen, np.zeros(grown - place, np.float32)])
            else:
                _, place = self._places.popitem(last=False)
            self._sums[place], self._seen[place] = 0.0, 0.0
            self._places[key] = place
        else:
            self._places.move_to_end(key)
        return place
