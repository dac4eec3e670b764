"""What a client gets back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

import numpy as np

from ...protos.v1 import generation_pb2

_REASONS = generation_pb2.Statistics.FinishReason
_ALIGNED = ("plan_ms", "solver_statuses", "solvers", "plan_gaps")
"""One of each plan."""


@dataclass(frozen=True)
class Model:
    """A model that the service generates with."""

    name: str
    draft: str | None
    """Name of the draft model; None: no speculation."""
    context_length: int
    """Tokens of prompt and output together."""
    moe_layers: int
    experts_per_layer: int
    top_k: int
    """Experts a token is routed to in a layer."""
    expert_bytes: int

    @classmethod
    def from_proto(cls, info: generation_pb2.ModelInfo) -> Model:
        shape = info.shape
        return cls(
            name=info.name,
            draft=info.draft or None,
            context_length=info.context_length,
            moe_layers=len(shape.layer_ids),
            experts_per_layer=shape.n_experts,
            top_k=shape.top_k,
            expert_bytes=shape.expert_bytes,
        )


@dataclass(frozen=True)
class DraftStatistics:
    """What became of one kind of draft."""

    kind: str
    """`model`, `ngram` or `self`."""
    steps: int
    """Decode steps that verified it."""
    proposed: tuple[int, ...]
    """Tokens by position in the draft."""
    accepted: tuple[int, ...]
    """Tokens by position in the draft."""


@dataclass(frozen=True)
class GenerationStatistics:
    """How a generation went. Ratios are None when there was nothing to divide by."""

    finish_reason: str
    """"stop": end-of-text token, stop token or stop string; "length": max_tokens reached."""
    prompt_tokens: int
    tokens: int
    """Generated."""
    ttft_s: float
    """Time to first token, from the request's arrival at the scheduler."""
    tpot_s: float
    """Mean time per output token after the first."""
    tokens_per_second: float
    """Generated tokens over the whole time."""
    steps: int
    """Decode steps: draft, verify, accept."""
    proposed: int
    accepted: int
    uses: int
    """Distinct (layer, expert) uses of all decode windows."""
    hits: int
    """Of `uses`, those found resident when their layer started."""
    bytes_moved: int
    """Over the link to the device while the request ran."""
    transfer_s: float
    """Seconds that the link was busy."""
    transfer_hidden_s: float
    """Of `transfer_s`, while the device was computing."""
    plan_ms: tuple[float, ...]
    """Time of every plan made while the request ran."""
    solver_statuses: tuple[str, ...]
    """Solver status of each plan, aligned with `plan_ms`."""
    expert_calls: int
    """To workers."""
    fallback_experts: int
    """Experts the device computed from host memory because no worker did."""
    emulated: bool
    """The link's figures are those of an emulated accelerator."""
    restarts: int
    """Times the request was taken up again after an actor was lost."""
    drafts: tuple[DraftStatistics, ...] = ()
    """Of each kind of draft that proposed anything."""
    demand: int = 0
    """Distinct (layer, expert) uses of the windows that a self-draft went before."""
    demand_predicted: int = 0
    """Of `demand`, what the self-draft had wanted too."""
    solvers: tuple[str, ...] = ()
    """What made each plan, aligned with `plan_ms`: "thresholds" or "assignment"."""
    plan_gaps: tuple[float, ...] = ()
    """(objective - bound) / objective of each plan, aligned with `plan_ms`; 0: proved optimal."""
    prefetch_recall: float | None = None
    """Share of recent transfers that were used before eviction, at the end."""
    prefetch_closed: bool = False
    """Too few were: plans had stopped transferring, but for probes, at the end."""
    prediction_errors: Mapping[str, float] = field(default_factory=dict)
    """Of the cost model at the end, by measured actor: median |predicted - measured| / measured."""
    cancelled_transfers: int = 0
    """Broken off for a newer plan, which made them not worth the rest of their time on the link."""
    streamed_experts: int = 0
    """Experts copied to the device for their layer alone, and computed there."""
    awaited_experts: int = 0
    """Experts computed in a slot whose copy was under way when their layer started."""
    lane_calls: int = 0
    """Of `expert_calls`: by the lane of one host, in the place of gRPC's own transport."""
    stop: str | None = None
    """The stop string that ended it."""
    stop_token_id: int | None = None
    """The token that ended it: end-of-text or stop token; not part of the output."""

    @classmethod
    def from_proto(cls, message: generation_pb2.Statistics) -> GenerationStatistics:
        values = {}
        for name in (each.name for each in fields(cls)):
            value = getattr(message, name)
            values[name] = tuple(value) if name in _ALIGNED else value
        values["drafts"] = tuple(
            DraftStatistics(draft.kind, draft.steps, tuple(draft.proposed), tuple(draft.accepted))
            for draft in message.drafts
        )
        values["prefetch_recall"] = message.prefetch_recall if message.HasField("prefetch_recall") else None
        values["prediction_errors"] = dict(message.prediction_errors)
        values["stop"] = message.stop or None
        values["stop_token_id"] = message.stop_token_id if message.HasField("stop_token_id") else None
        known = message.finish_reason in _REASONS.values()
        values["finish_reason"] = _REASONS.Name(message.finish_reason).lower() if known else "unknown"
        return cls(**values)

    @property
    def acceptance_rate(self) -> float | None:
        """Accepted over proposed draft tokens."""
        return _ratio(self.accepted, self.proposed)

    @property
    def demand_recall(self) -> float | None:
        """Share of the experts that verifications used and the self-draft had predicted."""
        return _ratio(self.demand_predicted, self.demand)

    @property
    def tokens_per_step(self) -> float | None:
        """Tokens that a decode step gives on average: accepted draft tokens and the target's own."""
        return _ratio(self.steps + self.accepted, self.steps)

    @property
    def hit_rate(self) -> float | None:
        """Hits over uses: how much of the layers' demand was met by residents."""
        return _ratio(self.hits, self.uses)

    @property
    def transfer_hidden_share(self) -> float | None:
        """Share of the transfer time during which the device was computing."""
        return _ratio(self.transfer_hidden_s, self.transfer_s)

    @property
    def plan_ms_p50(self) -> float | None:
        return self._plan_percentile(50)

    @property
    def plan_ms_p99(self) -> float | None:
        return self._plan_percentile(99)

    def _plan_percentile(self, percent: float) -> float | None:
        return float(np.percentile(self.plan_ms, percent)) if self.plan_ms else None


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None
