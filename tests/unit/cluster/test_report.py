"""Tables show what the statistics say, and say so when there is nothing to say."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from moespac.cluster.client import GenerationStatistics
from moespac.cluster.report import generation_table, human_bytes, human_seconds, status_table
from moespac.protos.v1 import generation_pb2 as pb
from moespac.protos.v1 import steps_pb2

FULL = pb.Statistics(
    finish_reason=pb.Statistics.LENGTH,
    prompt_tokens=7,
    tokens=128,
    ttft_s=0.0625,
    tpot_s=0.02,
    tokens_per_second=47.25,
    steps=40,
    proposed=160,
    accepted=88,
    drafts=[pb.DraftStatistics(kind="self", steps=40, proposed=[40, 40, 40, 40], accepted=[30, 25, 20, 13])],
    demand=200,
    demand_predicted=170,
    uses=1000,
    hits=750,
    bytes_moved=3 * 1024 * 1024 // 2,
    transfer_s=0.5,
    transfer_hidden_s=0.4,
    plan_ms=[float(n) for n in range(1, 101)],
    solver_statuses=["OPTIMAL"] * 60 + ["FEASIBLE"] * 39 + ["GREEDY"],
    solvers=["thresholds"] * 100,
    plan_gaps=[0.0] * 99 + [0.5],
    prefetch_recall=0.125,
    prefetch_closed=True,
    prediction_errors={"link": 0.05, "cpu-0": 0.25},
    expert_calls=321,
    fallback_experts=2,
    streamed_experts=44,
    awaited_experts=5,
    emulated=True,
    restarts=1,
    cancelled_transfers=3,
)


def rendered(table) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def test_ratios_follow_their_definitions():
    s = GenerationStatistics.from_proto(FULL)
    assert s.acceptance_rate == 88 / 160
    assert s.tokens_per_step == (40 + 88) / 40
    assert s.hit_rate == 0.75
    assert s.transfer_hidden_share == pytest.approx(0.8)
    assert s.plan_ms_p50 == pytest.approx(50.5) and s.plan_ms_p99 == pytest.approx(99.01)
    assert s.finish_reason == "length"
    assert s.solver_statuses[-1] == "GREEDY" and len(s.plan_ms) == 100


def test_ratios_of_nothing_are_none():
    s = GenerationStatistics.from_proto(pb.Statistics(tokens=1))
    assert (s.acceptance_rate, s.tokens_per_step, s.hit_rate, s.transfer_hidden_share) == (None,) * 4
    assert (s.plan_ms_p50, s.plan_ms_p99) == (None, None)
    text = rendered(generation_table(s))
    assert s.prefetch_recall is None and not s.prediction_errors and "recall" not in text and "gap" not in text
    assert "no plan was made" in text and "nan" not in text and "restarts" not in text


def test_table_has_every_figure():
    text = rendered(generation_table(GenerationStatistics.from_proto(FULL)))
    for row, *values in (
        ("tokens/s", "47.2"),
        ("TTFT", "62.5 ms"),
        ("TPOT", "20.0 ms"),
        ("acceptance rate", "55.0 %", "88 of 160"),
        ("drafted by self", "40 steps", "88 of 160"),
        ("demand recall", "85.0 %"),
        ("tokens per step", "3.20", "40 decode steps"),
        ("hit rate", "75.0 %"),
        ("bytes moved", "1.5 MiB", "emulated link; 3 transfers cancelled"),
        ("transfer time hidden", "80.0 %", "400.0 ms of 500.0 ms"),
        ("plan time p50 / p99", "50.5 / 99.0 ms", "39 FEASIBLE, 1 GREEDY, 60 OPTIMAL"),
        ("plan gap", "0.5 %", "largest 50.0 %", "100 thresholds"),
        ("prefetch recall", "12.5 %", "only probes"),
        ("prediction error", "cpu-0 25.0 %, link 5.0 %"),
        ("expert calls", "321", "2 experts fell back"),
        ("streamed", "44", "5 waited for"),
        ("restarts", "1"),
    ):
        line = next(line for line in text.splitlines() if row in line)
        assert all(value in line for value in values), line


def test_a_real_link_is_not_called_emulated():
    real = pb.Statistics()
    real.CopyFrom(FULL)
    real.emulated = False
    assert "emulated" not in rendered(generation_table(GenerationStatistics.from_proto(real)))


def test_status_shows_actors_device_and_arena():
    status = pb.StatusReply(
        version="1.2.3",
        deployment="home",
        ready=True,
        running=2,
        waiting=5,
        plan_epoch=17,
        uptime_s=3725,
        actors=[
            pb.ActorInfo(name="gpu-0", kind="gpu_device", pid=42, node="0123456789abcdef", ready=True),
            pb.ActorInfo(name="cpu-0", kind="cpu_worker", ready=False),
        ],
        device=steps_pb2.DeviceDescription(
            name="gpu-0", torch_device="cpu", emulated=True, slots=64, context_length=1024
        ),
        prefetcher=steps_pb2.PrefetcherDescription(arena_bytes=2**25, loaded_bytes=2**20),
    )
    text = rendered(status_table(status))
    for expected in ("home: ready", "1.2.3", "1 h 02 min", "2 running, 5 waiting", "epoch 17", "0 of 64 slots"):
        assert expected in text
    assert "emulated link" in text and "1.0 MiB of 32.0 MiB" in text and "01234567 " in text
    line = next(line for line in text.splitlines() if "cpu_worker" in line)
    assert " no " in line


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (2**40, "1.0 TiB"), (2**52, "4096.0 TiB")]
)
def test_human_bytes(value, text):
    assert human_bytes(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.0123, "12.3 ms"), (1.5, "1.50 s"), (150, "2 min 30 s"), (7260, "2 h 01 min")]
)
def test_human_seconds(value, text):
    assert human_seconds(value) == text
