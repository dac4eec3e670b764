"""SP-MoE (arXiv 2510.10302) and MoE-SpeQ (arXiv 2511.14102): drafting foretells the verification's experts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...core import ExpertKey, RoutingWindow
from .interface import Decision, Layer, OffloadPolicy, Setting, Step, Wish
from .prediction import perturbed


class SpMoe(OffloadPolicy):
    """One pool, least recently used leaves; while drafting, predicted experts of the layers up to L_cut are prefetched.

    L_cut is the last layer whose experts, with those of the layers before, can be moved while drafting and fit in
    the slots. Misses are fetched.
    """

    speculates = True
    applies_gates = True

    forces_prefetch = True

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._random = np.random.default_rng(0)

    def begin(self, step: Step) -> Sequence[Wish] | None:
        setting, shape = self.setting, self.setting.shape
        predicted = perturbed(step.truth(), setting.gate_accuracy, self._random)
        budget = int((step.tokens - 1) * setting.draft_token_s / setting.transfer_s)
        room, wishes = setting.slots, []
        for row, layer in enumerate(shape.layer_ids):
            keys = [ExpertKey(layer, e) for e in np.flatnonzero(predicted[row]).tolist()]
            absent = [key for key in keys if not step.cached(key)]
            room -= len(keys)
            if room < 0 or len(wishes) + len(absent) > budget:
                break
            wishes += [(key, shape.n_layers - row) for key in absent]
        return wishes

    def layer(self, at: Layer) -> Decision:
        return Decision(fetch=at.misses)


class MoeSpeq(OffloadPolicy):
    """A self-draft's own routing: who is least wanted in the lookahead leaves, who is wanted most is moved first.

    The draft's routing is the truth with the gates' share of errors. A governor chooses
    γ = argmax accepted / (max(T_draft, T_io) + T_new + T_verify), with T_io the transfers that a window of that
    length is expected to need, T_new the one token the target adds, and T_verify the device's time.
    """

    speculates = True
    applies_gates = True

    GROWTH = 0.6
    """Distinct experts of n tokens are about those of one times n^0.6."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        shape = setting.shape
        self._random = np.random.default_rng(0)
        self._wanted = np.zeros((shape.n_layers, shape.n_experts))
        self._old = self._wanted
        self._missed = 0.0
        """Transfers a window of one token needs, smoothed."""
        self._misses = 0
        self._drafted = self._accepted = 1.0

    def gamma(self, request: str, remaining: int, match: int = 0) -> int:
        setting = self.setting
        rate = min(self._accepted / self._drafted, 0.99)
        lengths = np.arange(1, max(1, setting.gamma) + 1)
        tokens = (1 - rate ** (lengths + 1)) / (1 - rate)
        moving = self._missed * (lengths + 1) ** self.GROWTH * setting.transfer_s
        verify = setting.shape.n_layers * setting.trunk_layer_s
        new = setting.shape.top_k * setting.shape.n_layers * setting.device.read_s
        seconds = np.maximum(lengths * setting.draft_token_s, moving) + new + verify
        return int(lengths[np.argmax(tokens / seconds)]) if setting.gamma else 0

    def begin(self, step: Step) -> Sequence[Wish] | None:
        shape = self.setting.shape
        predicted = perturbed(step.truth(), self.setting.gate_accuracy, self._random)
        self._wanted = predicted + self._old / (1.0 + self._old.max())
        self._changed.update(self._rows.values())
        rows, experts = np.nonzero(predicted)
        return [
            (ExpertKey(shape.layer_ids[row], expert), int(predicted[row, expert]))
            for row, expert in zip(rows.tolist(), experts.tolist(), strict=True)
        ]

    def layer(self, at: Layer) -> Decision:
        self._wanted[at.row] = self._old[at.row] / (1.0 + self._old.max())
        self._changed.add(at.row)
        self._misses += len(at.misses)
        return Decision(fetch=at.misses)

    def worth(self, key: ExpertKey) -> float:
        return self._wanted[self._rows[key.layer], key.expert]

    def worths(self) -> np.ndarray | None:
        return self._wanted

    def end(self, window: RoutingWindow, accepted: int, seconds: float) -> None:
        self._old = 0.5 * self._old + window.counts
        one = self._misses / window.tokens**self.GROWTH
        self._missed += 0.1 * (one - self._missed) if self._missed else one
        self._misses = 0
        drafted = min(accepted + 1, window.tokens - 1)
        self._drafted = 0.98 * self._drafted + drafted
        self._accepted = 0.98 * self._accepted + accepted
