"""A table of what a service has decided and done since it started."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from rich.table import Table

from ..protos.v1 import generation_pb2 as pb
from .report import NOTHING, human_bytes, human_seconds, percent

POSITIONS_SHOWN = 6
"""Of a draft's acceptance rates."""
Row = tuple[str, str, str]


def decisions_table(status: pb.StatusReply) -> Table:
    """What `moespac status` shows below the actors."""
    table = Table(title="since the start", show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(justify="right", overflow="fold")
    table.add_column(style="dim", overflow="fold")
    rows = [_requests(status.requests)]
    if status.HasField("work"):
        rows += [*_work(status.work), *_speculation(status.speculation)]
    if status.HasField("planning"):
        rows += _planning(status.planning)
    for row in rows:
        table.add_row(*row)
    return table


def _requests(requests: pb.RequestTotals) -> Row:
    ends = ", ".join(f"{count} {outcome}" for outcome, count in sorted(requests.outcomes.items()) if count)
    return (
        "requests",
        str(sum(requests.outcomes.values())),
        f"{ends or 'none'}; mean TTFT {_mean(requests.ttft_s)}, TPOT {_mean(requests.tpot_s)}",
    )


def _work(work: pb.WorkTotals) -> Iterator[Row]:
    per_step = f"{(work.steps + work.accepted) / work.steps:.2f} a step" if work.steps else "no step"
    yield "tokens", str(work.tokens), f"{per_step}; {work.prefill_tokens} of prompts computed"
    yield "hit rate", _share(work.hits, work.uses), f"{work.hits} of {work.uses} uses found resident"
    hidden = _share(work.transfer_hidden_s, work.transfer_s)
    yield "bytes moved", human_bytes(work.bytes_moved), f"by {work.transfers} transfers; {hidden} of their time hidden"
    restarts = f"; {work.restarts} requests taken up again" if work.restarts else ""
    calls = f"to workers, {work.lane_calls} by lane; {work.fallback_experts} experts fell back{restarts}"
    yield "expert calls", str(work.expert_calls), calls
    waited = f"experts copied for one layer; {work.awaited_experts} waited for on their way to a slot"
    yield "streamed", str(work.streamed_experts), waited


def _speculation(speculation: pb.SpeculationStatus) -> Iterator[Row]:
    steps: Counter[str] = Counter()
    for entry in speculation.steps:
        steps[entry.kind or "none"] += entry.steps
    if not steps:
        return
    lengths = Counter({entry.gamma: 0 for entry in speculation.steps})
    for entry in speculation.steps:
        lengths[entry.gamma] += entry.steps
    usual = ", ".join(f"{gamma} ({_share(count, lengths.total())})" for gamma, count in lengths.most_common(3))
    yield (
        "steps by draft",
        ", ".join(f"{kind} {count}" for kind, count in steps.most_common()),
        f"draft tokens: {usual}",
    )
    for draft in speculation.drafts:
        rates = [_share(stood, tried) for stood, tried in zip(draft.accepted, draft.proposed, strict=True)]
        text = f"stood of its tokens; by position: {', '.join(rates[:POSITIONS_SHOWN])}"
        yield f"accepted of {draft.kind}", _share(sum(draft.accepted), sum(draft.proposed)), text
    reasons = ", ".join(f"{total.reason} {total.steps}" for total in speculation.decisions)
    lost = f"exploring lost {percent(speculation.exploration_loss)} of the time"
    promised = (
        f"{total.reason}: {total.promised_tokens / total.seconds:.1f} tokens/s promised, "
        f"{total.tokens / total.seconds:.1f} seen"
        for total in speculation.decisions
        if total.seconds > 0
    )
    yield "choices", reasons, "; ".join([*promised, lost])


def _planning(planning: pb.PlanningStatus) -> Iterator[Row]:
    made = ", ".join(f"{entry.plans} {entry.solver} {entry.status}" for entry in planning.plans)
    total = sum(entry.plans for entry in planning.plans)
    duty = f"{percent(planning.duty)} of the steps' time" if total else "none yet"
    yield "plans", str(total), "; ".join(filter(None, [made, duty, f"estimator {planning.estimator}"]))
    if planning.HasField("last"):
        last = planning.last
        yield (
            f"plan {last.epoch}",
            f"{last.solver} {last.status}",
            f"gap {percent(last.gap)}, {human_seconds(last.seconds)}, drift {percent(last.drift)}; {last.hot} hot, "
            f"{last.transfers_wanted} transfers wanted, {last.transfers_allowed} allowed "
            f"({human_bytes(last.link_budget_bytes)})",
        )
    recall = percent(planning.prefetch_recall if planning.HasField("prefetch_recall") else None)
    why = "" if planning.prefetch_open else "; too few are used: only probes are made"
    yield "prefetch", "open" if planning.prefetch_open else "closed", f"{recall} of transfers used in time{why}"
    if planning.prediction_errors:
        errors = ", ".join(f"{actor} {percent(e)}" for actor, e in sorted(planning.prediction_errors.items()))
        yield "times predicted", "", f"off by (median): {errors}"


def _mean(histogram: pb.Histogram) -> str:
    count = sum(histogram.counts)
    return human_seconds(histogram.sum / count) if count else NOTHING


def _share(part: float, whole: float) -> str:
    return percent(part / whole if whole else None)
