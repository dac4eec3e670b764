"""Plain caches: on-demand loading, and MixtralOffload (arXiv 2312.17238)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...core import ExpertKey
from .interface import Decision, Layer, OffloadPolicy, Setting
from .prediction import GatePredictor


def even_slots(slots: int, layers: int) -> list[int]:
    """`slots` shared out over `layers`; the first ones get what does not divide."""
    return [slots // layers + (row < slots % layers) for row in range(layers)]


class OnDemand(OffloadPolicy):
    """A cache a layer, least recently used leaves, no prefetch, misses are fetched."""

    def pools(self) -> Sequence[int] | None:
        return even_slots(self.setting.slots, self.setting.shape.n_layers)


class MixtralOffload(OnDemand):
    """On demand, and the next layer's gate on the current hidden state prefetches its top two."""

    applies_gates = True
    forces_prefetch = True
    GUESSES = 2

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._gate = GatePredictor(self.setting.shape.n_experts, self.setting.gate_accuracy)

    def layer(self, at: Layer) -> Decision:
        shape, ahead = self.setting.shape, at.row + 1
        if ahead == shape.n_layers:
            return Decision(fetch=at.misses, wishes=())
        predicted = self._gate.counts(at.routing(ahead))
        guesses = np.argsort(-predicted, kind="stable")[: self.GUESSES]
        wishes = [(ExpertKey(shape.layer_ids[ahead], int(e)), int(predicted[e])) for e in guesses]
        return Decision(fetch=at.misses, wishes=wishes)
