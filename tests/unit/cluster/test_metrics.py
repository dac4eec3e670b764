"""Metrics and the status table say what the status says, in names and labels that last."""

from __future__ import annotations

import io
import re

import grpc
from prometheus_client import CollectorRegistry, generate_latest
from rich.console import Console
from scraping import samples

from moespac.actors.histogram import empty_histogram, observe
from moespac.cluster.gateway.metrics import families
from moespac.cluster.gateway.request_totals import OUTCOMES, RequestTotals
from moespac.cluster.status_report import decisions_table
from moespac.protos.v1 import generation_pb2 as pb
from moespac.protos.v1 import steps_pb2


def full_status() -> pb.StatusReply:
    requests = RequestTotals()
    requests.add(pb.Statistics(finish_reason=pb.Statistics.LENGTH, tokens=9, ttft_s=0.3, tpot_s=0.015))
    requests.add(pb.Statistics(finish_reason=pb.Statistics.STOP, tokens=1, ttft_s=0.7))
    requests.add(grpc.StatusCode.RESOURCE_EXHAUSTED)
    plan_s = empty_histogram((0.01, 0.03))
    observe(plan_s, 0.02)
    last = pb.PlanInfo(
        epoch=7,
        solver="thresholds",
        status="OPTIMAL",
        gap=0.0125,
        seconds=0.02,
        drift=0.125,
        hot=64,
        transfers_wanted=9,
        transfers_allowed=5,
        link_budget_bytes=5 * 98304,
    )
    return pb.StatusReply(
        version="1.2.3",
        deployment="home",
        ready=True,
        running=2,
        device=steps_pb2.DeviceDescription(slots=64, stale_plans=3, resident=[steps_pb2.ExpertRef()] * 5),
        work=pb.WorkTotals(tokens=10, steps=4, accepted=6, uses=100, hits=75, bytes_moved=4096, restarts=1),
        speculation=pb.SpeculationStatus(
            steps=[pb.DraftedSteps(steps=1), pb.DraftedSteps(kind="model", gamma=4, steps=3)],
            decisions=[
                pb.DecisionTotals(reason="best", steps=3, seconds=0.5, tokens=9, promised_tokens=10),
                pb.DecisionTotals(reason="explore", steps=1, seconds=0.1, tokens=1, promised_tokens=2),
            ],
            drafts=[pb.DraftStatistics(kind="model", steps=3, proposed=[3, 3], accepted=[3, 1])],
            exploration_loss=0.005,
            predicted_rate=20,
            predicted_unassisted_rate=12,
        ),
        planning=pb.PlanningStatus(
            estimator="best",
            plans=[pb.PlanCount(solver="thresholds", status="OPTIMAL", plans=7)],
            last=last,
            plan_s=plan_s,
            duty=0.021,
            prefetch_open=False,
            prefetch_recall=0.14,
            prediction_errors={"gpu-0": 0.25, "link": 0.05},
        ),
        requests=requests.message(),
    )


def scraped(status: pb.StatusReply, up: bool) -> dict[str, float]:
    class Once:
        def collect(self):
            return families(status, up)

    registry = CollectorRegistry()
    registry.register(Once())
    return samples(generate_latest(registry).decode())


FIGURES = {
    "up": 1,
    'requests_total{outcome="length"}': 1,
    'requests_total{outcome="refused"}': 1,
    'requests_total{outcome="cancelled"}': 0,
    "ttft_seconds_count": 2,
    'ttft_seconds_bucket{le="0.5"}': 1,
    'ttft_seconds_bucket{le="+Inf"}': 2,
    "tpot_seconds_count": 1,
    "tpot_seconds_sum": 0.015,
    "tokens_total": 10,
    'steps_total{draft="none",gamma="0"}': 1,
    'steps_total{draft="model",gamma="4"}': 3,
    'governor_promised_tokens_total{reason="best"}': 10,
    'governor_steps_total{reason="explore"}': 1,
    "governor_exploration_loss": 0.005,
    'governor_tokens_per_second{draft="none"}': 12,
    'draft_tokens_accepted_total{draft="model",position="2"}': 1,
    "expert_uses_total": 100,
    "expert_hits_total": 75,
    "link_bytes_total": 4096,
    "request_restarts_total": 1,
    'plans_total{solver="thresholds",status="OPTIMAL"}': 7,
    'plan_seconds_bucket{le="0.03"}': 1,
    "plan_gap": 0.0125,
    'plan_transfers{limit="allowed"}': 5,
    "prefetch_recall": 0.14,
    "prefetch_open": 0,
    'cost_prediction_error{actor="gpu-0"}': 0.25,
    "resident_experts": 5,
    "stale_plans_total": 3,
}


def test_every_figure_is_a_metric():
    found = scraped(full_status(), True)
    assert {name: found[f"moespac_{name}"] for name in FIGURES} == FIGURES


def test_of_a_scheduler_that_is_away_nothing_is_made_up():
    found = scraped(pb.StatusReply(requests=RequestTotals().message()), False)
    assert found["moespac_up"] == 0
    names = {re.sub(r"^moespac_|(_bucket|_count|_sum)?({.*)?$", "", name) for name in found}
    assert names == {"up", "ready", "info", "requests_total", "ttft_seconds", "tpot_seconds"}


def test_a_scheduler_that_has_no_plan_yet_is_shown():
    bare = pb.StatusReply(requests=RequestTotals().message(), work=pb.WorkTotals(), planning=pb.PlanningStatus())
    bare.planning.plan_s.CopyFrom(empty_histogram((0.1,)))
    assert not {"moespac_plan_gap", "moespac_prefetch_recall"} & set(scraped(bare, True))
    assert "none yet" in rendered(bare) and "–" in rendered(bare)
    bare.ClearField("planning")
    assert scraped(bare, True)["moespac_up"] == 1


def test_each_request_has_one_outcome():
    totals = RequestTotals()
    for code in grpc.StatusCode:
        totals.add(code)
    outcomes = totals.message().outcomes
    assert set(outcomes) == set(OUTCOMES) and sum(outcomes.values()) == len(grpc.StatusCode)
    assert outcomes["cancelled"] == outcomes["deadline"] == outcomes["unavailable"] == 1
    assert sum(totals.message().ttft_s.counts) == 0


def rendered(status: pb.StatusReply) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(decisions_table(status))
    return console.export_text()


def test_the_status_table_has_every_decision():
    text = rendered(full_status())
    for row, *values in (
        ("requests", "3", "1 length, 1 refused, 1 stop", "500.0 ms"),
        ("tokens", "10", "2.50 a step"),
        ("hit rate", "75.0 %", "75 of 100"),
        ("bytes moved", "4.0 KiB"),
        ("steps by draft", "model 3, none 1", "4 (75.0 %)"),
        ("accepted of model", "66.7 %", "100.0 %, 33.3 %"),
        ("choices", "best 3, explore 1", "best: 20.0 tokens/s promised, 18.0 seen", "exploring lost 0.5 %"),
        ("plans", "7", "7 thresholds OPTIMAL", "2.1 %", "estimator best"),
        ("plan 7", "thresholds OPTIMAL", "gap 1.2 %", "drift 12.5 %", "64 hot", "9 transfers wanted, 5 allowed"),
        ("prefetch", "closed", "14.0 %", "only probes"),
        ("times predicted", "gpu-0 25.0 %, link 5.0 %"),
    ):
        line = next(line for line in text.splitlines() if row in line)
        assert all(value in line for value in values), line
