"""moespac's own policy, and the same with the coming window's routing known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from ...core import CostSample, ExpertKey, RoutingWindow
from ..cost import LINK, CostModel, WorkerCost
from ..estimator import make_estimator
from ..governor import Decision as Drafts
from ..governor import Governor
from ..reactive import split_misses
from ..step_model import RequestDrafts, StepSeen
from .interface import CPU, DEVICE, Decision, Layer, OffloadPolicy, Setting, Step, Wish

LATER = 2.0
"""Windows after the coming one that a resident is expected to serve."""
REFRESH = 4
"""Layers between new orders of prefetches within a pass."""
LEAST_GAIN = 0.1
"""Uses that a transfer must promise beyond what it costs: an estimate errs."""

LEARN_FIRST, LEARN_EVERY = 32, 8
"""Measurements of an actor that the cost model learns from: the first ones, then every eighth, as in the engine."""


class Moespac(OffloadPolicy):
    """Expected uses decide on slots and prefetches, every miss goes where it is done earlier, the engine's governor
    chooses γ.

    An expert's value is the probability of its use in the coming window, if its layer is still to come and a
    transfer started now can be there in time, and LATER times that of a window in general. A prefetch must be worth
    more than whom it evicts by what the CPU loses to it: both read the same memory.
    """

    speculates = True
    learns = True
    separate_workers = True
    forces_fetch = False

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        shape = setting.shape
        self._estimator = make_estimator("best", shape)
        if setting.learned:
            self._estimator.restore(setting.learned)
        self._costs = CostModel(shape.expert_bytes, DEVICE)
        self._calls: Counter[str] = Counter()
        self._governor = Governor([setting.draft_kind] if setting.gamma else [])
        self._request, self._drafts = "", RequestDrafts()
        self._drafting: Drafts | None = None
        self._hits = self._misses = 0
        self._soon = np.full((shape.n_layers, shape.n_experts), shape.top_k / shape.n_experts)
        self._general = self._value = self._soon
        self._held = np.zeros(self._soon.shape, dtype=bool)
        self._layer_s = setting.trunk_layer_s + setting.cpu_call_s
        self._draft_s = 0.0
        self._cost = setting.contention * setting.transfer_s / setting.cpu.read_s

    def gamma(self, request: str, remaining: int) -> int:
        if request != self._request:
            self._request, self._drafts = request, RequestDrafts()
        self._drafting = self._governor.decide(self._drafts, remaining)
        return sum(choice.gamma for choice in self._drafting.choices)

    def begin(self, step: Step) -> Sequence[Wish] | None:
        self._draft_s = (step.tokens - 1) * self.setting.draft_token_s
        self._general = self._used(step, None)
        self._soon = self._coming(step)
        return self._order(0, self._draft_s)

    def drafted(self, step: Step) -> Sequence[Wish] | None:
        self._soon = self._coming(step)
        return self._order(0, 0.0)

    def layer(self, at: Layer) -> Decision:
        fetch = self._fetched(at)
        self._hits += len(at.residents)
        self._misses += len(at.misses)
        self._value[at.row] = LATER * self._general[at.row]
        self._changed.add(at.row)
        refresh = at.row % REFRESH == REFRESH - 1
        cpu = [e for e in at.misses if e not in fetch]
        return Decision(fetch, cpu, self._order(at.row + 1, 0.0) if refresh else None)

    def worth(self, key: ExpertKey) -> float:
        return self._value[self._rows[key.layer], key.expert]

    def worths(self) -> np.ndarray | None:
        return self._value

    def moved(self, key: ExpertKey, evicted: ExpertKey | None) -> None:
        self._held[self._rows[key.layer], key.expert] = True
        if evicted is not None:
            self._held[self._rows[evicted.layer], evicted.expert] = False

    def end(self, window: RoutingWindow, accepted: int, seconds: float) -> None:
        self._estimator.observe(window)
        if self._drafting is not None:
            self._governor.observe(self._drafts, self._drafting, self._seen(window.tokens - 1, accepted, seconds))
        self._hits = self._misses = 0
        layer_s = (seconds - self._draft_s) / self.setting.shape.n_layers
        self._layer_s += 0.2 * (layer_s - self._layer_s)

    def _seen(self, proposed: int, accepted: int, seconds: float) -> StepSeen:
        asked = sum(choice.gamma for choice in self._drafting.choices)
        return StepSeen(
            kind=self.setting.draft_kind if proposed else "",
            asked=asked,
            proposed=proposed,
            accepted=accepted,
            hits=self._hits,
            misses=self._misses,
            draft_s=self._draft_s,
            verify_s=seconds - self._draft_s,
            turn_s=seconds,
            ngrams_found_nothing=asked > 0 and not proposed,
        )

    def _fetched(self, at: Layer) -> list[int]:
        """The misses to wait for: those under way, and of the others as many as the reactive split gives the link.

        Experts of a small window cost much the same, so the link takes those that are wanted most in general.
        """
        waited, others = list(at.arriving), [e for e in at.misses if e not in at.arriving]
        link = WorkerCost(LINK, at.link_free_s, self.setting.transfer_s, 0.0)
        split = split_misses({e: at.pairs[e] for e in others}, [*self._costs.worker_costs([CPU]), link])
        others.sort(key=lambda e: (-self._general[at.row, e], e))
        return waited + others[: len(split[1])]

    def measured(self, sample: CostSample) -> None:
        calls = self._calls[sample.actor]
        self._calls[sample.actor] += 1
        if calls < LEARN_FIRST or calls % LEARN_EVERY == 0:
            self._costs.observe(sample)

    def _coming(self, step: Step) -> np.ndarray:
        """Probability of each expert to be used in the coming window; float [n_layers, n_experts]."""
        if not step.token_ids:
            return self._general
        return self._used(step, step.token_ids)

    def _used(self, step: Step, draft: tuple[int, ...] | None) -> np.ndarray:
        """Probability of at least one pair, each of the tokens taken to choose an expert independently."""
        counts = self._estimator.expected_counts(step.tokens, draft, step.request)
        return 1.0 - (1.0 - np.minimum(counts / step.tokens, 1.0)) ** step.tokens

    def _order(self, row: int, idle_s: float) -> list[Wish]:
        """Prefetches in the order they are due. `row` runs next, in `idle_s` seconds, in which no CPU works."""
        setting, n_experts = self.setting, self.setting.shape.n_experts
        ahead = np.arange(setting.shape.n_layers) >= row
        self._value = LATER * self._general + np.where(ahead[:, None], self._soon, 0.0)
        self._changed.update(self._rows.values())
        until = idle_s + (np.arange(setting.shape.n_layers) - row) * self._layer_s
        room = np.where(ahead, until / setting.transfer_s, np.inf).astype(np.float64)
        most = int((idle_s + (setting.shape.n_layers - row) * self._layer_s) / setting.transfer_s) + REFRESH
        absent = np.where(self._held, -1.0, self._value).ravel()
        best = np.argpartition(-absent, min(2 * most, absent.size - 1))[: 2 * most]
        residents = np.sort(self._value[self._held])
        victims = np.concatenate([np.zeros(setting.slots - len(residents)), residents])
        free_of_cost = int(idle_s / setting.transfer_s)
        wishes: list[Wish] = []
        for flat in best[np.argsort(-absent[best], kind="stable")].tolist():
            taken = len(wishes)
            if taken >= min(most, len(victims)):
                break
            layer, expert = divmod(flat, n_experts)
            in_time = layer >= row and room[layer:].min() >= 1.0
            value = absent[flat] if in_time or layer < row else LATER * self._general[layer, expert]
            if value <= victims[taken] + LEAST_GAIN + (self._cost if taken >= free_of_cost else 0.0):
                continue
            if in_time:
                room[layer:] -= 1.0
            wishes.append((ExpertKey(setting.shape.layer_ids[layer], expert), (len(ahead) - layer) * in_time))
        return wishes


class Clairvoyant(Moespac):
    """The same engine with the coming window's routing known."""

    def _coming(self, step: Step) -> np.ndarray:
        return (step.truth() > 0).astype(np.float64)
