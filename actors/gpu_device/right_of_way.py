"""Who goes first over the link: copies that a layer waits for, before those made for later."""

from __future__ import annotations

import threading

MOST_S = 0.5
"""A copy made for later waits so long at most: a long prompt must not stop them for good."""


class RightOfWay:
    """Thread-safe. A copy under way is not interrupted: whoever claims waits for one at most."""

    def __init__(self) -> None:
        self._free = threading.Event()
        self._free.set()

    def claim(self) -> None:
        """Copies that are waited for begin."""
        self._free.clear()

    def release(self) -> None:
        """None is to be made for now."""
        self._free.set()

    def give_way(self, most_s: float = MOST_S) -> None:
        """Returns when no copy is waited for, or time is up."""
        self._free.wait(most_s)
