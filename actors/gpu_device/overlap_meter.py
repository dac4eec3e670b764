"""When this device computed and when its link moved experts: what a step reports of the two."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass

from ..policy.overlap import Interval, busy_seconds, overlap_seconds
from .link import Transfer, TransferLog

REMEMBERED = 256
"""Latest stretches of computing kept: a transfer is reported when it ends and may have begun some steps before."""


@dataclass(frozen=True)
class LinkReport:
    """The link since the last report, or since the first request was opened."""

    transfers: tuple[Transfer, ...]
    busy_s: float
    hidden_s: float
    """Of `busy_s`: while the device was computing."""

    @property
    def completed(self) -> list[Transfer]:
        return [transfer for transfer in self.transfers if not transfer.cancelled]

    @property
    def bytes(self) -> int:
        return sum(transfer.bytes for transfer in self.transfers)


class OverlapMeter:
    """Relates transfers to computation; thread-safe."""

    def __init__(self, log: TransferLog):
        self._log = log
        self._lock = threading.Lock()
        self._computing: deque[Interval] = deque(maxlen=REMEMBERED)

    def computed(self, start_ns: int, end_ns: int) -> None:
        """A stretch in which the device computed; nanoseconds of the wall clock."""
        with self._lock:
            # A wall clock may be set back; such a stretch counts as no time.
            self._computing.append((start_ns, max(start_ns, end_ns)))

    def forget(self) -> None:
        """Transfers that have ended by now go into no report."""
        self._log.take()

    def report(self) -> LinkReport:
        """What the link did since the last report or `forget`."""
        transfers = tuple(self._log.take())
        moving = [(t.start_ns, max(t.start_ns, t.end_ns)) for t in transfers]
        with self._lock:
            computing = list(self._computing)
        return LinkReport(transfers, busy_seconds(moving), overlap_seconds(moving, computing))
