"""The device as other actors see it: a real prefetcher, a real worker, gRPC between all of them."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch
from tiny_device import make_draft_of, make_store, reference_tokens
from tiny_models import make_qwen3_dense, make_qwen3_moe
from tiny_worker import until_serving, worker

from moespac.actors.core import Sampling
from moespac.actors.gpu_device.actor import GpuDeviceActor
from moespac.actors.gpu_device.link import EmulatedLink
from moespac.actors.policy.chain import LONGEST, PLACES, UNKNOWN
from moespac.actors.policy.ngram import continuation, judge
from moespac.actors.prefetcher.actor import PrefetcherActor
from moespac.actors.transport.endpoint import Endpoint, PeerUnknown
from moespac.actors.transport.peers import open_channel
from moespac.configs import CpuDeviceConfig, Deployment, GpuDeviceConfig, LinkConfig, ModelConfig, PrefetcherConfig
from moespac.protos.v1 import steps_pb2 as pb
from moespac.protos.v1.steps_pb2_grpc import DeviceStub
from moespac.version import __version__

PROMPT = tuple(range(50, 62))
SLOTS = 6
KV_TOKENS = 200
KV_BYTES_PER_TOKEN = 2 * 384  # target and draft have the same shape


def _deployment(target: Path, draft: Path | None, **gpu) -> Deployment:
    gpu = {"torch_device": "emulated", "link": LinkConfig(bandwidth=50e6, latency=20e-6)} | gpu
    return Deployment(
        model=ModelConfig(target=target, draft=draft),
        devices=(
            GpuDeviceConfig(
                name="gpu-0", **{"expert_memory": SLOTS * 3072, "kv_memory": KV_TOKENS * KV_BYTES_PER_TOKEN} | gpu
            ),
            CpuDeviceConfig(name="cpu-0", arena="own", memory=2**20),
        ),
        prefetcher=PrefetcherConfig(host_memory=2**20),
        draft={"kinds": ["model", "ngram", "self"] if draft else []},
    )


@dataclass
class System:
    actor: GpuDeviceActor
    stub: DeviceStub
    target: Path

    def open(self, request_id: str, tokens=PROMPT, reserve: int = 60, scheduler: str = "", **sampling) -> None:
        message = pb.OpenRequest(
            request_id=request_id,
            token_ids=tokens,
            reserve_tokens=reserve,
            sampling=pb.Sampling(**sampling),
            scheduler=scheduler,
        )
        self.stub.Open(message, timeout=10)

    def step(self, request_id: str, gamma: int = 4, trace: bool = False, timeout: float = 30) -> pb.StepReply:
        drafts = [pb.DraftChoice(kind="model", gamma=gamma)] if gamma else []
        message = pb.StepRequest(request_id=request_id, drafts=drafts, prefill_chunk=8, trace=trace)
        return self.stub.Step(message, timeout=timeout)

    def close(self, request_id: str) -> None:
        self.stub.Close(pb.CloseRequest(request_id=request_id), timeout=10)

    def describe(self) -> pb.DeviceDescription:
        return self.stub.Describe(pb.DescribeRequest(), timeout=10)

    def until_resident(self, count: int) -> None:
        give_up = time.monotonic() + 20
        while len(self.describe().resident) < count:
            assert time.monotonic() < give_up, "the prefetcher does not fill the slots"
            time.sleep(0.02)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> tuple[Path, Path, Path]:
    folder = tmp_path_factory.mktemp("service")
    target = make_qwen3_moe(folder / "target")
    return target, make_draft_of(target, folder / "draft", 0.05), make_store(target, folder / "store")


@contextmanager
def _serving(target: Path, draft: Path | None, store: Path, **gpu) -> Iterator[System]:
    """Device and prefetcher, ready, and a worker."""
    known: dict[str, Endpoint] = {}

    def resolve(name: str) -> Endpoint:
        if name not in known:
            raise PeerUnknown(f"no actor {name}")
        return known[name]

    deployment = _deployment(target, draft, **gpu)
    # The device starts first: it waits for the prefetcher.
    device = GpuDeviceActor("gpu-0", deployment, store, "prefetcher", ["cpu-0"], "127.0.0.1", resolve)
    known["gpu-0"] = device.endpoint()
    prefetcher = PrefetcherActor("prefetcher", deployment, store, ("gpu-0",), "127.0.0.1", resolve)
    known["prefetcher"] = prefetcher.endpoint()
    try:
        with worker(store) as computing, open_channel(device.endpoint().address) as channel:
            known["cpu-0"] = computing.endpoint()
            until_serving(device.endpoint().address)
            assert device.ready() and device.failure() is None and device.progress()["stage"] == "ready"
            yield System(device, DeviceStub(channel), target)
    finally:
        device.stop()
        prefetcher.stop()


@pytest.fixture(scope="module")
def system(models) -> Iterator[System]:
    with _serving(*models) as running:
        yield running


def _code(call, *arguments, **keywords) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments, **keywords)
    return caught.value.code(), caught.value.details()


def test_it_says_what_it_is(system):
    told = system.describe()
    assert (told.name, told.version, told.torch_device, told.emulated) == ("gpu-0", __version__, "cpu", True)
    assert list(told.drafts) == ["model", "ngram", "self"]
    assert (told.slots, told.slot_bytes) == (SLOTS, 3072) and told.ready
    assert list(told.model.layer_ids) == [0, 1, 2] and told.model.n_experts == 8
    assert told.kv_bytes_per_token == KV_BYTES_PER_TOKEN and told.context_length == 256
    assert list(told.eos_token_ids) == [0]


def test_steps_yield_the_references_tokens_and_account_for_themselves(system):
    system.until_resident(SLOTS)
    system.open("a")
    tokens, replies = [], []
    while len(tokens) < 20:
        replies.append(system.step("a", gamma=min(4, 20 - len(tokens) - 1), trace=True))
        tokens.extend(replies[-1].emitted)
    system.close("a")
    assert tokens == reference_tokens(system.target, PROMPT, 20)
    assert [reply.prefill for reply in replies[:3]] == [True, True, False]
    assert replies[0].window.tokens == 8 and list(replies[0].emitted) == []
    for reply in replies:
        for row in reply.window.layers:
            assert sum(row.counts) == reply.window.tokens * 2
            assert row.used == sum(count > 0 for count in row.counts) and row.hits <= row.used
        assert {"trunk", "cpu-0"} <= {span.row for span in reply.spans}
        assert reply.timings.expert_calls > 0 and reply.timings.fallback_experts == 0
        assert {sample.actor for sample in reply.timings.samples} >= {"cpu-0"}
        assert len(reply.resident) <= SLOTS
    assert sum(row.hits for reply in replies for row in reply.window.layers) > 0


def test_a_fast_link_streams_what_a_prompt_wants(tmp_path):
    """All by what is measured: copies of 3 KiB over a fast link cost less than calls."""
    target = make_qwen3_moe(tmp_path / "target", num_experts=32)
    link = LinkConfig(bandwidth=10e9, latency=0.0)
    with _serving(target, None, make_store(target, tmp_path / "store"), link=link, expert_memory=40 * 3072) as system:
        told = system.describe()
        assert (told.slots, told.staging_slots) == (38, 2)
        system.until_resident(38)
        system.open("a", reserve=40)
        tokens, replies = [], []
        while len(tokens) < 12:
            replies.append(system.step("a", gamma=0, trace=True))
            tokens.extend(replies[-1].emitted)
        assert tokens == reference_tokens(target, PROMPT, 12)
        assert sum(reply.timings.streamed_experts for reply in replies) > 0
        assert sum(reply.timings.bytes_moved for reply in replies) > 0
        assert {"streamed experts", "transfers"} <= {span.row for reply in replies for span in reply.spans}
        assert all(reply.timings.fallback_experts == 0 for reply in replies)


def test_plans_and_fills(system):
    system.until_resident(SLOTS)

    def plan(epoch: int, wanted: int) -> pb.Plan:
        """All layers want expert `wanted` only."""
        utilities = [5 if e == wanted else 0 for e in range(8)]
        layers = [pb.LayerPlan(layer=layer, threshold=1, utilities=utilities) for layer in range(3)]
        return pb.Plan(epoch=epoch, layers=layers, link_budget_bytes=2**20, solver_status="GREEDY")

    def fill(layer: int, expert: int, epoch: int, utility: int = 5) -> pb.FillReply:
        message = pb.FillRequest(expert=pb.ExpertRef(layer=layer, expert=expert), plan_epoch=epoch, utility=utility)
        return system.stub.Fill(message, timeout=10)

    assert system.stub.SetPlan(plan(7, 6), timeout=10).accepted
    refused = system.stub.SetPlan(plan(6, 5), timeout=10)
    assert not refused.accepted and refused.epoch_held == 7 and system.describe().stale_plans == 1
    assert fill(0, 1, epoch=6).outcome == pb.FillReply.STALE
    absent = next(e for e in range(6) if (1, e) not in {(r.layer, r.expert) for r in system.describe().resident})
    assert fill(1, absent, epoch=7, utility=0).outcome == pb.FillReply.NO_VICTIM
    # The device lets go of its least useful; the prefetcher, told of no plan, does not interfere.
    missing = next(la for la in range(3) if (la, 6) not in {(r.layer, r.expert) for r in system.describe().resident})
    filled = fill(missing, 6, epoch=7)
    assert filled.outcome == pb.FillReply.FILLED and filled.bytes == 3072 and len(filled.evicted) == 1
    assert fill(missing, 6, epoch=7).outcome == pb.FillReply.ALREADY_RESIDENT
    assert len(system.describe().resident) == SLOTS
    code, text = _code(fill, 0, 8, epoch=7)
    assert code is grpc.StatusCode.INVALID_ARGUMENT and "expert" in text
    system.open("planned")
    assert system.step("planned").plan_epoch == 7
    system.close("planned")


def test_how_a_draft_is_to_end_is_heeded_or_refused(system):
    def step(**ends) -> pb.StepReply:
        drafts = [pb.DraftChoice(kind="model", gamma=4, **ends)]
        return system.stub.Step(pb.StepRequest(request_id="a", drafts=drafts, prefill_chunk=64), timeout=30)

    text = PROMPT * 2
    system.open("a", tokens=text)
    text += tuple(step().emitted)
    reply = step()
    assert reply.proposed == len(reply.confidences) == 4 and not reply.prefill
    text += tuple(reply.emitted)
    reply = step(chances=[0.0] * PLACES, floors=[0.5] * LONGEST)
    assert reply.proposed == len(reply.confidences) == 1 and reply.confidences[0] < UNKNOWN
    found = continuation(np.array(text, np.uint32), np.empty(0, np.uint32), LONGEST)
    assert (reply.ngram_match, reply.ngram_found, reply.ngram_stood) == judge(found, reply.emitted)[:3]
    for ends, told in {
        "chances of 'model': 3 values: give 12 or none": {"chances": [0.5] * 3},
        "chances of 'model': 1.5 is no chance: give 0 to 1": {"chances": [1.5] * PLACES},
        "chances of 'model': nan is no chance: give 0 to 1": {"chances": [math.nan] * PLACES},
        "floors of 'model': 17 values: give at most 16": {"floors": [0.5] * 17},
        "floors of 'model': inf is no floor: give finite numbers": {"floors": [math.inf]},
    }.items():
        assert _code(step, **told) == (grpc.StatusCode.INVALID_ARGUMENT, f"drafts: {ends}")
    system.close("a")


def test_requests_that_cannot_be_are_refused(system):
    invalid = grpc.StatusCode.INVALID_ARGUMENT
    assert _code(system.open, "x", tokens=[]) == (invalid, "token_ids: empty: a prompt needs at least one token")
    code, text = _code(system.open, "x", tokens=[1] * 257, reserve=260)
    assert code is invalid and "257 tokens, the model's context has 256" in text
    code, text = _code(system.open, "x", tokens=[320])
    assert code is invalid and "vocabulary has 320" in text
    assert _code(system.open, "x", reserve=5)[0] is invalid
    assert _code(system.open, "")[0] is invalid
    assert _code(system.step, "never opened")[0] is grpc.StatusCode.NOT_FOUND
    assert system.describe().kv_reserved_bytes == 0


def test_the_kv_budget_admits_refuses_and_is_given_back(system):
    system.open("one", reserve=150)
    code, text = _code(system.open, "two", reserve=100)
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED and "wait for running requests" in text
    system.open("one", reserve=100)  # a scheduler that starts anew
    assert system.describe().kv_reserved_bytes == 100 * KV_BYTES_PER_TOKEN
    system.open("two", reserve=100)
    for name in ("one", "two", "two"):
        system.close(name)
    assert system.describe().kv_reserved_bytes == 0


def test_a_new_scheduler_finds_nothing_of_its_predecessor(system):
    system.open("mine", reserve=80, scheduler="first")
    system.open("mine too", reserve=80, scheduler="first")
    assert system.describe().kv_reserved_bytes == 160 * KV_BYTES_PER_TOKEN
    system.open("theirs", reserve=150, scheduler="second")
    assert system.describe().kv_reserved_bytes == 150 * KV_BYTES_PER_TOKEN
    assert _code(system.step, "mine")[0] is grpc.StatusCode.NOT_FOUND
    assert system.step("theirs").prefill
    system.close("theirs")


def test_a_request_is_charged_only_for_transfers_of_its_time(system):
    system.until_resident(SLOTS)

    def transfer() -> None:
        resident = {(ref.layer, ref.expert) for ref in system.describe().resident}
        absent = next(key for key in ((la, e) for la in range(3) for e in range(8)) if key not in resident)
        message = pb.FillRequest(
            expert=pb.ExpertRef(layer=absent[0], expert=absent[1]), plan_epoch=10**6, utility=100 + len(made)
        )
        made.append(absent)
        assert system.stub.Fill(message, timeout=10).outcome == pb.FillReply.FILLED

    made: list[tuple[int, int]] = []
    transfer()
    system.open("first", reserve=80)
    idle = system.step("first", trace=True)
    assert (idle.timings.transfers, idle.timings.bytes_moved, idle.timings.transfer_s) == (0, 0, 0.0)
    assert "transfers" not in {span.row for span in idle.spans}
    transfer()
    system.open("second", reserve=80)  # beside another: what that one was waiting for stays reported
    busy = system.step("first").timings
    assert (busy.transfers, busy.bytes_moved) == (1, 3072) and busy.transfer_s > 0
    for name in ("first", "second"):
        system.close(name)


def test_a_transfer_cancelled_for_a_newer_plan_is_accounted_for(system, monkeypatch):
    system.until_resident(SLOTS)
    slots = system.actor._service._device.slots
    monkeypatch.setattr(slots, "_link", EmulatedLink(LinkConfig(bandwidth=3072, latency=0.0)))  # an eighth in 125 ms
    absent = next(key for key in ((2, e) for e in range(7)) if key not in slots.residents())
    # The newer plan wants the last expert of every layer, no more; one of them has to be away.
    epoch, before = 2 * 10**6, system.describe().cancelled_transfers
    layers = [pb.LayerPlan(layer=layer, threshold=1, utilities=[0] * 7 + [5]) for layer in range(3)]
    assert any((layer, 7) not in slots.residents() for layer in range(3))
    fill = pb.FillRequest(expert=pb.ExpertRef(layer=absent[0], expert=absent[1]), plan_epoch=epoch, utility=10**4)
    system.open("beside", reserve=80)
    filling = system.stub.Fill.future(fill, timeout=20)
    while not slots._flights:
        time.sleep(0.001)
    assert system.stub.SetPlan(pb.Plan(epoch=epoch, layers=layers, link_budget_bytes=2**20), timeout=10).accepted
    assert filling.result().outcome == pb.FillReply.CANCELLED
    reply = system.step("beside", trace=True)
    system.close("beside")
    assert (reply.timings.transfers, reply.timings.cancelled_transfers) == (0, 1)
    assert reply.timings.bytes_moved == filling.result().bytes < 3072
    assert "link" not in {sample.actor for sample in reply.timings.samples}
    assert [s.name for s in reply.spans if s.row == "transfers"] == [f"layer 2 expert {absent[1]}, cancelled"]
    assert system.describe().cancelled_transfers == before + 1 and absent not in slots.residents()


def test_two_requests_take_turns_without_disturbing_each_other(system):
    system.open("left", reserve=80)
    system.open("right", tokens=PROMPT[::-1], reserve=80, temperature=1.0, seed=5)
    got: dict[str, list[int]] = {"left": [], "right": []}
    for _ in range(5):
        for name, tokens in got.items():
            tokens.extend(system.step(name).emitted)
    system.close("left")
    got["right"].extend(system.step("right").emitted)
    system.close("right")
    assert got["left"] == reference_tokens(system.target, PROMPT, len(got["left"]))
    sampled = reference_tokens(system.target, PROMPT[::-1], len(got["right"]), Sampling(temperature=1.0, seed=5))
    assert got["right"] == sampled


def test_a_deadline_that_passes_and_a_caller_that_leaves_change_nothing(system):
    system.open("late", reserve=80)
    assert _code(system.step, "late", timeout=0.001)[0] is grpc.StatusCode.DEADLINE_EXCEEDED
    gone = system.stub.Step.future(pb.StepRequest(request_id="late", prefill_chunk=8), timeout=30)
    gone.cancel()
    # Whether the abandoned steps were still computed is a matter of time: opened anew, the tokens are the same.
    system.open("late", reserve=80)
    tokens = [token for _ in range(4) for token in system.step("late").emitted]
    system.close("late")
    assert tokens == reference_tokens(system.target, PROMPT, len(tokens))


def _failure(models, **changes) -> str:
    target, _, store = models
    deployment = _deployment(changes.pop("target", target), changes.pop("draft", None), **changes)

    def nowhere(name: str) -> Endpoint:
        raise PeerUnknown(f"no actor {name}")

    actor = GpuDeviceActor("gpu-0", deployment, store, "prefetcher", [], "127.0.0.1", nowhere)
    try:
        give_up = time.monotonic() + 30
        while actor.failure() is None:
            assert time.monotonic() < give_up and not actor.ready()
            time.sleep(0.02)
        with open_channel(actor.endpoint().address) as channel:
            stub = DeviceStub(channel)
            assert not stub.Describe(pb.DescribeRequest(), timeout=5).ready
            code, _ = _code(stub.Step, pb.StepRequest(request_id="a", prefill_chunk=1), timeout=5)
            assert code is grpc.StatusCode.UNAVAILABLE
        return actor.failure()
    finally:
        actor.stop()


def test_what_cannot_start_says_why(models, tmp_path):
    assert "tokenizer" in _failure(models, draft=_other_tokenizer(tmp_path / "draft"))
    assert "does not hold one expert" in _failure(models, expert_memory=100)
    other = make_qwen3_moe(tmp_path / "other", num_experts=4)
    assert "experts of another model" in _failure(models, target=other)
    assert "no such model directory" in _failure(models, target=tmp_path / "nowhere")
    if not torch.cuda.is_available():
        assert "torch sees 0 CUDA devices" in _failure(models, torch_device="cuda:0", link=None)


def test_it_stops_while_it_waits_for_its_prefetcher(models):
    target, _, store = models

    def nowhere(name: str) -> Endpoint:
        raise PeerUnknown(f"no actor {name}")

    actor = GpuDeviceActor("gpu-0", _deployment(target, None), store, "prefetcher", [], "127.0.0.1", nowhere)
    give_up = time.monotonic() + 30
    while actor.progress()["stage"] != "weights":
        assert time.monotonic() < give_up
        time.sleep(0.02)
    started = time.monotonic()
    actor.stop()
    assert time.monotonic() - started < 10
    assert actor.failure() and "stopped while starting" in actor.failure() and not actor.ready()


def _other_tokenizer(path: Path) -> Path:
    make_qwen3_dense(path)
    file = path / "tokenizer.json"
    file.write_text(file.read_text(encoding="utf-8").replace('"the"', '"eht"'), encoding="utf-8")
    return path
