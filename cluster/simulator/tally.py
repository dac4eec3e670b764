"""What a simulated run adds up to."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass
class Tally:
    """Sums over steps. Times in simulated seconds; uses are (window, layer, expert) triples."""

    tokens: int = 0
    steps: int = 0
    drafted: int = 0
    accepted: int = 0
    seconds: float = 0.0
    draft_s: float = 0.0
    trunk_s: float = 0.0
    device_s: float = 0.0
    """Experts computed on the device while nothing else was waited for."""
    cpu_wait_s: float = 0.0
    link_wait_s: float = 0.0
    remote_s: float = 0.0
    """Round trips between processes that nothing hid."""
    uses: int = 0
    hits: int = 0
    late: int = 0
    """Uses that met their expert on its way."""
    fetched: int = 0
    on_cpu: int = 0
    transfers: int = 0
    transfer_bytes: int = 0
    useful: int = 0
    """Transfers whose expert was used on the device before it was evicted."""
    wasted: int = 0
    """Transfers whose expert was evicted unused."""
    link_s: float = 0.0
    """Time the link was busy."""
    disk_reads: int = 0
    planning_s: float = 0.0
    """Measured, not simulated: what the policy itself took, in this process."""

    def add(self, other: Tally) -> None:
        for item in fields(self):
            setattr(self, item.name, getattr(self, item.name) + getattr(other, item.name))

    def summary(self) -> dict[str, float]:
        """Rates and shares, by name; all finite."""
        seconds, uses, steps = max(self.seconds, 1e-12), max(self.uses, 1), max(self.steps, 1)
        return {
            "tokens_per_s": self.tokens / seconds,
            "tokens": self.tokens,
            "steps": self.steps,
            "tokens_per_step": self.tokens / steps,
            "drafted_per_step": self.drafted / steps,
            "step_ms": 1e3 * self.seconds / steps,
            "draft_ms": 1e3 * self.draft_s / steps,
            "trunk_ms": 1e3 * self.trunk_s / steps,
            "device_ms": 1e3 * self.device_s / steps,
            "cpu_wait_ms": 1e3 * self.cpu_wait_s / steps,
            "link_wait_ms": 1e3 * self.link_wait_s / steps,
            "remote_ms": 1e3 * self.remote_s / steps,
            "hit_rate": self.hits / uses,
            "late_rate": self.late / uses,
            "fetch_rate": self.fetched / uses,
            "cpu_rate": self.on_cpu / uses,
            "gbytes_moved": self.transfer_bytes / 1e9,
            "useful_share": self.useful / max(self.transfers, 1),
            "wasted_share": self.wasted / max(self.transfers, 1),
            "hidden_transfer_share": max(0.0, 1.0 - self.link_wait_s / self.link_s) if self.link_s else 0.0,
            "disk_reads": self.disk_reads,
        }
