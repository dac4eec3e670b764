"""A promise that experts stay in the host arena for a while."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


class ExpertsUnavailable(RuntimeError):
    """Weights could not be brought into host memory. The message says which and why."""


@dataclass(frozen=True)
class Lease:
    """Until `release()` (or the time asked for runs out) the `granted` experts are not evicted."""

    id: int
    granted: tuple[int, ...]
    """Fewer than asked where they do not fit at once, never none."""
    waited_s: float
    """Seconds spent reading and waiting for room."""
    release: Callable[[], None]


Fetch = Callable[[int, list[int], float, float], Lease]
"""(layer, experts, hold_s, timeout_s) -> Lease. Waits at most `timeout_s`, which may be infinite, and its own limit.
Raises ExpertsUnavailable, or StoreError where the disk is read here."""
