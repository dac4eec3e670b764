"""Fate (arXiv 2502.12224): the next gate on the current gate's input; early layers kept whole; ARC for the others."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from ...core import ExpertKey, RoutingWindow
from .interface import Decision, Layer, OffloadPolicy, Setting
from .on_demand import even_slots
from .prediction import GatePredictor

WHOLE_LAYERS = 4
PERCENTILE = 75


class Arc:
    """Adaptive replacement (Megiddo and Modha 2003) of one layer: used once, used again, and ghosts of both."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self.once: OrderedDict[int, None] = OrderedDict()
        self.again: OrderedDict[int, None] = OrderedDict()
        self._once_ghosts: OrderedDict[int, None] = OrderedDict()
        self._again_ghosts: OrderedDict[int, None] = OrderedDict()
        self.target = 0.0
        """Slots that `once` may take."""

    def hit(self, expert: int) -> None:
        """A resident is used."""
        self.once.pop(expert, None)
        self.again[expert] = None
        self.again.move_to_end(expert)

    def move(self, expert: int, evicted: int | None) -> None:
        """`expert` takes a slot, from which `evicted` was removed."""
        if evicted is not None:
            ghosts = self._once_ghosts if evicted in self.once else self._again_ghosts
            self.once.pop(evicted, None)
            self.again.pop(evicted, None)
            ghosts[evicted] = None
            while len(ghosts) > self._slots:
                ghosts.popitem(last=False)
        once_ghosts, again_ghosts = len(self._once_ghosts), len(self._again_ghosts)
        if expert in self._once_ghosts:
            del self._once_ghosts[expert]
            self.target = min(self._slots, self.target + max(1.0, again_ghosts / once_ghosts))
            self.again[expert] = None
        elif expert in self._again_ghosts:
            del self._again_ghosts[expert]
            self.target = max(0.0, self.target - max(1.0, once_ghosts / again_ghosts))
            self.again[expert] = None
        else:
            self.once[expert] = None

    def leaves_first(self, expert: int) -> bool:
        """Whether the next victim is taken from the list that `expert` is in; the other list's stay."""
        takes_once = bool(self.once) and (len(self.once) > self.target or not self.again)
        return (expert in self.once) == takes_once


class Fate(OffloadPolicy):
    """Slots for the first four layers whole, or as many as half of the slots hold; the rest evenly."""

    applies_gates = True
    forces_prefetch = True

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        shape = setting.shape
        self._gate = GatePredictor(shape.n_experts, setting.gate_accuracy)
        whole = min(WHOLE_LAYERS, shape.n_layers, setting.slots // (2 * shape.n_experts))
        rest = even_slots(setting.slots - whole * shape.n_experts, shape.n_layers - whole)
        self._slots = [shape.n_experts] * whole + rest
        self._whole = whole
        self._arcs = [Arc(slots) for slots in self._slots]
        self._layer_s = setting.trunk_layer_s

    def pools(self) -> Sequence[int] | None:
        return self._slots

    def initial(self) -> Sequence[ExpertKey]:
        shape = self.setting.shape
        return [ExpertKey(layer, e) for layer in shape.layer_ids[: self._whole] for e in range(shape.n_experts)]

    def layer(self, at: Layer) -> Decision:
        shape, ahead = self.setting.shape, at.row + 1
        for expert in at.residents:
            self._arcs[at.row].hit(expert)
        self._changed.add(at.row)
        if ahead == shape.n_layers:
            return Decision(fetch=at.misses, wishes=())
        predicted = self._gate.counts(at.routing(ahead))
        above = np.partition(predicted, shape.n_experts * PERCENTILE // 100)[shape.n_experts * PERCENTILE // 100]
        likely = np.flatnonzero(predicted > above)
        likely = likely[np.argsort(-predicted[likely], kind="stable")]
        absent = [key for e in likely.tolist() if not at.cached(key := ExpertKey(shape.layer_ids[ahead], e))]
        fitting = absent[: int(self._layer_s / self.setting.transfer_s)]
        return Decision(fetch=at.misses, wishes=[(key, int(predicted[key.expert])) for key in fitting])

    def worth(self, key: ExpertKey) -> float:
        return 0 if self._arcs[self._rows[key.layer]].leaves_first(key.expert) else 1

    def moved(self, key: ExpertKey, evicted: ExpertKey | None) -> None:
        self._arcs[self._rows[key.layer]].move(key.expert, None if evicted is None else evicted.expert)
        self._changed.add(self._rows[key.layer])

    def end(self, window: RoutingWindow, accepted: int, seconds: float) -> None:
        self._layer_s = seconds / self.setting.shape.n_layers
