"""The whole system over its public face: bundled models, Ray, gRPC, the client SDK."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time

import pytest
from scraping import scrape
from services import PROMPTS, bundled_deployment

from moespac import AsyncClient, Client
from moespac.cluster.client import Cancelled, DeadlineExceeded, InvalidRequest, ResourceExhausted
from moespac.cluster.reference import greedy_reference
from moespac.cluster.serve import Service

TOKENS = 48


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        deployment = bundled_deployment("test-service", max_waiting=1, max_running=3)
        measured = deployment.service.model_copy(update={"metrics_port": 0})
        with Service(deployment.model_copy(update={"service": measured})) as running:
            yield running


@pytest.fixture
def client(service):
    with Client(service.server) as connected:
        connected.wait_ready(60)
        yield connected


@pytest.fixture(scope="module")
def expected(service) -> dict[str, list[int]]:
    target = bundled_deployment("test-service").model.target
    return {prompt: greedy_reference(target, prompt, TOKENS) for prompt in PROMPTS[:4]}


def greedy(client: Client, prompt: str, **options) -> list[int]:
    generation = client.generate(prompt, max_tokens=TOKENS, ignore_eos=True, **options)
    assert "".join(generation) == generation.text
    return list(generation.token_ids)


def read(client: Client, prompt: str, **options) -> str:
    return "".join(client.generate(prompt, **options))


@pytest.mark.parametrize("gamma", [0, 4, 8])
def test_tokens_equal_eager_transformers(client, expected, gamma):
    for prompt, tokens in expected.items():
        assert greedy(client, prompt, gamma=gamma) == tokens


def test_statistics_tell_what_happened(client, expected):
    generation = client.generate(PROMPTS[0], max_tokens=TOKENS, ignore_eos=True, trace=True)
    pieces = list(generation)
    statistics = generation.statistics
    assert statistics.tokens == TOKENS == len(generation.token_ids) and len(pieces) > 1
    assert statistics.finish_reason == "length"
    assert 0 < statistics.accepted <= statistics.proposed
    assert statistics.steps < TOKENS, "some step must have given more than one token"
    assert 0 < statistics.hits < statistics.uses
    assert statistics.expert_calls > 0 and statistics.fallback_experts == 0
    assert 0 < statistics.lane_calls <= statistics.expert_calls
    assert 0 < statistics.ttft_s < 60 and 0 < statistics.tpot_s < 60
    assert statistics.emulated
    rows = {span.row for span in generation.spans}
    assert {"governor", "draft", "trunk", "local experts", "cpu-0"} <= rows
    # Device and worker share this machine.
    assert "lane" in {span.args.get("way") for span in generation.spans if span.row == "cpu-0"}
    assert sum(sum(draft.proposed) for draft in statistics.drafts) == statistics.proposed
    assert all(span.end_ns >= span.start_ns for span in generation.spans)


def test_plans_move_experts(client):
    """Utilities rise while decoding: plans are made by the solver, and transfers follow."""
    total = 0
    for prompt in PROMPTS[:8]:
        generation = client.generate(prompt, max_tokens=96, ignore_eos=True)
        list(generation)
        total += generation.statistics.bytes_moved
        if total and {"OPTIMAL", "FEASIBLE"} & set(generation.statistics.solver_statuses):
            return
    pytest.fail(f"{total} bytes moved, solver statuses {generation.statistics.solver_statuses}")


def test_what_was_decided_is_in_the_status_and_in_the_metrics(service, client):
    before = client.status()
    generation = client.generate(PROMPTS[6], max_tokens=96, ignore_eos=True)
    list(generation)
    done, status = generation.statistics, client.status()
    work, speculation, planning = status.work, status.speculation, status.planning
    assert (work.tokens - before.work.tokens, work.steps - before.work.steps) == (96, done.steps)
    assert work.prefill_tokens - before.work.prefill_tokens == done.prompt_tokens
    assert (work.uses - before.work.uses, work.hits - before.work.hits) == (done.uses, done.hits)
    assert work.decode_s > work.draft_s > 0 and work.expert_calls > 0
    assert sum(entry.steps for entry in speculation.steps) == work.steps
    assert {total.reason for total in speculation.decisions} <= {"best", "explore", "fixed"}
    assert sum(sum(draft.accepted) for draft in speculation.drafts) == work.accepted
    assert speculation.predicted_rate >= speculation.predicted_unassisted_rate > 0
    assert planning.estimator == "best" and planning.last.solver == "thresholds"
    assert sum(planning.plan_s.counts) == sum(entry.plans for entry in planning.plans) > 0
    assert {"gpu-0", "cpu-0"} <= set(planning.prediction_errors) == set(done.prediction_errors)
    assert len(done.plan_ms) == len(done.plan_gaps) == len(done.solvers)
    assert status.requests.outcomes["length"] == before.requests.outcomes["length"] + 1
    metrics = scrape(service.metrics_url())
    assert metrics["moespac_up"] == metrics["moespac_ready"] == 1
    assert metrics["moespac_tokens_total"] == work.tokens and metrics["moespac_expert_hits_total"] == work.hits
    assert metrics['moespac_requests_total{outcome="length"}'] == status.requests.outcomes["length"]
    assert metrics["moespac_ttft_seconds_count"] > 0 and metrics["moespac_plan_seconds_count"] > 0
    assert sum(v for name, v in metrics.items() if name.startswith("moespac_steps_total{")) == work.steps
    assert metrics['moespac_cost_prediction_error{actor="cpu-0"}'] > 0
    assert 0 < metrics["moespac_resident_experts"] <= metrics["moespac_expert_slots"] == 64 - 4  # of staging


def test_a_seed_gives_the_same_text_for_every_gamma(client):
    texts = {
        read(client, PROMPTS[2], max_tokens=TOKENS, temperature=0.9, top_p=0.95, top_k=40, seed=11, gamma=gamma)
        for gamma in (0, 3, 8)
    }
    assert len(texts) == 1
    other = read(client, PROMPTS[2], max_tokens=TOKENS, temperature=0.9, top_p=0.95, top_k=40, seed=12)
    assert other not in texts


@pytest.mark.parametrize("options", [{}, {"temperature": 0.8, "top_p": 0.9, "presence_penalty": 0.5, "seed": 5}])
def test_a_stop_string_cuts_the_same_text_for_every_gamma(client, options):
    whole = read(client, PROMPTS[1], max_tokens=TOKENS, ignore_eos=True, **options)
    stop = whole[len(whole) // 2 : len(whole) // 2 + 5]
    cuts = []
    for gamma in (0, 4, 8):
        generation = client.generate(PROMPTS[1], TOKENS, gamma=gamma, stop=[stop], ignore_eos=True, **options)
        assert "".join(generation) == whole[: whole.index(stop)]
        statistics = generation.statistics
        assert (statistics.finish_reason, statistics.stop, statistics.tokens) == (
            "stop",
            stop,
            len(generation.token_ids),
        )
        cuts.append(generation.token_ids)
    assert cuts[0] == cuts[1] == cuts[2]
    assert_nothing_held(client)


def test_log_probabilities_bias_and_the_end_of_text(client):
    def run(**options):
        generation = client.generate(PROMPTS[2], max_tokens=16, temperature=0.9, seed=2, **options)
        list(generation)
        return generation

    plain, drafted = run(logprobs=2, gamma=0), run(logprobs=2, gamma=8)
    assert plain.token_ids == drafted.token_ids == [entry.token for entry in drafted.logprobs]
    for one, other in zip(plain.logprobs, drafted.logprobs, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-3)
        assert len(other.top) == 2 and other.top[0][1] >= max(other.top[1][1], other.logprob)
    banned = plain.token_ids[0]
    assert banned not in run(logit_bias={banned: -1e4}).token_ids
    (end, *_) = client.status().device.eos_token_ids
    ended = run(logit_bias={end: 1e3})
    assert ended.text == "" and ended.token_ids == [] and ended.statistics.stop_token_id == end
    stopped = run(stop_token_ids=[plain.token_ids[5]])
    assert stopped.token_ids == plain.token_ids[: plain.token_ids.index(plain.token_ids[5])]
    assert stopped.statistics.stop_token_id == plain.token_ids[5]


def test_rejection_sampling(client):
    """Without drafts it is sampling as always; with them a seed does not fix the text."""
    options = {"max_tokens": 24, "temperature": 0.9, "seed": 3, "ignore_eos": True}
    plain = read(client, PROMPTS[3], gamma=0, **options)
    assert read(client, PROMPTS[3], gamma=0, verification="rejection", **options) == plain
    generation = client.generate(PROMPTS[3], gamma=4, verification="rejection", **options)
    assert "".join(generation) == generation.text
    assert generation.statistics.tokens == 24 and generation.statistics.proposed > 0


def test_two_at_once_one_leaves(service, client, expected):
    prompts = list(expected)[:2]
    leaver = client.generate(PROMPTS[5], max_tokens=400, ignore_eos=True)
    stream = iter(leaver)
    next(stream)
    results: dict[str, list[int]] = {}

    def ask(prompt: str) -> None:
        with Client(service.server) as own:
            results[prompt] = greedy(own, prompt)

    threads = [threading.Thread(target=ask, args=(prompt,)) for prompt in prompts]
    for thread in threads:
        thread.start()
    next(stream)
    leaver.cancel()
    for thread in threads:
        thread.join(120)
    assert results == {prompt: expected[prompt] for prompt in prompts}
    assert_nothing_held(client)


def assert_nothing_held(client: Client) -> None:
    give_up = time.monotonic() + 20
    while True:
        status = client.status()
        if status.running == status.waiting == status.device.kv_reserved_bytes == 0:
            return
        assert time.monotonic() < give_up, f"still held: {status}"
        time.sleep(0.2)


def test_async_clients(service, expected):
    async def ask(prompt: str) -> list[int]:
        async with AsyncClient(service.server) as client:
            generation = client.generate(prompt, max_tokens=TOKENS, ignore_eos=True)
            async for _ in generation:
                pass
            return list(generation.token_ids)

    async def both():
        return await asyncio.gather(*(ask(prompt) for prompt in list(expected)[:2]))

    assert asyncio.run(both()) == [expected[prompt] for prompt in list(expected)[:2]]


def test_a_deadline_ends_the_request_and_frees_it(client):
    with pytest.raises(DeadlineExceeded):
        read(client, PROMPTS[1], max_tokens=900, ignore_eos=True, timeout=0.5)
    assert_nothing_held(client)


def test_too_many_requests_are_refused_with_a_hint(client):
    running = [iter(client.generate(PROMPTS[i], max_tokens=500, ignore_eos=True)) for i in range(3)]
    for stream in running:
        next(stream)
    waiting = client.generate(PROMPTS[3], max_tokens=500, ignore_eos=True)

    def wait_in_line() -> None:
        with pytest.raises(Cancelled):
            list(waiting)

    waiter = threading.Thread(target=wait_in_line)
    waiter.start()
    give_up = time.monotonic() + 20
    while client.status().waiting == 0:
        assert time.monotonic() < give_up
        time.sleep(0.05)
    with pytest.raises(ResourceExhausted, match="waiting"):
        read(client, PROMPTS[4], max_tokens=8)
    waiting.cancel()
    for stream in running:
        stream.close()
    waiter.join(20)
    assert_nothing_held(client)


@pytest.mark.parametrize(
    ("prompt", "options", "words"),
    [
        ("", {}, "prompt"),
        ("x", {"max_tokens": 0}, "max_tokens"),
        ("x", {"max_tokens": -3}, "max_tokens"),
        ("word " * 2000, {}, "context"),
        ("x", {"temperature": -1.0}, "temperature"),
        ("x", {"top_p": 1.5}, "top_p"),
        ("x", {"repetition_penalty": -1.0}, "repetition_penalty"),
        ("x", {"logit_bias": {2**31: 1.0}}, "logit_bias: 2147483648 is no token"),
        ("x", {"stop": ["x" * 300]}, "stop"),
    ],
)
def test_bad_requests_name_the_field(client, prompt, options, words):
    with pytest.raises(InvalidRequest, match=words):
        read(client, prompt, **{"max_tokens": 4, **options})


def test_models_and_status(client):
    (model,) = client.models()
    assert (model.name, model.draft) == ("target", "draft")
    status = client.status()
    assert status.ready
    assert {actor.kind for actor in status.actors} == {
        "gpu_device", "cpu_worker", "prefetcher", "scheduler", "gateway",
    }  # fmt: skip
    assert len({actor.pid for actor in status.actors}) == len(status.actors), "actors are processes of their own"
    assert status.device.resident_bytes <= 6 * 2**20


@pytest.mark.parametrize("victim", ["cpu-0", "prefetcher", "gpu-0", "scheduler"])
def test_killing_an_actor_changes_no_token(client, expected, victim):
    """Killed in the middle of a stream, by process id; Ray brings it back, the stream goes on."""
    prompt, tokens = next(iter(expected.items()))
    pid = next(actor.pid for actor in client.status().actors if actor.name == victim)
    generation = client.generate(prompt, max_tokens=TOKENS, ignore_eos=True)
    stream = iter(generation)
    next(stream)
    os.kill(pid, signal.SIGKILL)
    for _ in stream:
        pass
    assert list(generation.token_ids) == tokens
    client.wait_ready(60)
    give_up = time.monotonic() + 60
    while True:
        actor = next(a for a in client.status().actors if a.name == victim)
        if actor.ready and actor.pid != pid:
            break
        assert time.monotonic() < give_up, f"{victim} did not come back"
        time.sleep(0.3)
    assert greedy(client, prompt) == tokens
