"""The actors' plain types to and from their protobuf messages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from ...protos.v1 import steps_pb2 as pb
from ..core import CostSample, ExpertKey, ModelShape, Plan, RoutingWindow, Sampling, Span, TokenLogprobs


def shape_to_proto(shape: ModelShape) -> pb.ModelShape:
    return pb.ModelShape(
        layer_ids=shape.layer_ids,
        n_experts=shape.n_experts,
        top_k=shape.top_k,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        expert_bytes=shape.expert_bytes,
    )


def shape_from_proto(message: pb.ModelShape) -> ModelShape:
    return ModelShape(
        layer_ids=tuple(message.layer_ids),
        n_experts=message.n_experts,
        top_k=message.top_k,
        hidden_size=message.hidden_size,
        intermediate_size=message.intermediate_size,
        expert_bytes=message.expert_bytes,
    )


def sampling_to_proto(sampling: Sampling) -> pb.Sampling:
    return pb.Sampling(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        seed=sampling.seed,
        min_p=sampling.min_p,
        repetition_penalty=sampling.repetition_penalty,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        logit_bias=dict(sampling.logit_bias),
        verification=pb.Sampling.Verification.Value(sampling.verification.upper()),
    )


def sampling_from_proto(message: pb.Sampling) -> Sampling:
    """An unset top_p or repetition_penalty (0 on the wire) means 1. Raises ValueError for an unknown verification."""
    return Sampling(
        temperature=message.temperature,
        top_p=message.top_p or 1.0,
        top_k=message.top_k,
        seed=message.seed,
        min_p=message.min_p,
        repetition_penalty=message.repetition_penalty or 1.0,
        presence_penalty=message.presence_penalty,
        frequency_penalty=message.frequency_penalty,
        logit_bias=tuple(sorted(message.logit_bias.items())),
        verification=pb.Sampling.Verification.Name(message.verification).lower(),
    )


def logprobs_to_proto(logprobs: TokenLogprobs) -> pb.TokenLogprobs:
    top = [pb.TokenLogprob(token=token, logprob=logprob) for token, logprob in logprobs.top]
    return pb.TokenLogprobs(token=logprobs.token, logprob=logprobs.logprob, top=top)


def logprobs_from_proto(message: pb.TokenLogprobs) -> TokenLogprobs:
    return TokenLogprobs(message.token, message.logprob, tuple((entry.token, entry.logprob) for entry in message.top))


def plan_to_proto(plan: Plan, shape: ModelShape) -> pb.Plan:
    return pb.Plan(
        epoch=plan.epoch,
        layers=[
            pb.LayerPlan(layer=layer, threshold=int(plan.thresholds[row]), utilities=plan.utilities[row].tolist())
            for row, layer in enumerate(shape.layer_ids)
        ],
        link_budget_bytes=plan.link_budget_bytes,
        solver_status=plan.solver_status,
        transfer_cost=plan.transfer_cost,
    )


def plan_from_proto(message: pb.Plan, shape: ModelShape) -> Plan:
    """Raises ValueError when the plan is not one for a model of this shape."""
    layers = tuple(entry.layer for entry in message.layers)
    if layers != shape.layer_ids:
        raise ValueError(f"plan {message.epoch} has layers {layers}, the model has {shape.layer_ids}")
    lengths = {len(entry.utilities) for entry in message.layers}
    if lengths != {shape.n_experts}:
        raise ValueError(f"plan {message.epoch} has {lengths} utilities a layer, the model {shape.n_experts} experts")
    return Plan(
        epoch=message.epoch,
        thresholds=np.array([entry.threshold for entry in message.layers]),
        utilities=np.array([entry.utilities for entry in message.layers]),
        link_budget_bytes=message.link_budget_bytes,
        solver_status=message.solver_status,
        transfer_cost=message.transfer_cost,
    )


def window_to_proto(window: RoutingWindow, used: Sequence[int], hits: Sequence[int], shape: ModelShape) -> pb.Window:
    """`used`, `hits`: distinct experts used, and of those found resident, per layer in the order of layer_ids."""
    return pb.Window(
        tokens=window.tokens,
        layers=[
            pb.LayerCounts(layer=layer, counts=window.counts[row].tolist(), used=used[row], hits=hits[row])
            for row, layer in enumerate(shape.layer_ids)
        ],
        token_ids=[] if window.token_ids is None else window.token_ids.tolist(),
        experts=b"" if window.ids is None else window.ids.astype(_expert_type(shape.n_experts)).tobytes(),
    )


def window_from_proto(
    message: pb.Window, prefill: bool, request: str = "", accepted: int | None = None
) -> RoutingWindow:
    """`request` and `accepted` as in RoutingWindow. Raises ValueError when the experts do not fit the counts."""
    counts = np.array([entry.counts for entry in message.layers], dtype=np.int64)
    ids = None
    if message.experts:
        flat = np.frombuffer(message.experts, _expert_type(counts.shape[1]))
        ids = flat.astype(np.int64).reshape(message.tokens, len(counts), -1)
    token_ids = np.array(message.token_ids, dtype=np.int64) if message.token_ids else None
    return RoutingWindow(message.tokens, counts, prefill, token_ids, ids, request, accepted)


def _expert_type(n_experts: int) -> str:
    return "u1" if n_experts <= 256 else "<u2"


def refs(keys: Iterable[ExpertKey]) -> list[pb.ExpertRef]:
    return [pb.ExpertRef(layer=key.layer, expert=key.expert) for key in keys]


def keys(messages: Iterable[pb.ExpertRef]) -> list[ExpertKey]:
    return [ExpertKey(message.layer, message.expert) for message in messages]


def span_to_proto(span: Span) -> pb.Span:
    return pb.Span(row=span.row, name=span.name, start_ns=span.start_ns, end_ns=span.end_ns, args=span.args)


def sample_to_proto(sample: CostSample) -> pb.CostSample:
    return pb.CostSample(**vars(sample))


def sample_from_proto(message: pb.CostSample) -> CostSample:
    return CostSample(
        message.actor, message.experts, message.pairs, message.seconds, message.waited_s, message.called_s
    )
