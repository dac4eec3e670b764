"""An asyncio event loop on a thread of its own, for actors whose methods Ray calls from other threads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

Result = TypeVar("Result")


class EventLoopThread:
    """Runs coroutines; the thread ends with the process or with `close`."""

    def __init__(self, name: str):
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        """Runs it on the loop and waits for its result; never to be called from the loop itself."""
        return self.spawn(coroutine).result()

    def spawn(self, coroutine: Coroutine[Any, Any, Result]) -> Future[Result]:
        """Runs it on the loop without waiting."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def close(self) -> None:
        """Stops the loop; what still runs on it is dropped."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
