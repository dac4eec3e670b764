"""MoE-Infinity (arXiv 2401.14361): earlier requests' activation matrices foretell what comes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...core import ExpertKey, RoutingWindow
from .interface import Decision, Layer, OffloadPolicy, Setting, Step, Wish

STORED = 100
"""Activation matrices kept, the newest."""
MOST_WISHES = 32
"""Prefetches queued at a time; a layer lasts for a few transfers only, and the next layer asks anew."""


class MoeInfinity(OffloadPolicy):
    """Prefetch for all layers ahead by the nearest stored matrix; evict the least frequency × nearness; misses fetched.

    An expert of layer i counts its frequency · (1 − (i − l)/(L + 1)) while layer l runs, with i − l taken modulo L in
    1..L: a layer that has passed comes again after the others.
    """

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        shape = setting.shape
        self._seen = np.zeros((shape.n_layers, shape.n_experts))
        self._stored: list[np.ndarray] = []
        self._request: str | None = None
        self._predicted = self._value = self._seen

    def begin(self, step: Step) -> Sequence[Wish] | None:
        if step.request != self._request:
            if self._seen.any():
                self._stored = [*self._stored[1 - STORED :], _normalised(self._seen)]
            self._request, self._seen = step.request, np.zeros_like(self._seen)
        self._predicted = self._nearest()
        return self._wishes(-1)

    def layer(self, at: Layer) -> Decision:
        return Decision(fetch=at.misses, wishes=self._wishes(at.row))

    def worth(self, key: ExpertKey) -> float:
        return self._value[self._rows[key.layer], key.expert]

    def worths(self) -> np.ndarray | None:
        return self._value

    def end(self, window: RoutingWindow, accepted: int, seconds: float) -> None:
        self._seen = self._seen + window.counts

    def _nearest(self) -> np.ndarray:
        if not self._stored:
            return _normalised(self._seen)
        if not self._seen.any():
            return np.mean(self._stored, axis=0)
        now = _normalised(self._seen)
        return max(self._stored, key=lambda matrix: float((now * matrix).sum(axis=1).mean()))

    def _wishes(self, row: int) -> list[Wish]:
        shape = self.setting.shape
        distance = (np.arange(shape.n_layers) - row - 1) % shape.n_layers + 1
        self._value = self._predicted * (1 - distance / (shape.n_layers + 1))[:, None]
        self._changed.update(self._rows.values())
        ahead = self._value.copy()
        ahead[: row + 1] = 0
        flat = ahead.ravel()
        best = np.argpartition(-flat, min(MOST_WISHES, flat.size - 1))[:MOST_WISHES]
        where = (divmod(at, shape.n_experts) for at in best[flat[best] > 0].tolist())
        return [(ExpertKey(shape.layer_ids[row], e), int(1e6 * ahead[row, e])) for row, e in where]


def _normalised(matrix: np.ndarray) -> np.ndarray:
    """Rows of length 1, so that a product of two matrices sums to their rows' cosines; empty rows stay 0."""
    return matrix / np.maximum(np.linalg.norm(matrix, axis=1, keepdims=True), 1e-12)
