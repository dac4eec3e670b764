"""The service's state as Prometheus metrics; their labels have few values: kinds, reasons, statuses, actors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from ...protos.v1 import generation_pb2 as pb

NO_DRAFT = "none"
"""Label of steps that verified none."""


def families(status: pb.StatusReply, up: bool) -> Iterator[Metric]:
    """`up`: the scheduler answered; if not, there is only what the gateway knows itself."""
    yield _gauge("up", "1: the scheduler answered", up)
    yield _gauge("ready", "1: a token can be produced", status.ready)
    yield _gauges("info", "What runs", {(status.version, status.deployment): 1}, "version", "deployment")
    yield from _requests(status.requests)
    if up:
        yield _gauge("requests_running", "Requests that take turns", status.running)
        yield _gauge("requests_waiting", "Requests that wait for room", status.waiting)
        yield from _work(status.work)
        yield from _speculation(status.speculation)
        if status.HasField("planning"):
            yield from _planning(status.planning)
        yield from _memory(status)


def _requests(requests: pb.RequestTotals) -> Iterator[Metric]:
    outcomes = {(outcome,): count for outcome, count in requests.outcomes.items()}
    yield _counters("requests", "Requests by how they ended", outcomes, "outcome")
    yield _histogram("ttft_seconds", "Time to first token, from arrival at the scheduler", requests.ttft_s)
    yield _histogram("tpot_seconds", "Mean time of a request's output tokens after the first", requests.tpot_s)


def _work(work: pb.WorkTotals) -> Iterator[Metric]:
    phases = {("prefill",): work.prefill_s, ("decode",): work.decode_s}
    yield _counter("tokens", "Tokens sent to clients", work.tokens)
    yield _counter("prefill_tokens", "Prompt tokens computed", work.prefill_tokens)
    yield _counters("step_seconds", "Time of steps, as the scheduler waits for them", phases, "phase")
    yield _counter("draft_seconds", "Time of decode steps spent drafting", work.draft_s)
    yield _counter("expert_wait_seconds", "Time of steps waiting for experts computed elsewhere", work.expert_wait_s)
    yield _counter("expert_uses", "Distinct (layer, expert) uses of decode windows", work.uses)
    yield _counter("expert_hits", "Uses found resident when the layer started", work.hits)
    yield _counter("copy_wait_seconds", "Time of steps waiting for a copy to arrive", work.copy_wait_s)
    yield _counter("expert_calls", "Calls to workers", work.expert_calls)
    yield _counter("expert_lane_calls", "Of them by the lane of one host", work.lane_calls)
    yield _counter("expert_fallbacks", "Experts the device computed because no worker did", work.fallback_experts)
    yield _counter("experts_streamed", "Experts copied for one layer and computed there", work.streamed_experts)
    yield _counter("experts_awaited", "Experts waited for on their way to a slot", work.awaited_experts)
    yield _counter("link_transfers", "Experts moved to the device", work.transfers)
    yield _counter("link_cancelled", "Transfers broken off for a newer plan", work.cancelled_transfers)
    yield _counter("link_bytes", "Bytes moved to the device", work.bytes_moved)
    yield _counter("link_busy_seconds", "Time that the link was busy", work.transfer_s)
    yield _counter("link_hidden_seconds", "Of it, while the device was computing", work.transfer_hidden_s)
    yield _counter("request_restarts", "Requests taken up again after the device was lost", work.restarts)


def _speculation(speculation: pb.SpeculationStatus) -> Iterator[Metric]:
    steps = {(entry.kind or NO_DRAFT, str(entry.gamma)): entry.steps for entry in speculation.steps}
    rates = {("best",): speculation.predicted_rate, ("none",): speculation.predicted_unassisted_rate}
    yield _counters("steps", "Decode steps by draft and tokens of it", steps, "draft", "gamma")
    for name, text, field in (
        ("governor_steps", "Steps by the reason for their draft", "steps"),
        ("governor_seconds", "Time of these steps", "seconds"),
        ("governor_tokens", "Tokens of these steps", "tokens"),
        ("governor_promised_tokens", "Tokens that the best choice promised for their time", "promised_tokens"),
    ):
        counts = {(total.reason,): getattr(total, field) for total in speculation.decisions}
        yield _counters(name, text, counts, "reason")
    yield _gauge("governor_exploration_loss", "Share of the time that exploring lost", speculation.exploration_loss)
    yield _gauges("governor_tokens_per_second", "Promised last, by the best draft and by none", rates, "draft")
    for name, text, field in (
        ("draft_tokens_proposed", "Draft tokens by position", "proposed"),
        ("draft_tokens_accepted", "Draft tokens that stood, by position", "accepted"),
    ):
        counts = {
            (draft.kind, str(position)): count
            for draft in speculation.drafts
            for position, count in enumerate(getattr(draft, field), start=1)
        }
        yield _counters(name, text, counts, "draft", "position")


def _planning(planning: pb.PlanningStatus) -> Iterator[Metric]:
    plans = {(entry.solver, entry.status): entry.plans for entry in planning.plans}
    errors = {(actor,): error for actor, error in planning.prediction_errors.items()}
    yield _counters("plans", "Plans made", plans, "solver", "status")
    yield _counter("plans_undelivered", "Plans that did not reach the device", planning.undelivered)
    yield _histogram("plan_seconds", "Time a plan took", planning.plan_s)
    yield _gauge("plan_duty", "Time spent planning over that of steps", planning.duty)
    if planning.HasField("last"):
        last = planning.last
        transfers = {("wanted",): last.transfers_wanted, ("allowed",): last.transfers_allowed}
        yield _gauge("plan_epoch", "Of the last plan", last.epoch)
        yield _gauge("plan_gap", "(objective - bound) / objective of the last plan; 0: proved optimal", last.gap)
        yield _gauge("plan_drift", "Share of expected pairs that moved before the last plan", last.drift)
        yield _gauge("plan_hot_experts", "Experts that the last plan wants resident", last.hot)
        yield _gauges("plan_transfers", "Experts that the last plan moves", transfers, "limit")
        yield _gauge("plan_link_budget_bytes", "Bytes that the last plan may move", last.link_budget_bytes)
    yield _gauge("prefetch_open", "0: few transfers were used, plans make none but for probes", planning.prefetch_open)
    if planning.HasField("prefetch_recall"):
        recall = planning.prefetch_recall
        yield _gauge("prefetch_recall", "Share of recent transfers used before eviction", recall)
    yield _gauges("cost_prediction_error", "Median relative error of predicted times", errors, "actor")


def _memory(status: pb.StatusReply) -> Iterator[Metric]:
    device, prefetcher = status.device, status.prefetcher
    yield _gauge("expert_slots", "Experts that the device has room for", device.slots)
    yield _gauge("resident_experts", "Experts resident on the device", len(device.resident))
    yield _gauge("resident_bytes", "Their size", device.resident_bytes)
    yield _gauge("kv_budget_bytes", "Room for KV caches", device.kv_budget_bytes)
    yield _gauge("kv_reserved_bytes", "KV caches of running requests", device.kv_reserved_bytes)
    yield _counter("stale_plans", "Plans that the device ignored because it held a newer one", device.stale_plans)
    yield _gauge("arena_bytes", "Host memory for experts", prefetcher.arena_bytes)
    yield _gauge("arena_loaded_bytes", "Experts in it", prefetcher.loaded_bytes)
    yield _counter("disk_read_bytes", "Read from disk", prefetcher.disk_bytes_read)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"moespac_{name}", text, value=float(value))


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"moespac_{name}", text, value=float(value))


def _gauges(name: str, text: str, values: Mapping[tuple[str, ...], float], *labels: str) -> Metric:
    return _labelled(GaugeMetricFamily(f"moespac_{name}", text, labels=labels), values.items())


def _counters(name: str, text: str, values: Mapping[tuple[str, ...], float], *labels: str) -> Metric:
    return _labelled(CounterMetricFamily(f"moespac_{name}", text, labels=labels), values.items())


def _labelled(family, values: Iterable[tuple[tuple[str, ...], float]]) -> Metric:
    for labels, value in values:
        family.add_metric(labels, float(value))
    return family


def _histogram(name: str, text: str, histogram: pb.Histogram) -> Metric:
    bounds = [*map(str, histogram.bounds), "+Inf"]
    buckets = list(zip(bounds, accumulate(histogram.counts), strict=True))
    return HistogramMetricFamily(f"moespac_{name}", text, buckets=buckets, sum_value=histogram.sum)
