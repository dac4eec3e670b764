"""moespac's own policy, and the same with the coming window's routing known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...core import CostSample, DraftChoice, ExpertKey, ModelShape, Plan, RoutingWindow
from ..cache_order import worth, worths
from ..chain import Chain
from ..cost import LINK, CostModel, WorkerCost
from ..drafting_facts import RequestDrafts, StepSeen
from ..estimator import UtilityEstimator, make_estimator
from ..governor import Decision as Drafts
from ..governor import Governor
from ..ngram import Judgement
from ..planner import Planner, PlannerSettings
from ..planning_task import PlanForm
from ..reactive import split_misses
from ..step_model import NGRAM
from .interface import CPU, DEVICE, Decision, Layer, OffloadPolicy, Setting, Step, Wish

REPLAN_EVERY = 8
"""As in the deployments that ship."""
SOLVER_TIME = 0.03
"""Deterministic time."""
LEARN_FIRST, LEARN_EVERY = 32, 8
"""Measurements of an actor that the cost model learns from: the first ones, then every eighth, as in the engine."""


@dataclass(frozen=True)
class _Coming:
    """A plan that is being made."""

    ready_s: float
    plan: Plan


class Moespac(OffloadPolicy):
    """The engine's planner decides on slots and prefetches, its governor on γ, its reactive split on misses, without
    what `layer_shares` does beyond it.

    A plan takes the time that the machine states for it, and is followed from then on, in the middle of a step too.
    """

    speculates = True
    learns = True
    separate_workers = True
    keeps_fetched = False
    form: PlanForm = "threshold"

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        shape = setting.shape
        settings = PlannerSettings("best", REPLAN_EVERY, SOLVER_TIME, deterministic=True, form=self.form)
        self._planner = Planner(shape, setting.slots, DEVICE, [CPU], settings, self._estimator())
        self._costs = CostModel(shape.expert_bytes, DEVICE)
        self._samples: list[CostSample] = []
        self._calls: Counter[str] = Counter()
        self._governor = Governor([setting.draft_kind] if setting.gamma else [])
        self._request, self._drafts = "", RequestDrafts()
        self._drafting: Drafts | None = None
        self._judged = Judgement()
        self._held = np.zeros((shape.n_layers, shape.n_experts), dtype=bool)
        self._plan = Plan(0, np.zeros(shape.n_layers, np.int64), np.zeros(self._held.shape, np.int64), 0, "")
        self._ended: tuple[RoutingWindow, float] | None = None
        self._coming: _Coming | None = None
        self._draft_s = 0.0

    def initial(self) -> Sequence[ExpertKey]:
        # As the prefetcher fills slots before the first plan: evenly over layers.
        shape = self.setting.shape
        return [ExpertKey(layer, e) for e in range(shape.n_experts) for layer in shape.layer_ids][: self.setting.slots]

    def _estimator(self) -> UtilityEstimator:
        made = make_estimator("best", self.setting.shape)
        if self.setting.learned:
            made.restore(self.setting.learned)
        return made

    def gamma(self, request: str, remaining: int, match: int = 0) -> int:
        if request != self._request:
            self._request, self._drafts = request, RequestDrafts()
        self._drafting = self._governor.decide(self._drafts, remaining)
        return next((_length(choice) for choice in self._drafting.choices if choice.least_match <= match), 0)

    def begin(self, step: Step) -> Sequence[Wish] | None:
        self._learn(step)
        self._draft_s = (step.tokens - 1) * self.setting.draft_token_s
        if self._coming is None:
            self._think(step.now_s)
        return self._followed(step.now_s)

    def layer(self, at: Layer) -> Decision:
        fetch = self._fetched(at)
        cpu = [e for e in at.misses if e not in fetch]
        return Decision(fetch, cpu, self._followed(at.now_s))

    def worth(self, key: ExpertKey) -> float:
        row = self._rows[key.layer]
        return worth(int(self._plan.utilities[row, key.expert]), int(self._plan.thresholds[row]))

    def worths(self) -> np.ndarray | None:
        return worths(self._plan.utilities, self._plan.thresholds)

    def transfer_cost(self) -> float:
        return self._plan.transfer_cost

    def moved(self, key: ExpertKey, evicted: ExpertKey | None) -> None:
        self._held[self._rows[key.layer], key.expert] = True
        if evicted is not None:
            self._held[self._rows[evicted.layer], evicted.expert] = False

    def judged(self, ngrams: Judgement) -> None:
        self._judged = ngrams

    def end(self, window: RoutingWindow, accepted: int, seconds: float) -> None:
        self._ended = window, seconds
        if self._drafting is not None:
            self._governor.observe(self._drafts, self._drafting, self._seen(window.tokens - 1, accepted, seconds))

    def _learn(self, step: Step) -> None:
        """From the step before; only the new step says which token comes."""
        if self._ended is None:
            return
        window, seconds = self._ended
        layers = self.setting.shape.layer_ids
        residents = [ExpertKey(layers[row], expert) for row, expert in np.argwhere(self._held).tolist()]
        known = step.request == window.request and step.token_ids
        samples = [*self._samples, CostSample(LINK, 1, 0, self.setting.transfer_s)]
        self._planner.observe(window, samples, residents, seconds, step.token_ids[0] if known else None, self._draft_s)
        self._samples.clear()

    def _think(self, now_s: float) -> None:
        """Begins a plan where one is due."""
        planner, setting = self._planner, self.setting
        if planner.due(now_s):
            task = planner.task()
            solved, ready_s = task.solve(), now_s + setting.plan_s
            planner.adopt(task, solved, setting.plan_s, ready_s)
            self._coming = _Coming(ready_s + setting.tell_s, solved.plan)
        elif planner.refresh_due(now_s):
            plan, ready_s = planner.refresh(), now_s + setting.refresh_s
            planner.refreshed(setting.refresh_s, ready_s)
            self._coming = _Coming(ready_s + setting.tell_s, plan)

    def _followed(self, now_s: float) -> Sequence[Wish] | None:
        """Prefetches of a plan that is ready now; None: none is."""
        if self._coming is None or self._coming.ready_s > now_s:
            return None
        self._plan, self._coming = self._coming.plan, None
        self._changed.update(self._rows.values())
        layers, utilities = self.setting.shape.layer_ids, self._plan.utilities
        rows, experts = np.nonzero(self._plan.wanted() & ~self._held)
        most = self._plan.link_budget_bytes // self.setting.shape.expert_bytes
        first = np.argsort(-utilities[rows, experts], kind="stable")[:most]
        return [
            (ExpertKey(layers[row], expert), int(utilities[row, expert]))
            for row, expert in zip(rows[first].tolist(), experts[first].tolist(), strict=True)
        ]

    def _seen(self, proposed: int, accepted: int, seconds: float) -> StepSeen:
        return StepSeen(
            kind=self.setting.draft_kind if proposed else "",
            proposed=proposed,
            accepted=accepted,
            draft_s=self._draft_s,
            turn_s=seconds,
            ngrams=self._judged if self.setting.draft_kind == NGRAM else None,
        )

    def _fetched(self, at: Layer) -> list[int]:
        """The misses to wait for: those under way, and of the others as many as the reactive split gives the link.

        Experts of a small window cost much the same, so the link takes those that are worth most in a slot.
        """
        waited, others = list(at.arriving), [e for e in at.misses if e not in at.arriving]
        link = WorkerCost(LINK, at.link_free_s, self.setting.transfer_s, 0.0)
        split = split_misses({e: at.pairs[e] for e in others}, [*self._costs.worker_costs([CPU]), link])
        others.sort(key=lambda e: (-self._plan.utilities[at.row, e], e))
        return waited + others[: len(split[1])]

    def measured(self, sample: CostSample) -> None:
        calls = self._calls[sample.actor]
        self._calls[sample.actor] += 1
        self._samples.append(sample)
        if calls < LEARN_FIRST or calls % LEARN_EVERY == 0:
            self._costs.observe(sample)


class Clairvoyant(Moespac):
    """The same engine with the coming window's routing known."""

    def _estimator(self) -> UtilityEstimator:
        self._told = _Told(super()._estimator(), self.setting.shape)
        return self._told

    def begin(self, step: Step) -> Sequence[Wish] | None:
        self._told.truth = step.truth() > 0
        return super().begin(step)


class _Told:
    """An estimator that knows the coming window: it is asked for that with a draft, be it empty."""

    def __init__(self, estimator: UtilityEstimator, shape: ModelShape) -> None:
        self._estimator = estimator
        self.truth = np.zeros((shape.n_layers, shape.n_experts), dtype=bool)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._estimator, name)

    def expected_counts(self, tokens: int, draft: Sequence[int] | None = None, request: str = "") -> np.ndarray:
        if draft is None:
            return self._estimator.expected_counts(tokens, None, request)
        return tokens * self.truth.astype(np.float64)


def _length(choice: DraftChoice) -> int:
    """Tokens of a draft that does not say how sure it is, as those of traces do not; of n-grams all are taken."""
    chain = Chain(choice, choice.gamma)
    while chain.wants_more():
        chain.add()
    return len(chain.places)
