"""MoE-SpAc (arXiv 2603.09983): as released, and as described with the parts that the release leaves out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from ...core import ExpertKey, RoutingWindow
from ..as_described import transition as described_transition
from ..as_released import transition as released_transition
from ..balancer import ThresholdProblem, plan_thresholds
from ..cache_order import worth, worths
from ..cost import Costs
from ..demand import DecayedDemand
from .interface import Decision, Layer, OffloadPolicy, Setting, Step, Wish


class _Utilities(OffloadPolicy, ABC):
    """Discrete utilities that move when a layer's counts are known; misses on the CPU, never fetched."""

    speculates = True

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        shape = setting.shape
        self._utilities = np.zeros((shape.n_layers, shape.n_experts), dtype=np.int64)
        self._thresholds = np.ones(shape.n_layers, dtype=np.int64)

    def layer(self, at: Layer) -> Decision:
        counts = np.zeros(self.setting.shape.n_experts, dtype=np.int64)
        counts[list(at.pairs)] = list(at.pairs.values())
        self._utilities[at.row] = self._transition(self._utilities[at.row], counts)
        self._changed.add(at.row)
        return Decision(cpu=at.misses, wishes=self._wishes(at.cached))

    def _wishes(self, cached) -> list[Wish]:
        layers = self.setting.shape.layer_ids
        rows, experts = np.nonzero(self._utilities >= self._thresholds[:, None])
        return [
            (key, int(self._utilities[row, expert]))
            for row, expert in zip(rows.tolist(), experts.tolist(), strict=True)
            if not cached(key := ExpertKey(layers[row], expert))
        ]

    @abstractmethod
    def _transition(self, utilities: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """A layer's utilities after its counts; int64 [n_experts] each."""


class MoeSpacReleased(_Utilities):
    """k = 1, boundaries 5 and −1, pageable transfers, CPU and device one after the other.

    The release's queue never forgets: wishes gone stale there are left out here, which is in its favour.
    """

    serial = True
    pageable = True

    def worth(self, key: ExpertKey) -> float:
        # A victim must score below k; among those that do, it is all one.
        return int(self._utilities[self._rows[key.layer], key.expert] >= 1)

    def worths(self) -> np.ndarray | None:
        return self._utilities >= 1

    def _transition(self, utilities: np.ndarray, counts: np.ndarray) -> np.ndarray:
        return released_transition(utilities, counts)


class MoeSpacDescribed(_Utilities):
    """Boundaries that follow the window, k a layer by the balancer, CPU and device beside each other."""

    PLAN_EVERY = 4
    """Steps."""
    SOLVER_TIME = 0.02
    """Deterministic time."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._demand = DecayedDemand(setting.shape)
        self._tokens = setting.gamma + 1
        self._step_s = 0.0
        self._steps = 0
        self._resident = np.zeros(self._utilities.shape, dtype=bool)

    def begin(self, step: Step) -> Sequence[Wish] | None:
        self._tokens = step.tokens
        if self._steps % self.PLAN_EVERY == 0 and self._steps:
            self._plan()
        return self._wishes(step.cached)

    def worth(self, key: ExpertKey) -> float:
        row = self._rows[key.layer]
        return worth(int(self._utilities[row, key.expert]), int(self._thresholds[row]))

    def worths(self) -> np.ndarray | None:
        return worths(self._utilities, self._thresholds)

    def moved(self, key: ExpertKey, evicted: ExpertKey | None) -> None:
        self._resident[self._rows[key.layer], key.expert] = True
        if evicted is not None:
            self._resident[self._rows[evicted.layer], evicted.expert] = False

    def end(self, window: RoutingWindow, accepted: int, seconds: float) -> None:
        self._demand.observe(window)
        self._step_s = seconds
        self._steps += 1

    def _transition(self, utilities: np.ndarray, counts: np.ndarray) -> np.ndarray:
        return described_transition(utilities, counts, self._tokens)

    def _plan(self) -> None:
        setting = self.setting
        window_s = self._step_s / setting.shape.n_layers
        problem = ThresholdProblem(
            utilities=self._utilities,
            expected_counts=self._demand.expected_counts(self._tokens),
            resident=self._resident,
            slots=setting.slots,
            link_experts=max(1, int(self.PLAN_EVERY * self._step_s / setting.transfer_s)),
            costs=Costs(setting.device.read_s, 0.0, setting.cpu.read_s, 0.0, setting.transfer_s, window_s),
        )
        self._thresholds = plan_thresholds(problem, self.SOLVER_TIME, deterministic=True).thresholds
        self._changed.update(self._rows.values())
