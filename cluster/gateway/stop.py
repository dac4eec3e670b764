"""Stop strings: where a growing text ends, whatever pieces it comes in."""

from __future__ import annotations

from collections.abc import Sequence


class StopScanner:
    """Passes text on until a stop string is complete; what may yet become one is held back.

    The text ends before the stop string that is complete first, character by character; of those complete at the
    same character, before the longest. So the pieces do not matter.
    """

    def __init__(self, stops: Sequence[str]):
        """`stops`: not empty strings."""
        self._stops = sorted(stops, key=len, reverse=True)
        self._held = ""
        self.found: str | None = None
        """The stop string that has ended the text."""

    def push(self, text: str) -> str:
        """The text that is certain now; "" for all that follows a stop string."""
        if self.found is not None:
            return ""
        self._held += text
        complete = [(at + len(stop), at, stop) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if complete:
            _, at, self.found = min(complete)
            certain, self._held = self._held[:at], ""
            return certain
        undecided = self._undecided()
        certain, self._held = self._held[: len(self._held) - undecided], self._held[len(self._held) - undecided :]
        return certain

    def finish(self) -> str:
        """What was held back and has not become a stop string."""
        rest, self._held = self._held, ""
        return rest

    def _undecided(self) -> int:
        """Characters at the end that begin a stop string."""
        longest = len(self._stops[0]) - 1 if self._stops else 0
        for length in range(min(longest, len(self._held)), 0, -1):
            end = self._held[-length:]
            if any(stop.startswith(end) for stop in self._stops):
                return length
        return 0
