"""Leaves what failed alone for a growing, bounded time, key by key."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass


@dataclass(frozen=True)
class _Wait:
    failures: int
    until: float


class KeyedBackoff:
    """After the n-th failure in a row a key waits first_s · 2^(n-1), at most `most_s`. Not thread-safe.

    `clock`: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float], first_s: float = 0.1, most_s: float = 5.0):
        if not 0 < first_s <= most_s:
            raise ValueError(f"first_s: {first_s} is not within (0, most_s = {most_s}]: choose a shorter one")
        self._clock, self._first_s, self._most_s = clock, first_s, most_s
        self._waits: dict[Hashable, _Wait] = {}

    def ready(self, key: Hashable) -> bool:
        """Whether `key` may be tried now."""
        return self.remaining_s(key) == 0.0

    def remaining_s(self, key: Hashable) -> float:
        """Seconds until `key` may be tried; 0: now."""
        wait = self._waits.get(key)
        return max(0.0, wait.until - self._clock()) if wait else 0.0

    def failed(self, key: Hashable) -> None:
        """`key` failed. Failures within a wait are not counted: they were under way when it began."""
        if not self.ready(key):
            return
        failures = self._waits[key].failures + 1 if key in self._waits else 1
        # 2 ** 60 is beyond any bound and still a float.
        wait_s = min(self._most_s, self._first_s * 2.0 ** min(failures - 1, 60))
        self._waits[key] = _Wait(failures, self._clock() + wait_s)

    def succeeded(self, key: Hashable) -> None:
        """`key` works again."""
        self._waits.pop(key, None)
