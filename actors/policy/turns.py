"""Which request runs next, and which may run at all."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum


class RefusalReason(Enum):
    NEVER_FITS = "never_fits"
    """Needs more KV cache than the whole budget."""
    QUEUE_FULL = "queue_full"


@dataclass(frozen=True)
class Admitted:
    """Takes part in the turns from now on; its KV cache is reserved."""


@dataclass(frozen=True)
class Queued:
    """Waits for room; nothing is reserved yet."""

    ahead: int
    """Requests that will be admitted before it."""


@dataclass(frozen=True)
class Refused:
    """Not taken."""

    reason: RefusalReason
    message: str
    """For the client: what was too much, and what to do."""


@dataclass(frozen=True)
class _Request:
    request_id: str
    kv_bytes: int


class Turns:
    """Round-robin over running requests, admission in order of arrival.

    A newcomer joins behind all others, so between two turns of one request every other that was running has
    had a turn. A waiting request is never overtaken by a later, smaller one: nobody starves.
    """

    def __init__(self, max_running: int, max_waiting: int, kv_budget_bytes: int) -> None:
        if max_running < 1:
            raise ValueError(f"max_running is {max_running}; expected at least 1")
        if max_waiting < 0:
            raise ValueError(f"max_waiting is {max_waiting}; expected 0 or more")
        if kv_budget_bytes < 0:
            raise ValueError(f"kv_budget_bytes is {kv_budget_bytes}; expected 0 or more")
        self._max_running = max_running
        self._max_waiting = max_waiting
        self._budget = kv_budget_bytes
        self._running: deque[_Request] = deque()
        self._waiting: deque[_Request] = deque()

    @property
    def running(self) -> tuple[str, ...]:
        """Admitted requests, the next to run first."""
        return tuple(r.request_id for r in self._running)

    @property
    def waiting(self) -> tuple[str, ...]:
        """Queued requests, the next to be admitted first."""
        return tuple(r.request_id for r in self._waiting)

    @property
    def reserved_bytes(self) -> int:
        """KV cache of the running requests; never above the budget."""
        return sum(r.kv_bytes for r in self._running)

    def submit(self, request_id: str, kv_bytes: int) -> Admitted | Queued | Refused:
        """Takes a request that needs `kv_bytes` of KV cache, or says why not.

        Raises ValueError for an id that is running or waiting.
        """
        if kv_bytes < 0:
            raise ValueError(f"kv_bytes is {kv_bytes}; expected 0 or more")
        if any(r.request_id == request_id for r in (*self._running, *self._waiting)):
            raise ValueError(f"request {request_id!r} was already submitted")
        if kv_bytes > self._budget:
            message = (
                f"the request needs {kv_bytes} bytes of KV cache, the whole budget is {self._budget}; "
                "shorten the prompt, lower max_tokens or raise kv_memory"
            )
            return Refused(RefusalReason.NEVER_FITS, message)
        request = _Request(request_id, kv_bytes)
        if not self._waiting and self._fits(request):
            self._running.append(request)
            return Admitted()
        if len(self._waiting) >= self._max_waiting:
            message = (
                f"{len(self._running)} requests are running and {len(self._waiting)} of at most {self._max_waiting} "
                "are waiting; try again later"
            )
            return Refused(RefusalReason.QUEUE_FULL, message)
        self._waiting.append(request)
        return Queued(ahead=len(self._waiting) - 1)

    def next(self) -> str | None:
        """The request whose turn it is; it goes to the end of the line. None: nothing runs."""
        if not self._running:
            return None
        self._running.rotate(-1)
        return self._running[-1].request_id

    def remove(self, request_id: str) -> tuple[str, ...]:
        """Forgets a request, running or waiting; the requests admitted in its place, in order.

        Removing an unknown id does nothing: a request may end in several ways at once.
        """
        self._running = deque(r for r in self._running if r.request_id != request_id)
        self._waiting = deque(r for r in self._waiting if r.request_id != request_id)
        admitted = []
        while self._waiting and self._fits(self._waiting[0]):
            self._running.append(self._waiting.popleft())
            admitted.append(self._running[-1].request_id)
        return tuple(admitted)

    def _fits(self, request: _Request) -> bool:
        return len(self._running) < self._max_running and self.reserved_bytes + request.kv_bytes <= self._budget
