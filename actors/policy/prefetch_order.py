"""What a place in a slot is worth to every expert, deadlines counted in; and what a transfer must gain.

All in *uses*: what computing one expert elsewhere costs more than in a slot. The experts of a window are taken to be
used with the probabilities `coming`, those of windows after it with the probabilities `lasting`:

    value = coming · [held, or its layer can still be reached in time] + LATER · lasting

An expert is exchanged for another by a transfer where it is worth more by LEAST_GAIN and by TRANSFER_COST for the
share of time in which workers compute, as transfers read the memory that they read; an expert whose bytes are at hand
already, where it is worth more. In time are those that the link can move before their layers start, the most valuable
first: with d(l) transfers done until layer l starts, at most d(l) experts of layers up to l (a schedule by earliest
deadline exists iff that holds).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LATER = 2.0
"""Windows after the coming one that a resident is expected to serve; 1 to 8 differ by less than 2 % in speed."""
LEAST_GAIN = 0.1
"""Uses that an exchange must promise beyond what it costs: an estimate errs."""
TRANSFER_COST = 0.5
"""Uses lost to workers by a transfer: their memory serves both, and gives either about half of what it could alone."""
UNIT = 1000
"""Steps of an integer utility to a use."""
MOST = int(UNIT * (1.0 + LATER))
"""The highest integer utility."""


@dataclass(frozen=True)
class Outlook:
    """What is expected of the coming window and the machine. Arrays are [n_layers, n_experts]."""

    coming: np.ndarray
    """P(used in the coming window); float."""
    lasting: np.ndarray
    """P(used) in a window after it; float."""
    held: np.ndarray
    """bool: in a slot, or on the way into one."""
    idle_s: float
    """Until the first layer starts: the link is free and no worker computes, as while drafting."""
    layer_s: float
    """Of one layer."""
    transfer_s: float
    """One expert over the link; above 0."""

    def until(self) -> np.ndarray:
        """Transfers that may be over when each layer starts; float [n_layers]."""
        return (self.idle_s + np.arange(len(self.coming)) * self.layer_s) / self.transfer_s


def value(outlook: Outlook) -> np.ndarray:
    """Uses that a place in a slot is expected to serve; float [n_layers, n_experts]."""
    lasting = LATER * outlook.lasting
    both = lasting + outlook.coming
    return np.where(outlook.held | _in_time(outlook, both), both, lasting)


def as_utilities(values: np.ndarray) -> np.ndarray:
    """int64 in 0..MOST."""
    return np.clip(np.rint(UNIT * values), 0, MOST).astype(np.int64)


def transfer_cost(outlook: Outlook) -> int:
    """Integer utility that an exchange by a transfer must gain."""
    busy_s = len(outlook.coming) * outlook.layer_s
    busy = busy_s / (outlook.idle_s + busy_s) if busy_s > 0.0 else 0.0
    return round(UNIT * (LEAST_GAIN + TRANSFER_COST * busy))


def net(utilities: np.ndarray, held: np.ndarray, cost: int) -> np.ndarray:
    """`utilities` less what a transfer must gain, where one is needed; 0 at least."""
    return np.where(held, utilities, np.maximum(utilities - cost, 0))


def price(utilities: np.ndarray, slots: int) -> int:
    """Utility of the last expert that would have a slot if all could be moved for nothing."""
    ranked = -np.sort(-utilities, axis=None)
    return int(ranked[min(slots, ranked.size) - 1]) if slots else MOST


def exchanges(utilities: np.ndarray, held: np.ndarray, slots: int, cost: int) -> int:
    """Transfers that gain more than `cost`: the best not held, each for the worst still held, or for a free slot."""
    coming = -np.sort(-utilities[~held])[:slots]
    free = max(0, slots - int(held.sum()))
    leaving = np.concatenate([np.full(free, -cost - 1), np.sort(utilities[held])])[: len(coming)]
    return int((coming[: len(leaving)] - leaving > cost).sum())


def _in_time(outlook: Outlook, values: np.ndarray) -> np.ndarray:
    """Absent experts that a transfer started now can bring before their layers start; bool [n_layers, n_experts].

    Those of greatest sum: unit jobs with deadlines, layer by layer, of which the best that fit are kept.
    """
    n_experts = values.shape[1]
    candidates = np.where(outlook.held, 0.0, values)
    kept_values, kept = np.zeros(0), np.zeros(0, dtype=np.int64)
    for layer, room in enumerate((outlook.until() + 1e-9).astype(np.int64).tolist()):
        if room < 1:
            continue
        kept_values = np.concatenate([kept_values, candidates[layer]])
        kept = np.concatenate([kept, np.arange(layer * n_experts, (layer + 1) * n_experts)])
        best = np.argsort(-kept_values, kind="stable")[:room]
        best = best[kept_values[best] > 0.0]
        kept_values, kept = kept_values[best], kept[best]
    chosen = np.zeros(values.size, dtype=bool)
    chosen[kept] = True
    return chosen.reshape(values.shape)
