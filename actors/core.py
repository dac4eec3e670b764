"""The types the actors share. Plain values: no Ray, no gRPC, no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

DRAFT_KINDS = ("model", "ngram", "self")
"""A dense draft model; text that stood there before; the target with its resident experts only."""


class ExpertKey(NamedTuple):
    """One routed expert: `layer` is the model's own layer index, `expert` its index in that layer."""

    layer: int
    expert: int


@dataclass(frozen=True)
class ModelShape:
    """What the policies need to know of a model. `layer_ids`: layers with routed experts, ascending."""

    layer_ids: tuple[int, ...]
    n_experts: int
    top_k: int
    hidden_size: int
    intermediate_size: int
    expert_bytes: int
    """Bytes of one expert as stored (gate, up and down)."""

    @property
    def n_layers(self) -> int:
        """Layers with routed experts."""
        return len(self.layer_ids)

    def row(self, layer: int) -> int:
        """Position of `layer` in arrays of shape [n_layers, n_experts]."""
        return self.layer_ids.index(layer)

    def keys(self) -> list[ExpertKey]:
        """Every routed expert, layer by layer."""
        return [ExpertKey(layer, e) for layer in self.layer_ids for e in range(self.n_experts)]


@dataclass(frozen=True)
class RoutingWindow:
    """Routing of one pass: a draft window of W = γ+1 tokens, or a prefill chunk."""

    tokens: int
    """W: tokens the pass computed, those rejected afterwards included."""
    counts: np.ndarray
    """(token, slot) pairs routed to each expert; int [n_layers, n_experts]; each row sums to tokens · top_k."""
    prefill: bool = False
    token_ids: np.ndarray | None = None
    """Ids of the tokens the pass computed; int64 [tokens]; None where the runtime does not report them."""
    ids: np.ndarray | None = None
    """The experts each token was routed to; int [tokens, n_layers, top_k]; None where only counts are known."""
    request: str = ""
    """The request the tokens belong to; windows of one request come in the order of its text."""
    accepted: int | None = None
    """How many of the tokens, from the first, stay in the request's text; None: all of them."""


@dataclass(frozen=True)
class Plan:
    """Which experts deserve residency: those of layer l whose utility is at least `thresholds[l]`."""

    epoch: int
    thresholds: np.ndarray
    """k per layer; int [n_layers]."""
    utilities: np.ndarray
    """Utility of each expert; int [n_layers, n_experts]; higher is worth more."""
    link_budget_bytes: int
    """Bytes of transfers this plan may start."""
    solver_status: str
    """OPTIMAL or FEASIBLE of the solver, GREEDY of the fallback."""
    transfer_cost: int = 0
    """What a transfer must gain: an expert is exchanged only for one whose utility is less by more than that."""

    def hot(self) -> np.ndarray:
        """bool [n_layers, n_experts]: experts that are worth more than all others."""
        return self.utilities >= self.thresholds[:, None]

    def wanted(self) -> np.ndarray:
        """bool [n_layers, n_experts]: experts that are worth a transfer where they are not resident."""
        return self.utilities - self.transfer_cost >= self.thresholds[:, None]


@dataclass(frozen=True)
class CostSample:
    """One measurement: `experts` experts with `pairs` (token, expert) pairs took `seconds` on `actor`."""

    actor: str
    experts: int
    pairs: int
    seconds: float
    waited_s: float = 0.0
    """Beyond `seconds`: for weights that were not in host memory."""
    called_s: float = 0.0
    """Of `seconds`: the way of a worker's call there and back."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen from the target's logits; the order of the parts is that of `policy/sampler.py`."""

    temperature: float = 0.0
    """0: greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0: all tokens."""
    seed: int = 0
    min_p: float = 0.0
    """Tokens less probable than this share of the most probable one's probability are excluded."""
    repetition_penalty: float = 1.0
    """Logits of tokens seen in prompt or output are divided by it if positive, multiplied if negative."""
    presence_penalty: float = 0.0
    """Taken off the logit of every token in the output so far."""
    frequency_penalty: float = 0.0
    """Taken off a token's logit as often as the output so far contains it."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(token, what is added to its logit)."""
    verification: Literal["coupled", "rejection"] = "coupled"
    """How drafts are verified: by equality under shared noise, or by classical rejection sampling."""

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0


class DraftChoice(NamedTuple):
    """Which draft to ask, and for how many tokens at most."""

    kind: str
    """One of DRAFT_KINDS."""
    gamma: int
    least_match: int = 0
    """Of n-grams: tokens that must agree, or else they are passed over."""
    chances: tuple[float, ...] = ()
    """How likely a token is to stand by how sure its draft is of it, given that all before it do; `policy/chain.py`."""
    floors: tuple[float, ...] = ()
    """Another token is drafted while the chance that all so far stand is no less than the next of these; empty: all."""


@dataclass(frozen=True)
class Proposal:
    """A chain of draft tokens."""

    tokens: tuple[int, ...] = ()
    logits: tuple[np.ndarray, ...] | None = None
    """What each was chosen from, float [vocab of the target]; None: proposed without drawing."""
    places: tuple[int, ...] = ()
    """How sure the draft was of each: a place below `chain.PLACES`."""


@dataclass(frozen=True)
class TokenLogprobs:
    """Natural log-probabilities at one position, of the model's own distribution."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    """The most probable tokens with theirs, descending."""


@dataclass(frozen=True)
class Span:
    """A stretch of time on one row of the timeline; nanoseconds of the wall clock since the epoch."""

    row: str
    name: str
    start_ns: int
    end_ns: int
    args: dict[str, str] = field(default_factory=dict)
