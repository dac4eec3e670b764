"""Tables for people: how a generation went, and how the service is doing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from rich.table import Table
from rich.text import Text

from ..protos.v1 import generation_pb2
from .client import GenerationStatistics

NOTHING = "–"


def human_bytes(count: float) -> str:
    """`1536` → `1.5 KiB`."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if count < 1024 or unit == "TiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError("the loop ends with the largest unit")


def human_seconds(seconds: float) -> str:
    """`0.0123` → `12.3 ms`."""
    if seconds < 1:
        return f"{seconds * 1e3:.1f} ms"
    if seconds < 120:
        return f"{seconds:.2f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def generation_table(statistics: GenerationStatistics) -> Table:
    """The end-of-generation table."""
    s = statistics
    link = ", emulated link" if s.emulated else ""
    cancelled = f"; {s.cancelled_transfers} transfers cancelled for a newer plan" if s.cancelled_transfers else ""
    table = Table(title="generation", show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column(style="dim")
    table.add_row("tokens", f"{s.tokens}", f"after a prompt of {s.prompt_tokens}, ended by {s.finish_reason}")
    table.add_row("tokens/s", f"{s.tokens_per_second:.1f}", "over the whole time")
    table.add_row("TTFT", human_seconds(s.ttft_s), "time to first token")
    table.add_row("TPOT", human_seconds(s.tpot_s) if s.tokens > 1 else NOTHING, "time per output token after it")
    table.add_row("acceptance rate", percent(s.acceptance_rate), f"{s.accepted} of {s.proposed} draft tokens")
    table.add_row("tokens per step", _number(s.tokens_per_step), f"{s.steps} decode steps")
    for draft in s.drafts:
        share = f"{sum(draft.accepted)} of {sum(draft.proposed)} of its tokens accepted"
        table.add_row(f"drafted by {draft.kind}", f"{draft.steps} steps", share)
    if s.demand:
        table.add_row("demand recall", percent(s.demand_recall), "experts used that the self-draft had predicted")
    table.add_row("hit rate", percent(s.hit_rate), f"{s.hits} of {s.uses} uses found resident")
    table.add_row("bytes moved", human_bytes(s.bytes_moved), f"to the device{link}{cancelled}")
    table.add_row(
        "transfer time hidden",
        percent(s.transfer_hidden_share),
        f"{human_seconds(s.transfer_hidden_s)} of {human_seconds(s.transfer_s)} behind computing{link}",
    )
    table.add_row("plan time p50 / p99", _plan_times(s), _counted(s.solver_statuses) or "no plan was made")
    if s.plan_gaps:
        worst = f"largest {percent(max(s.plan_gaps))}; solver {_counted(s.solvers)}"
        table.add_row("plan gap", percent(sum(s.plan_gaps) / len(s.plan_gaps)), f"mean; {worst}")
    if s.prefetch_recall is not None:
        closed = "; too few: only probes are made now" if s.prefetch_closed else ""
        table.add_row("prefetch recall", percent(s.prefetch_recall), f"of recent transfers used in time{closed}")
    if s.prediction_errors:
        errors = ", ".join(f"{actor} {percent(error)}" for actor, error in sorted(s.prediction_errors.items()))
        table.add_row("prediction error", "", f"median, of times: {errors}")
    table.add_row(
        "expert calls",
        f"{s.expert_calls}",
        f"to workers, {s.lane_calls} by lane; {s.fallback_experts} experts fell back",
    )
    if s.streamed_experts or s.awaited_experts:
        what = f"experts copied for one layer; {s.awaited_experts} waited for on their way to a slot{link}"
        table.add_row("streamed", f"{s.streamed_experts}", what)
    if s.restarts:
        table.add_row("restarts", f"{s.restarts}", "taken up again after an actor was lost")
    return table


def status_table(status: generation_pb2.StatusReply) -> Table:
    """What `moespac status` shows."""
    table = Table(title=_headline(status), title_justify="left")
    for heading in ("actor", "kind", "ready", "pid", "node", "address", "version"):
        table.add_column(heading, overflow="fold")
    for actor in status.actors:
        table.add_row(
            actor.name,
            actor.kind,
            Text("yes", "green") if actor.ready else Text("no", "red"),
            str(actor.pid) if actor.pid else NOTHING,
            actor.node[:8] or NOTHING,
            actor.address or NOTHING,
            actor.version or NOTHING,
        )
    table.caption = _state(status)
    table.caption_justify = "left"
    return table


def _headline(status: generation_pb2.StatusReply) -> Text:
    state = Text("ready", "bold green") if status.ready else Text("not ready", "bold red")
    return Text.assemble(
        f"{status.deployment}: ", state, f", moespac {status.version}, up {human_seconds(status.uptime_s)}"
    )


def _state(status: generation_pb2.StatusReply) -> str:
    device, prefetcher = status.device, status.prefetcher
    lines = [f"requests: {status.running} running, {status.waiting} waiting; plan epoch {status.plan_epoch}"]
    if status.HasField("device"):
        emulated = ", emulated link" if device.emulated else ""
        lines.append(
            f"device {device.name} ({device.torch_device}{emulated}): {len(device.resident)} of {device.slots} slots "
            f"resident ({human_bytes(device.resident_bytes)}), {device.staging_slots} more for streaming; "
            f"KV cache {human_bytes(device.kv_reserved_bytes)} of {human_bytes(device.kv_budget_bytes)}; "
            f"context {device.context_length} tokens"
        )
    if status.HasField("prefetcher"):
        lines.append(
            f"host arena: {human_bytes(prefetcher.loaded_bytes)} of {human_bytes(prefetcher.arena_bytes)}; "
            f"{human_bytes(prefetcher.disk_bytes_read)} read from disk"
        )
    return "\n".join(lines)


def percent(share: float | None) -> str:
    """`0.123` → `12.3 %`; None, where there was nothing to divide by, is a dash."""
    return NOTHING if share is None else f"{100 * share:.1f} %"


def _number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.2f}"


def _plan_times(s: GenerationStatistics) -> str:
    if s.plan_ms_p50 is None or s.plan_ms_p99 is None:
        return NOTHING
    return f"{s.plan_ms_p50:.1f} / {s.plan_ms_p99:.1f} ms"


def _counted(names: Iterable[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(Counter(names).items()))
