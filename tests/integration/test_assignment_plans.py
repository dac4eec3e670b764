"""Per-expert plans in the whole system, with two CPU workers whose costs are known from before."""

from __future__ import annotations

from collections import Counter

import pytest
from services import PROMPTS, bundled_deployment

from moespac import Client
from moespac.actors.core import CostSample
from moespac.actors.cost_conditions import conditions
from moespac.actors.cost_file import CostFile
from moespac.actors.hardware import host_hardware
from moespac.actors.policy.cost import LINK, RING
from moespac.actors.prefetcher.convert import ensure_store
from moespac.actors.prefetcher.store import ExpertStore
from moespac.actors.transport.endpoint import Endpoint
from moespac.cluster.reference import greedy_reference
from moespac.cluster.serve import Service
from moespac.configs import Deployment

TOKENS = 48
SEEMS = {"cpu-0": 3e-4, "cpu-1": 1e-4}
"""Seconds an expert; in truth the two are alike."""


def deployment(workers: int, **scheduler) -> Deployment:
    made = bundled_deployment("test-assignment", plan_form="assignment", replan_every=2, **scheduler)
    (cpu,) = made.workers
    more = tuple(cpu.model_copy(update={"name": f"cpu-{at}"}) for at in range(1, workers))
    return made.model_copy(update={"devices": (*made.devices, *more)})


def measured_before(made: Deployment) -> CostFile:
    """Leaves the costs of a service that ran before."""
    path = ensure_store(made.model.target)
    store = ExpertStore.open(path)
    store.close()
    names = ("prefetcher", *(device.name for device in made.devices))
    endpoints = {name: Endpoint(name, "", "127.0.0.1:1", hardware=host_hardware()) for name in names}
    samples = [CostSample(LINK, 1, 0, 2e-3)] * 8
    for worker, expert_s in SEEMS.items():
        sizes = [(1 + at % 16, (1 + at % 16) * (1 + at % 3)) for at in range(RING)]
        samples += [CostSample(worker, n, pairs, 2e-4 + expert_s * n) for n, pairs in sizes]
    file = CostFile(path)
    file.save(conditions(made, store.fingerprint, endpoints, "prefetcher"), samples)
    return file


def ask(server: str, made: Deployment, prompts: list[str], gammas: tuple[int | None, ...]) -> tuple[list, list]:
    """Generates, and compares with eager transformers; returns the statistics and the spans of all generations."""
    statistics, spans = [], []
    with Client(server) as client:
        for at, prompt in enumerate(prompts):
            gamma = gammas[at % len(gammas)]
            generation = client.generate(prompt, max_tokens=TOKENS, ignore_eos=True, gamma=gamma, trace=True)
            list(generation)
            assert list(generation.token_ids) == greedy_reference(made.model.target, prompt, TOKENS)
            statistics.append(generation.statistics)
            spans += generation.spans
    return statistics, spans


def check_plans(statistics: list, spans: list) -> list:
    plans = [span for span in spans if span.row == "planning"]
    assert plans and {plan.args["solver"] for plan in plans} == {"assignment"}
    statuses = {status for each in statistics for status in each.solver_statuses}
    assert statuses & {"OPTIMAL", "FEASIBLE"} and statuses <= {"OPTIMAL", "FEASIBLE", "GREEDY"}
    assert sum(each.bytes_moved for each in statistics) > 0, "what a plan wants is sent"
    assert sum(each.hits for each in statistics) > 0 and sum(each.expert_calls for each in statistics) > 0
    assert sum(each.fallback_experts for each in statistics) == 0
    return plans


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_workers_share_by_what_was_measured_before(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = deployment(workers=2)
    file = measured_before(made)
    with Service(made) as running:
        statistics, spans = ask(running.server, made, PROMPTS[:3], (None, 0, 8))
    plans = check_plans(statistics, spans)
    assert {"error cpu-0", "error cpu-1"} <= plans[0].args.keys(), "the planner knows both from the start"
    asked = Counter()
    for span in spans:
        if span.row in SEEMS:
            asked[span.row] += int(span.args["experts"])
    assert 0 < asked["cpu-0"] < 0.75 * asked["cpu-1"], "the device too: the one that seems slower gets less"
    kept = file.read()
    assert {"gpu-0", "cpu-0", "cpu-1"} <= kept.actors.keys()
    assert all(len(kept.samples(worker)) == RING for worker in SEEMS)
    assert any(sample.seconds != 2e-4 + SEEMS["cpu-1"] * sample.experts for sample in kept.samples("cpu-1"))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("workers", [1, 2])
def test_tokens_are_the_references_whatever_is_planned(tmp_path, monkeypatch, workers):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = deployment(workers)
    with Service(made) as running:
        statistics, spans = ask(running.server, made, PROMPTS[:4], (None, 0, 4, 8))
    assert len(check_plans(statistics, spans)) >= 3
