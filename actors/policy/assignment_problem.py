"""Which device holds and executes which expert: what has to be decided, and what a decision costs.

Every expert e of every layer l has one executing device d, which holds it in one of its slots. Layers run one
after the other, the devices of a layer at the same time. With S = {e : executed on d} in layer l and R_d what d
holds already

    T_ld = (call_d + delay_d)·[some e in S has f_e > 0] + Σ_{e∈S} (expert_d·u_e + pair_d·f_e)
           + max(0, |S∖R_d|·transfer_d − window_d)

with f_e the expected pairs of e and u_e = 1 − exp(−f_e), as in the threshold form (`balancer`). Wanted is

    minimise Σ_l max_d T_ld    subject to    Σ_l |S_ld| <= slots_d,    Σ_l |S_ld∖R_d| <= link_experts_d

for every d: memory and link are pools that all layers share.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Executor:
    """A device that can execute experts: an accelerator, a CPU worker, here or on another machine. Seconds."""

    name: str
    slots: int
    """Experts it can hold, all layers together."""
    link_experts: int
    """Transfers into its slots that this plan may cause."""
    transfer_s: float
    """One expert into a slot."""
    window_s: float
    """Transfer time a layer that other work hides."""
    call_s: float
    """A layer in which it computes anything."""
    delay_s: float
    """There and back over the network, added to every call."""
    expert_s: float
    """One expert used, whatever its pairs."""
    pair_s: float
    """One (token, expert) pair."""

    def __post_init__(self) -> None:
        for field, value in vars(self).items():
            if field != "name" and not (np.isfinite(value) and value >= 0):
                raise ValueError(f"executor {self.name!r}: {field} is {value}; expected a finite number, 0 or more")


@dataclass(frozen=True)
class AssignmentProblem:
    """What is known when an assignment is made."""

    expected_counts: np.ndarray
    """f: expected (token, slot) pairs of the coming window; float [n_layers, n_experts], 0 or more."""
    resident: np.ndarray
    """R: bool [n_devices, n_layers, n_experts], held now or on the way; an expert may be held by several."""
    executors: tuple[Executor, ...]

    def __post_init__(self) -> None:
        counts = self.expected_counts
        if counts.ndim != 2 or counts.size == 0 or not np.isfinite(counts).all() or (counts < 0).any():
            raise ValueError("expected_counts must be [layers, experts], finite and not negative")
        if not self.executors or self.resident.shape != (len(self.executors), *counts.shape):
            raise ValueError(
                f"resident has shape {self.resident.shape}; expected one [layers, experts] like expected_counts for "
                f"each of {len(self.executors)} executors"
            )
        room = sum(self.reachable())
        if room < counts.size:
            raise ValueError(
                f"slots and links of all executors hold {room} experts; the model has {counts.size}: "
                "give one executor slots for all of them"
            )

    def reachable(self) -> list[int]:
        """Experts each executor can hold after this plan, at most."""
        held = self.resident.sum(axis=(1, 2))
        return [min(e.slots, int(h) + e.link_experts) for e, h in zip(self.executors, held, strict=True)]

    def column(self, field: str) -> np.ndarray:
        """One constant of every executor, float [n_devices]."""
        return np.array([getattr(executor, field) for executor in self.executors], dtype=np.float64)

    def work(self) -> np.ndarray:
        """Seconds of each expert on each device, calls and transfers aside; float [n_devices, n_layers, n_experts]."""
        used = -np.expm1(-self.expected_counts)
        expert, pair = self.column("expert_s")[:, None, None], self.column("pair_s")[:, None, None]
        return expert * used + pair * self.expected_counts

    def layer_seconds(self, device: np.ndarray) -> np.ndarray:
        """T: float [n_devices, n_layers], for `device`, the executing device of each expert; int [layers, experts]."""
        here = device[None] == np.arange(len(self.executors))[:, None, None]
        called = (here & (self.expected_counts > 0)).any(axis=2)
        moves = (here & ~self.resident).sum(axis=2)
        seconds = (self.work() * here).sum(axis=2)
        seconds += called * (self.column("call_s") + self.column("delay_s"))[:, None]
        exposed = moves * self.column("transfer_s")[:, None] - self.column("window_s")[:, None]
        return seconds + np.maximum(exposed, 0.0)

    def objective(self, device: np.ndarray) -> float:
        """Σ_l max_d T_ld in seconds."""
        return float(self.layer_seconds(device).max(axis=0).sum())

    def within_budgets(self, device: np.ndarray) -> bool:
        """Whether every executor's slots and link allow `device`."""
        here = device[None] == np.arange(len(self.executors))[:, None, None]
        slots, moves = here.sum(axis=(1, 2)), (here & ~self.resident).sum(axis=(1, 2))
        return bool((slots <= self.column("slots")).all() and (moves <= self.column("link_experts")).all())
