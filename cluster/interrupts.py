"""Ctrl-C and SIGTERM, from a service's first moment to its last."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """Both signals raise KeyboardInterrupt in the main thread, each time they come.

    Whatever this process inherited: a shell starts background commands with SIGINT ignored, and a service that was
    started so must end by it none the less. Created and used in the main thread.
    """

    def __init__(self) -> None:
        self._holding = self._came = False
        self.install()

    def install(self) -> None:
        """Takes the signals, also from a library that has taken them meanwhile."""
        for number in SIGNALS:
            signal.signal(number, self._on_signal)

    @contextmanager
    def held(self) -> Iterator[None]:
        """A signal within the block raises at its end: for what cannot be undone when it is broken off half-way."""
        self._holding, take = True, signal.signal

        def leave_ours(number, handler):
            # Ray's handler for SIGTERM raises within Ray, where that may be swallowed.
            return signal.getsignal(number) if number in SIGNALS else take(number, handler)

        signal.signal = leave_ours
        try:
            yield
        finally:
            signal.signal, self._holding = take, False
            self.install()
        if self._came:
            self._came = False
            raise KeyboardInterrupt

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._holding:
            self._came = True
        else:
            raise KeyboardInterrupt
