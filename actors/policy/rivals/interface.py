"""What every offloading policy answers: what to prefetch and when, whom to evict, what to do with a miss."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ...core import CostSample, ExpertKey, ModelShape, RoutingWindow
from ..ngram import Judgement

DEVICE, CPU = "device", "cpu"
"""The `CostSample.actor` of experts computed on the device and on the CPU."""


@dataclass(frozen=True)
class Roofline:
    """One expert with n pairs takes max(read_s, n · pair_s) seconds: weights are read while pairs are computed."""

    read_s: float
    pair_s: float

    def seconds(self, pairs: int) -> float:
        return max(self.read_s, pairs * self.pair_s)


@dataclass(frozen=True)
class Setting:
    """What a policy is told of model and machine before the first token."""

    shape: ModelShape
    slots: int
    """Experts the device can hold."""
    device: Roofline
    cpu: Roofline
    cpu_call_s: float
    """Fixed cost of handing one layer's experts to the CPU, a remote call included where there is one."""
    transfer_s: float
    """One expert over the link."""
    contention: float
    """Share of the CPU's memory bandwidth that it loses while the link is busy."""
    trunk_layer_s: float
    """Attention, norms and router of one layer on the device."""
    draft_token_s: float
    draft_kind: str
    """One of DRAFT_KINDS."""
    gamma: int
    """Draft tokens a step of policies that speculate and do not choose for themselves."""
    profile: np.ndarray
    """Pairs of each expert in sequences not simulated; int [n_layers, n_experts]; zeros where there are none."""
    learned: Mapping[str, np.ndarray]
    """State of the estimator `best` after sequences not simulated, as a restart finds it; empty without any."""
    plan_s: float
    """Solving a plan."""
    refresh_s: float
    """Renewing utilities without the solver."""
    tell_s: float
    """Until a decision made in another process arrives where it is followed."""
    gate_accuracy: float
    """Share of (token, slot) pairs that a prediction from an earlier layer's hidden state gets right."""


@dataclass(frozen=True)
class Step:
    """A verification about to happen."""

    index: int
    now_s: float
    """On the simulated clock."""
    tokens: int
    """W = γ+1."""
    token_ids: tuple[int, ...]
    """Of the window as far as they are known before drafting: the first; empty without strings."""
    request: str
    cached: Callable[[ExpertKey], bool]
    """Whether an expert is in a slot or on its way into one."""
    truth: Callable[[], np.ndarray]
    """The window's true counts, int [n_layers, n_experts]: for oracles, and for predictors of stated accuracy."""


@dataclass(frozen=True)
class Layer:
    """A layer whose router has just spoken."""

    row: int
    now_s: float
    """On the simulated clock."""
    pairs: Mapping[int, int]
    """Active expert → (token, slot) pairs; ascending experts."""
    residents: Sequence[int]
    """Active experts that lie in a slot; ascending."""
    misses: Sequence[int]
    """All other active experts; ascending."""
    arriving: Mapping[int, float]
    """Those misses whose transfer is under way → seconds until they are there."""
    link_free_s: float
    """Seconds until the transfer under way ends; 0 when the link is idle."""
    cached: Callable[[ExpertKey], bool]
    """Whether an expert is in a slot or on its way into one."""
    routing: Callable[[int], np.ndarray]
    """Row → the experts its router will choose, int [tokens, top_k]: for predictors of stated accuracy."""


Wish = tuple[ExpertKey, int]
"""An expert to prefetch and its utility; the highest is moved first."""


@dataclass(frozen=True)
class Decision:
    """What becomes of a layer's misses. Each is in exactly one of `fetch` and `cpu`."""

    fetch: Sequence[int] = ()
    """In the order they are moved. One under way already is waited for."""
    cpu: Sequence[int] = ()
    wishes: Sequence[Wish] | None = None
    """Replaces all prefetches that have not started; None leaves them."""
    resident_on_cpu: Sequence[int] = ()
    """Residents that the CPU computes all the same."""


class OffloadPolicy:
    """The defaults are a plain cache's: no drafts, no prefetch, least recently used leaves, misses are fetched."""

    speculates: ClassVar[bool] = False
    """Drafts, `setting.gamma` tokens or as many as it chooses."""
    learns: ClassVar[bool] = False
    """Starts from `setting.learned`."""
    applies_gates: ClassVar[bool] = False
    """Predicts with `setting.gate_accuracy`."""
    serial: ClassVar[bool] = False
    """CPU and device compute one after the other."""
    pageable: ClassVar[bool] = False
    """Transfers read pageable host memory."""
    separate_workers: ClassVar[bool] = False
    """CPU experts are computed by other processes: each layer that uses them pays a remote call."""
    keeps_fetched: ClassVar[bool] = True
    """A fetched expert takes a slot; otherwise it is streamed through a buffer and forgotten."""
    forces_fetch: ClassVar[bool] = True
    """A fetched expert evicts whoever is worth least even if that is worth more."""
    admits_late: ClassVar[bool] = False
    """Fetched experts compete for slots when their layer is done, with everybody evictable: a bound, not a system."""
    forces_prefetch: ClassVar[bool] = False
    """A prefetched expert evicts whoever is worth least even if that is worth more."""

    wants_future: ClassVar[bool] = False
    """`foresee` is called before the first step."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self._rows = {layer: row for row, layer in enumerate(setting.shape.layer_ids)}
        self._changed: set[int] = set()
        """Rows in which `worth` has changed; subclasses add to it."""

    def foresee(self, windows: Sequence[np.ndarray]) -> None:
        """The true counts of all windows to come, int [n_layers, n_experts] each: for oracles."""

    def pools(self) -> Sequence[int] | None:
        """Slots of each layer where every layer has its own; None: one pool for all."""
        return None

    def initial(self) -> Sequence[ExpertKey]:
        """Experts resident before the first token."""
        return ()

    def gamma(self, request: str, remaining: int, match: int = 0) -> int:
        """Draft tokens of the coming step; `remaining`: tokens that the request still wants, >= 1.

        `match`: tokens that agree where n-grams find something; 0: they find nothing, or there are none.
        """
        return self.setting.gamma if self.speculates else 0

    def begin(self, step: Step) -> Sequence[Wish] | None:
        """Before drafting; wishes as in `Decision`."""
        return None

    def layer(self, at: Layer) -> Decision:
        """A router has spoken."""
        return Decision(fetch=at.misses)

    def worth(self, key: ExpertKey) -> float:
        """Who is worth least is evicted first; among equals the least recently used."""
        return 0

    def worths(self) -> np.ndarray | None:
        """`worth` of every expert, [n_layers, n_experts], where the policy keeps it so; None: ask one by one."""
        return None

    def transfer_cost(self) -> float:
        """What a prefetched expert must be worth more than whom it evicts; `worth`'s unit."""
        return 0

    def revalued(self) -> Collection[int]:
        """Rows in which `worth` has changed since this was last asked."""
        changed, self._changed = self._changed, set()
        return changed

    def moved(self, key: ExpertKey, evicted: ExpertKey | None) -> None:
        """`key` has been given a slot, from which `evicted` was removed."""

    def measured(self, sample: CostSample) -> None:
        """What a layer's experts took on the device or on the CPU."""

    def judged(self, ngrams: Judgement) -> None:
        """How good what n-grams found was, proposed or not; before `end`."""

    def end(self, window: RoutingWindow, accepted: int, seconds: float) -> None:
        """The verification is over: its routing, the draft tokens accepted, and what the whole step took."""
