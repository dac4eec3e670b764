"""HybriMoE (arXiv 2504.05897) and DALI (arXiv 2602.03495): experts shared between device and CPU layer by layer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...core import ExpertKey, RoutingWindow
from .interface import Decision, Layer, OffloadPolicy, Setting, Step, Wish
from .on_demand import even_slots
from .prediction import GatePredictor
from .two_ended import by_difference, shares, two_ended


class _PerLayerScores(OffloadPolicy):
    """A cache a layer whose least scored expert leaves."""

    applies_gates = True

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        shape = setting.shape
        self._gate = GatePredictor(shape.n_experts, setting.gate_accuracy)
        self._score = np.zeros((shape.n_layers, shape.n_experts))

    def pools(self) -> Sequence[int] | None:
        return even_slots(self.setting.slots, self.setting.shape.n_layers)

    def worth(self, key: ExpertKey) -> float:
        return self._score[self._rows[key.layer], key.expert]

    def worths(self) -> np.ndarray | None:
        return self._score


class HybriMoe(_PerLayerScores):
    """Scores S ← α·TopP(router) + (1 − α)·S; the gain of a prefetch is simulated for the next three layers.

    The router's scores are taken as the share of the window's tokens that chose an expert.
    """

    forces_prefetch = True
    ALPHA, TOP, AHEAD = 0.5, 12, 3

    def layer(self, at: Layer) -> Decision:
        score = np.zeros(self.setting.shape.n_experts)
        top = sorted(at.pairs, key=lambda e: (-at.pairs[e], e))[: self.TOP]
        score[top] = [at.pairs[e] for e in top]
        self._score[at.row] = self.ALPHA * score / score.sum() + (1 - self.ALPHA) * self._score[at.row]
        self._changed.add(at.row)
        fetch, cpu, moved = shares(two_ended(self.setting, at.pairs, at.residents, at.link_free_s), at.residents)
        return Decision(fetch, cpu, self._gains(at), moved)

    def _gains(self, at: Layer) -> list[Wish]:
        shape, wishes = self.setting.shape, []
        for ahead in range(1, min(self.AHEAD, shape.n_layers - 1 - at.row) + 1):
            layer = shape.layer_ids[at.row + ahead]
            predicted = self._gate.counts(at.routing(at.row + ahead), ahead)
            pairs = {int(e): int(predicted[e]) for e in np.flatnonzero(predicted)}
            held = {e for e in pairs if at.cached(ExpertKey(layer, e))}
            now = two_ended(self.setting, pairs, held, 0.0).makespan_s
            for expert in pairs.keys() - held:
                gain = now - two_ended(self.setting, pairs, held | {expert}, 0.0).makespan_s
                if gain > 0:
                    wishes.append((ExpertKey(layer, expert), int(gain * 1e9)))
        return wishes


class Dali(_PerLayerScores):
    """Every few tokens each layer swaps its heaviest CPU expert against its lightest resident; prefetch by workload.

    Workload is the pairs of the last period, and the pairs predicted for the next layer.
    """

    PERIOD_TOKENS = 8
    SWAPS = 1

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._recent = np.zeros_like(self._score)
        self._tokens = 0
        self._due = False

    def begin(self, step: Step) -> Sequence[Wish] | None:
        if not self._due:
            return None
        self._due = False
        shape, wishes = self.setting.shape, []
        heaviest = np.argsort(-self._score, axis=1, kind="stable")
        for row, layer in enumerate(shape.layer_ids):
            absent = [e for e in heaviest[row].tolist() if not step.cached(ExpertKey(layer, e))][: self.SWAPS]
            wishes += [(ExpertKey(layer, e), int(self._score[row, e])) for e in absent if self._score[row, e] > 0]
        return wishes

    def layer(self, at: Layer) -> Decision:
        shape, ahead = self.setting.shape, at.row + 1
        fetch, cpu, moved = shares(by_difference(self.setting, at.pairs, at.residents, at.link_free_s), at.residents)
        if ahead == shape.n_layers:
            return Decision(fetch, cpu, None, moved)
        predicted = self._gate.counts(at.routing(ahead))
        self._score[ahead] = self._recent[ahead] + predicted
        self._changed.add(ahead)
        wishes = [(ExpertKey(shape.layer_ids[ahead], int(e)), int(predicted[e])) for e in np.flatnonzero(predicted)]
        return Decision(fetch, cpu, wishes, moved)

    def end(self, window: RoutingWindow, accepted: int, seconds: float) -> None:
        self._recent += window.counts
        self._tokens += window.tokens
        if self._tokens >= self.PERIOD_TOKENS:
            self._score = self._recent
            self._recent, self._tokens = np.zeros_like(self._recent), 0
            self._due = True
            self._changed.update(self._rows.values())
