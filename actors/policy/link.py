"""The clock of an emulated link: when a transfer would be done, if the link had this bandwidth and latency."""

from __future__ import annotations


class SerialLink:
    """One transfer at a time, in the order asked for. Tells times; the caller waits.

    `bandwidth` in bytes per second; `latency_s` is paid by every transfer but does not occupy the link: the
    next one already flows meanwhile, as with queued copies on a bus.
    """

    def __init__(self, bandwidth: float, latency_s: float = 0.0) -> None:
        if not bandwidth > 0:
            raise ValueError(f"bandwidth is {bandwidth} bytes/s; expected more than 0")
        if not latency_s >= 0:
            raise ValueError(f"latency_s is {latency_s}; expected 0 or more")
        self._bandwidth = bandwidth
        self._latency_s = latency_s
        self._free_at = float("-inf")
        self.busy_s = 0.0
        """Seconds of transmission handed out so far."""

    def finish_time(self, now: float, size: int) -> float:
        """Takes the link for `size` bytes; when they will have arrived.

        `now`, when they are asked for, and the result are seconds of any one clock.
        """
        if size < 0:
            raise ValueError(f"size is {size} bytes; expected 0 or more")
        duration = size / self._bandwidth
        self._free_at = max(now, self._free_at) + duration
        self.busy_s += duration
        return self._free_at + self._latency_s
