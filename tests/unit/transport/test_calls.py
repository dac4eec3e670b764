"""Expert calls to real workers, over gRPC and over the lane: rows, cutting, failures."""

import gc
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
import torch
from tiny_models import make_qwen3_moe
from tiny_worker import nobody, worker, worker_process

from moespac.actors.prefetcher.checkpoint import open_checkpoint
from moespac.actors.prefetcher.convert import convert
from moespac.actors.prefetcher.store import ExpertStore
from moespac.actors.transport.calls import CallFailed, ExpertCaller
from moespac.actors.transport.endpoint import Endpoint, PeerUnknown
from moespac.actors.transport.peers import Peers
from moespac.actors.transport.version_check import METADATA_KEY
from moespac.actors.transport.wire import encode_call
from moespac.kernels.choose import choose_kernel
from moespac.kernels.cpu import library
from moespac.kernels.experts import ExpertWork
from moespac.protos.v1.experts_pb2_grpc import ExpertsStub

HIDDEN, LAYER = 32, 1


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return make_qwen3_moe(tmp_path_factory.mktemp("calls") / "target")


@pytest.fixture(scope="module")
def store(checkpoint: Path) -> Path:
    path = checkpoint.parent / "store"
    convert(checkpoint, path)
    return path


@pytest.fixture(scope="module")
def fingerprint(store: Path) -> str:
    return ExpertStore.open(store).fingerprint


@pytest.fixture(scope="module")
def endpoint(store: Path):
    with worker(store) as actor:
        yield actor.endpoint()


@pytest.fixture
def peers(endpoint: Endpoint):
    peers = Peers(lambda name: endpoint)
    yield peers
    peers.close()


@pytest.fixture(params=["grpc", "lane"])
def way(request) -> str:
    return request.param


def caller_to(peers: Peers, fingerprint: str, way: str, **options) -> ExpertCaller:
    """Whose calls all go `way`, to one worker."""
    caller = ExpertCaller(peers, fingerprint, here=None if way == "lane" else "another host", **options)
    refusal = caller.lanes.open("cpu-0")
    assert refusal == (None if way == "lane" else "the caller is on another host than cpu-0")
    return caller


def hidden_states(tokens: int) -> torch.Tensor:
    return torch.randn(tokens, HIDDEN, generator=torch.Generator().manual_seed(tokens))


def some_pairs(sizes: dict[int, int], tokens: int):
    generator = torch.Generator().manual_seed(11)
    return [
        (
            expert,
            torch.randperm(tokens, generator=generator)[:size].sort().values,
            torch.rand(size, generator=generator),
        )
        for expert, size in sizes.items()
    ]


def start(caller: ExpertCaller, hidden, pairs, deadline_s: float = 20.0, worker: str = "cpu-0"):
    return caller.start(worker, LAYER, 3, ["r1"], hidden, pairs, deadline_s)


def expected_rows(checkpoint: Path, hidden, pairs) -> dict[int, torch.Tensor]:
    """From the checkpoint itself, without store, arena or wire, by the kernel that a worker chooses."""
    source = open_checkpoint(checkpoint)
    kernel = choose_kernel(source.layout, hidden.dtype, torch.device("cpu")).kernel
    rows = {}
    for expert, tokens, weights in pairs:
        block = torch.zeros(source.layout.expert_bytes, dtype=torch.uint8)
        for name, part in source.layout.views(block).items():
            part.copy_(source.expert((LAYER, expert))[name])
        rows[expert] = kernel.rows(hidden, [ExpertWork(block, tokens, weights)])
    return rows


def assert_same(rows: dict[int, torch.Tensor], expected: dict[int, torch.Tensor]) -> None:
    assert list(rows) == list(expected)
    for expert, values in expected.items():
        assert torch.equal(rows[expert], values)


def test_rows_are_bit_for_bit_those_of_the_checkpoints_experts(checkpoint, fingerprint, peers, way) -> None:
    hidden, pairs = hidden_states(9), some_pairs({0: 4, 3: 1, 7: 9}, 9)
    before = time.time_ns()
    call = start(caller_to(peers, fingerprint, way), hidden, pairs)
    assert (call.worker, call.experts) == ("cpu-0", (0, 3, 7))
    assert_same(call.result(), expected_rows(checkpoint, hidden, pairs))
    (part,) = call.served
    assert (part.actor, part.experts, part.pairs, part.way) == ("cpu-0", 3, 14, way)
    assert before <= part.sent_ns <= part.started_ns <= part.finished_ns <= part.received_ns <= time.time_ns()
    assert 0 <= part.weights_wait_ns <= part.finished_ns - part.started_ns
    assert call.done()
    assert call.result() is call.result()


def test_rows_do_not_depend_on_who_computes_them(store, checkpoint, fingerprint, peers) -> None:
    hidden, pairs = hidden_states(7), some_pairs({1: 3, 2: 5, 4: 2, 6: 7}, 7)
    expected = expected_rows(checkpoint, hidden, pairs)
    together = ExpertCaller(peers, fingerprint)
    apart = {}
    for pair in pairs:
        apart |= start(together, hidden, [pair]).result()
    assert_same(apart, expected)
    # Two threads, and room for a single expert: everything is fetched and evicted again and again.
    with worker(store, threads=2, memory=4096) as small:
        other = Peers(lambda name: small.endpoint())
        assert_same(start(ExpertCaller(other, fingerprint), hidden, pairs).result(), expected)
        other.close()


def test_any_float_type_and_layout_of_hidden_is_accepted(checkpoint, fingerprint, peers, way) -> None:
    hidden = hidden_states(6).to(torch.bfloat16)
    pairs = some_pairs({2: 6}, 6)
    strided = hidden.T.contiguous().T
    assert not strided.is_contiguous()
    rows = start(caller_to(peers, fingerprint, way), strided, pairs).result()
    assert_same(rows, expected_rows(checkpoint, hidden.float(), pairs))


def test_a_cut_call_gives_the_same_rows(checkpoint, fingerprint, peers, way) -> None:
    hidden, pairs = hidden_states(40), some_pairs({e: 20 for e in range(8)}, 40)
    # Room for 25 pairs a message: one expert each.
    caller = caller_to(peers, fingerprint, way, max_call_bytes=4096 + 25 * (4 * HIDDEN + 16))
    call = start(caller, hidden, pairs)
    assert_same(call.result(), expected_rows(checkpoint, hidden, pairs))
    assert [(part.pairs, part.way) for part in call.served] == [(20, way)] * 8


@pytest.mark.skipif(library.unavailable() is not None, reason="torch may round fewer rows at once differently")
def test_a_cut_expert_is_put_together_in_order(checkpoint, fingerprint, peers) -> None:
    hidden, pairs = hidden_states(40), some_pairs({0: 40, 5: 38}, 40)
    # Three pairs a message: more messages than may be under way at once.
    caller = ExpertCaller(peers, fingerprint, max_call_bytes=4096 + 3 * (4 * HIDDEN + 16))
    call = start(caller, hidden, pairs)
    rows = call.result()
    assert [part.pairs for part in call.served] == [3] * 13 + [1] + [3] * 12 + [2]
    assert_same(rows, expected_rows(checkpoint, hidden, pairs))


def test_another_store_is_refused_and_the_worker_left_alone_for_a_while(endpoint, way) -> None:
    now = [50.0]
    peers = Peers(lambda name: endpoint)
    caller = caller_to(peers, "other", way, clock=lambda: now[0])
    assert caller.available("cpu-0")
    with pytest.raises(CallFailed, match="store_fingerprint: the caller expects other") as failed:
        start(caller, hidden_states(2), some_pairs({1: 1, 5: 2}, 2)).result()
    assert failed.value.code is grpc.StatusCode.FAILED_PRECONDITION
    assert (failed.value.worker, failed.value.experts) == ("cpu-0", (1, 5))
    assert not caller.available("cpu-0")
    assert caller.available("cpu-1")
    now[0] += 0.11
    assert caller.available("cpu-0")
    peers.close()


def test_a_caller_of_another_version_is_refused(endpoint, fingerprint) -> None:
    message = encode_call(fingerprint, 0, [], LAYER, hidden_states(2), some_pairs({1: 2}, 2)).message()
    refusal = r"version mismatch: the caller runs moespac 9\.9"
    with (
        grpc.insecure_channel(endpoint.address) as channel,
        pytest.raises(grpc.RpcError, match=refusal) as refused,
    ):
        ExpertsStub(channel).Compute(message, metadata=[(METADATA_KEY, "9.9")], timeout=10)
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION


def test_a_worker_nobody_knows_fails_when_asked_for_the_result(fingerprint) -> None:
    caller = ExpertCaller(Peers(nobody), fingerprint)
    call = start(caller, hidden_states(2), some_pairs({1: 2}, 2), worker="cpu-7")
    assert call.done()
    with pytest.raises(CallFailed, match="no actor cpu-7"):
        call.result()
    assert not caller.available("cpu-7")


def test_cancelling_is_not_the_workers_fault(fingerprint, peers, way) -> None:
    caller = caller_to(peers, fingerprint, way)
    call = start(caller, hidden_states(2), some_pairs({1: 2}, 2))
    call.cancel()
    with pytest.raises(CallFailed, match="cancelled by the caller"):
        call.result()
    assert caller.available("cpu-0")
    # The channel is as good as before, and there is another lane.
    again = start(caller, hidden_states(2), some_pairs({1: 2}, 2))
    assert again.result().keys() == {1}
    assert again.served[0].way == way


def test_a_deadline_ends_the_wait(store, fingerprint) -> None:
    with worker_process(store) as (process, endpoint):
        peers = Peers(lambda name: endpoint)
        callers = [caller_to(peers, fingerprint, way) for way in ("grpc", "lane")]
        for caller in callers:
            start(caller, hidden_states(2), some_pairs({1: 2}, 2)).result()
        os.kill(process.pid, signal.SIGSTOP)
        for caller in callers:
            started = time.monotonic()
            call = start(caller, hidden_states(2), some_pairs({1: 2}, 2), deadline_s=0.3)
            with pytest.raises(CallFailed, match="DEADLINE_EXCEEDED") as failed:
                call.result()
            assert failed.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
            assert 0.25 < time.monotonic() - started < 3
            caller.close()
        peers.close()


def test_a_killed_worker_fails_its_calls_at_once_and_its_successor_is_found(store, fingerprint) -> None:
    endpoints = {}

    def resolve(name: str) -> Endpoint:
        if name not in endpoints:
            raise PeerUnknown(f"no actor {name}")
        return endpoints[name]

    now = [0.0]
    ways = ("grpc", "lane")
    hidden, pairs = hidden_states(4), some_pairs({1: 2, 6: 4}, 4)
    with worker_process(store) as (process, endpoints["cpu-0"]):
        peers = {way: Peers(resolve) for way in ways}
        callers = {way: caller_to(peers[way], fingerprint, way, clock=lambda: now[0]) for way in ways}
        rows = {way: start(callers[way], hidden, pairs).result() for way in ways}
        os.kill(process.pid, signal.SIGSTOP)  # the calls below are certainly unanswered when the worker dies
        calls = {way: start(callers[way], hidden, pairs, deadline_s=60) for way in ways}
        os.kill(process.pid, signal.SIGKILL)
        for way in ways:
            started = time.monotonic()
            with pytest.raises(CallFailed, match="UNAVAILABLE") as failed:
                calls[way].result()
            assert time.monotonic() - started < 5
            assert failed.value.experts == (1, 6)
            assert not callers[way].available("cpu-0")
    with worker(store) as successor:
        endpoints["cpu-0"] = successor.endpoint()
        now[0] += 1
        for way in ways:
            assert callers[way].available("cpu-0")
            assert_same(start(callers[way], hidden, pairs).result(), rows[way])
            until_way(callers[way], way)
            callers[way].close()
            peers[way].close()


def until_way(caller: ExpertCaller, way: str) -> None:
    """Calls until one goes `way`; without being told to, the first ones ask for the lane and go over gRPC."""
    give_up = time.monotonic() + 20
    while True:
        call = start(caller, hidden_states(2), some_pairs({1: 2}, 2))
        call.result()
        if call.served[0].way == way:
            return
        assert time.monotonic() < give_up


def test_the_first_call_asks_for_a_lane_without_waiting_for_it(fingerprint, peers) -> None:
    caller = ExpertCaller(peers, fingerprint)
    call = start(caller, hidden_states(2), some_pairs({1: 2}, 2))
    call.result()
    assert call.served[0].way == "grpc"
    until_way(caller, "lane")
    caller.close()


def test_a_worker_told_to_keep_to_grpc_offers_no_lane(store, fingerprint) -> None:
    with worker(store, lane="grpc") as actor:
        peers = Peers(lambda name: actor.endpoint())
        caller = ExpertCaller(peers, fingerprint)
        assert caller.lanes.open("cpu-0") == "devices.cpu-0.lane is grpc"
        call = start(caller, hidden_states(2), some_pairs({1: 2}, 2))
        call.result()
        assert call.served[0].way == "grpc"
        peers.close()


@pytest.mark.parametrize("pairs, way", [(20_000, "lane"), (30_000, "grpc"), (40_000, "grpc")])
def test_calls_without_room_on_the_lane_go_over_grpc(fingerprint, peers, pairs, way) -> None:
    """30,000 pairs have a head larger than a frame, 40,000 more floats than the lane's memory."""
    caller = caller_to(peers, fingerprint, "lane")
    hidden = torch.ones(pairs, HIDDEN)
    call = start(caller, hidden, [(3, torch.arange(pairs), torch.ones(pairs))])
    assert call.result()[3].shape == (pairs, HIDDEN)
    assert call.served[0].way == way
    caller.close()


def test_a_reply_that_waited_for_its_caller_came_when_it_was_made(fingerprint, peers) -> None:
    """What the caller did meanwhile must not count as the worker's time."""
    caller = caller_to(peers, fingerprint, "lane")
    call = start(caller, hidden_states(2), some_pairs({1: 2}, 2))
    give_up = time.monotonic() + 20
    while not call.done():
        assert time.monotonic() < give_up
        time.sleep(0.001)
    time.sleep(0.2)
    call.result()
    (part,) = call.served
    assert part.finished_ns <= part.received_ns < part.finished_ns + 100_000_000
    caller.close()


def test_many_threads_share_the_lanes(store, checkpoint, fingerprint, peers) -> None:
    caller = caller_to(peers, fingerprint, "lane")
    hidden = hidden_states(9)
    cases = [some_pairs({e: 1 + (e + i) % 9 for e in range(i % 7, 8)}, 9) for i in range(8)]
    expected = [expected_rows(checkpoint, hidden, pairs) for pairs in cases]

    def many(index: int) -> set[str]:
        ways = set()
        for _ in range(15):
            call = start(caller, hidden, cases[index])
            assert_same(call.result(), expected[index])
            ways |= {part.way for part in call.served}
        return ways

    with ThreadPoolExecutor(8) as threads:
        assert set().union(*threads.map(many, range(8))) == {"lane"}
    caller.close()


def test_lanes_leave_no_descriptor_behind(fingerprint, peers) -> None:
    def cycle() -> None:
        caller = caller_to(peers, fingerprint, "lane")
        start(caller, hidden_states(2), some_pairs({1: 2}, 2)).cancel()
        start(caller, hidden_states(2), some_pairs({1: 2}, 2)).result()
        caller.close()

    def descriptors() -> int:
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    cycle()
    before = descriptors()
    for _ in range(5):
        cycle()
    give_up = time.monotonic() + 20
    # The worker, in this process too, notices in its own time that callers have gone.
    while descriptors() > before:
        assert time.monotonic() < give_up
        time.sleep(0.01)
