"""One generation as its client gets it: text under its stop strings, and the tokens that count."""

from __future__ import annotations

from collections.abc import Sequence

from .stop import StopScanner
from .text import TextStream


class Output:
    """Goes token by token, so that neither the draft nor the size of an event changes where the text ends."""

    def __init__(self, text: TextStream, stops: Sequence[str]):
        self._text, self._scanner = text, StopScanner(stops)
        self.tokens = 0
        """Output tokens so far; the one that completed a stop string is the last."""

    @property
    def stop(self) -> str | None:
        """The stop string that has ended the text."""
        return self._scanner.found

    def push(self, token_ids: Sequence[int]) -> tuple[str, int]:
        """The text that became certain, and how many of `token_ids` are part of the output."""
        piece, counted = "", 0
        for token in token_ids:
            if self.stop is not None:
                break
            piece += self._scanner.push(self._text.push([token]))
            counted += 1
        self.tokens += counted
        return piece, counted

    def finish(self) -> str:
        """What was held back: the beginnings of stop strings, and bytes that never became a whole character."""
        return self._scanner.push(self._text.finish()) + self._scanner.finish()
