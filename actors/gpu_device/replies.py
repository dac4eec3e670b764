"""A step's outcome as the message the scheduler gets."""

from __future__ import annotations

from ...protos.v1 import steps_pb2 as pb
from ...version import __version__
from ..core import CostSample, Span
from ..policy.cost import LINK
from ..transport.messages import (
    logprobs_to_proto,
    refs,
    sample_to_proto,
    shape_to_proto,
    span_to_proto,
    window_to_proto,
)
from .decode import Session, StepResult
from .loading import Device
from .overlap_meter import LinkReport
from .passes import Pass


def step_reply(device: Device, session: Session, run: Pass, result: StepResult, link: LinkReport) -> pb.StepReply:
    """`link`: what it did since the last reply."""
    moved = [CostSample(LINK, 1, 0, transfer.service_s) for transfer in link.completed]
    return pb.StepReply(
        emitted=result.emitted,
        proposed=result.proposed,
        accepted=result.accepted,
        prefill=result.prefill,
        window=window_to_proto(run.window(result.prefill), run.used, run.hits, device.shape),
        plan_epoch=run.epoch,
        timings=pb.Timings(
            draft_s=result.draft_s,
            verify_s=result.verify_s,
            local_s=run.local_s,
            wait_s=run.wait_s,
            expert_calls=run.expert_calls,
            lane_calls=run.lane_calls,
            fallback_experts=run.fallback_experts,
            samples=[sample_to_proto(sample) for sample in (*run.samples, *moved)],
            transfer_s=link.busy_s,
            transfer_hidden_s=link.hidden_s,
            bytes_moved=link.bytes,
            transfers=len(moved),
            cancelled_transfers=len(link.transfers) - len(moved),
            streamed_experts=run.streamed_experts,
            awaited_experts=run.awaited_experts,
            copy_wait_s=run.copy_wait_s,
        ),
        spans=[span_to_proto(span) for span in (*run.spans, *_transfer_spans(run, link))],
        # What is on its way is as good as here for whoever plans.
        resident=refs([*device.slots.residents(), *device.slots.under_way()]),
        draft_kind=result.draft_kind,
        predicted=_predicted(run, result),
        behind=session.behind(),
        confidences=bytes(result.places),
        ngram_match=result.ngrams.match,
        ngram_found=result.ngrams.found,
        ngram_stood=result.ngrams.stood,
        logprobs=[logprobs_to_proto(entry) for entry in result.logprobs],
    )


def _predicted(run: Pass, result: StepResult) -> pb.Window | None:
    """What a draft's routers wanted, if the step has one that told."""
    if run.predicted is None:
        return None
    layers = zip(run.shape.layer_ids, run.predicted.tolist(), strict=True)
    return pb.Window(tokens=result.proposed, layers=[pb.LayerCounts(layer=at, counts=row) for at, row in layers])


def description(name: str, device: Device | None) -> pb.DeviceDescription:
    """What the device is; before it is loaded only who it is."""
    if device is None:
        return pb.DeviceDescription(name=name, version=__version__)
    residents = device.slots.residents()
    return pb.DeviceDescription(
        name=name,
        version=__version__,
        torch_device=str(device.target.device),
        emulated=device.config.torch_device == "emulated",
        model=shape_to_proto(device.shape),
        store_fingerprint=device.fingerprint,
        slots=device.slots.slots,
        slot_bytes=device.slots.slot_bytes,
        kv_budget_bytes=device.sessions.budget.budget_bytes,
        kv_bytes_per_token=device.sessions.budget.bytes_per_token,
        context_length=device.target.context_length,
        vocab_size=device.target.vocab_size,
        eos_token_ids=device.target.eos_token_ids,
        drafts=list(device.decoder.drafts),
        resident=refs(residents),
        ready=True,
        resident_bytes=len(residents) * device.shape.expert_bytes,
        kv_reserved_bytes=device.sessions.budget.reserved_bytes,
        stale_plans=device.slots.stale_plans,
        cancelled_transfers=device.slots.cancelled,
        staging_slots=len(device.slots.buffers),
    )


def _transfer_spans(run: Pass, link: LinkReport) -> list[Span]:
    if not run.trace:
        return []
    return [
        Span(
            "transfers",
            f"{transfer.name}, cancelled" if transfer.cancelled else transfer.name,
            transfer.start_ns,
            transfer.end_ns,
            {"bytes": str(transfer.bytes)},
        )
        for transfer in link.transfers
    ]
