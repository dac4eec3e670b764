"""Experts.Compute over gRPC: order, bounds, deadlines, and the names of failures."""

import shutil
import threading
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
import torch

from moespac.actors.cpu_worker.compute import ExpertComputer
from moespac.actors.cpu_worker.service import ExpertsService
from moespac.actors.prefetcher.lease import ExpertsUnavailable, Lease
from moespac.actors.prefetcher.source import ExpertSource
from moespac.actors.prefetcher.store import ExpertStore
from moespac.actors.transport.peers import open_channel
from moespac.actors.transport.server import ActorServer
from moespac.actors.transport.wire import decode_rows, encode_call
from moespac.kernels.reference import TorchExperts
from moespac.protos.v1.experts_pb2 import ExpertCall
from moespac.protos.v1.experts_pb2_grpc import ExpertsStub, add_ExpertsServicer_to_server

HIDDEN, LAYER = 32, 0
LIMIT_S = 20


def message(store: ExpertStore, experts: int = 2) -> ExpertCall:
    hidden = torch.randn(3, HIDDEN, generator=torch.Generator().manual_seed(1))
    pairs = [(e, torch.arange(3), torch.ones(3)) for e in range(experts)]
    return encode_call(store.fingerprint, 0, [], LAYER, hidden, pairs).message()


class Disk:
    """A real source whose fetches wait until they are let through: a slow disk, at the test's command."""

    def __init__(self, store: ExpertStore):
        self._own = ExpertSource.own(store, 2**20)
        self.reached, self.let_through = threading.Semaphore(0), threading.Event()
        self.failure: Exception | None = None

    def with_experts(self, layer, experts, use, deadline=None) -> float:
        self.reached.release()
        assert self.let_through.wait(LIMIT_S)
        if self.failure is not None:
            raise self.failure
        return self._own.with_experts(layer, experts, use, deadline)

    def close(self) -> None:
        self.let_through.set()
        self._own.close()


@contextmanager
def serving(store: ExpertStore, source, max_waiting: int = 2):
    service = ExpertsService("cpu-0", threads=1, max_waiting=max_waiting)
    server = ActorServer("cpu-0", threads=service.handler_threads)
    server.add(add_ExpertsServicer_to_server, service)
    if source is not None:
        service.serve(
            ExpertComputer(source, TorchExperts(store.layout, torch.float32), torch.float32),
            store.fingerprint,
            store.shape,
        )
    with open_channel(server.start()) as channel:
        yield ExpertsStub(channel)
    server.stop(0)
    if source is not None:
        source.close()
    service.close()


@pytest.fixture
def store(store_path):
    store = ExpertStore.open(store_path)
    yield store
    store.close()


def code_of(future) -> grpc.StatusCode:
    return future.exception(LIMIT_S).code()


def test_before_the_weights_are_there_calls_are_unavailable(store) -> None:
    with serving(store, None) as stub, pytest.raises(grpc.RpcError, match="starting or stopping") as refused:
        stub.Compute(message(store), timeout=LIMIT_S)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    "change, code, text",
    [
        ({"layer": 9}, grpc.StatusCode.INVALID_ARGUMENT, "layer: 9: layers with routed experts are"),
        ({"hidden": b"123"}, grpc.StatusCode.INVALID_ARGUMENT, "hidden: 3 bytes"),
        ({"store_fingerprint": "x"}, grpc.StatusCode.FAILED_PRECONDITION, "store_fingerprint: the caller expects x"),
    ],
)
def test_bad_calls_are_refused_by_code_and_field(store, change, code, text) -> None:
    call = message(store)
    for field, value in change.items():
        setattr(call, field, value)
    source = ExpertSource.own(store, 2**20)
    with serving(store, source) as stub, pytest.raises(grpc.RpcError, match=text) as refused:
        stub.Compute(call, timeout=LIMIT_S)
    assert refused.value.code() is code


def test_one_call_is_computed_at_a_time_and_a_bounded_number_waits(store) -> None:
    disk = Disk(store)
    with serving(store, disk, max_waiting=2) as stub:
        running = stub.Compute.future(message(store), timeout=LIMIT_S)
        assert disk.reached.acquire(timeout=LIMIT_S)
        more = [stub.Compute.future(message(store), timeout=LIMIT_S) for _ in range(4)]
        # Two of the four find no place and are answered while the first is still being computed.
        refused = []
        for future in more:
            future.add_done_callback(refused.append)
        turned_away = threading.Event()
        for future in more:
            future.add_done_callback(lambda _: turned_away.set() if len(refused) >= 2 else None)
        assert turned_away.wait(LIMIT_S)
        assert not disk.reached.acquire(blocking=False)
        assert not running.done()
        assert {code_of(f) for f in refused[:2]} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert "holds 2 more: try again, or elsewhere" in refused[0].exception().details()
        disk.let_through.set()
        answered = [running, *(f for f in more if f not in refused[:2])]
        assert len({f.result(LIMIT_S).rows for f in answered}) == 1
        # The places are free again.
        assert stub.Compute(message(store), timeout=LIMIT_S).actor == "cpu-0"


def test_a_client_that_leaves_frees_its_place(store) -> None:
    disk = Disk(store)
    with serving(store, disk, max_waiting=1) as stub:
        # Kept, as gRPC cancels a call whose future is dropped.
        running = stub.Compute.future(message(store), timeout=2 * LIMIT_S)
        assert disk.reached.acquire(timeout=LIMIT_S)
        # Far more than there are places: each one is taken in only when the one before has left.
        taken_in = 0
        while taken_in < 6:
            code = code_of(stub.Compute.future(message(store), timeout=0.2))
            # The server may notice the deadline first and reset the call, which the client sees as CANCELLED.
            late = (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)
            assert code in (*late, grpc.StatusCode.RESOURCE_EXHAUSTED)
            taken_in += code in late
        assert not disk.reached.acquire(blocking=False)
        disk.let_through.set()
        assert running.result(LIMIT_S).actor == "cpu-0"


def test_a_running_call_ends_at_its_deadline_and_the_next_one_is_served(store) -> None:
    disk = Disk(store)
    with serving(store, disk) as stub:
        late = stub.Compute.future(message(store), timeout=0.2)
        assert code_of(late) is grpc.StatusCode.DEADLINE_EXCEEDED
        disk.let_through.set()
        reply = stub.Compute(message(store), timeout=LIMIT_S)
        assert decode_rows(reply, 6, HIDDEN).isfinite().all()


def test_a_damaged_expert_is_data_loss_with_its_place(store_path: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "store"
    shutil.copytree(store_path, damaged)
    manifest = ExpertStore.open(damaged).manifest
    with open(damaged / "experts.safetensors", "r+b") as file:
        file.seek(manifest.data_offset + 10)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))
    store = ExpertStore.open(damaged)
    with (
        serving(store, ExpertSource.own(store, 2**20)) as stub,
        pytest.raises(grpc.RpcError, match="layer 0, expert 0") as lost,
    ):
        stub.Compute(message(store), timeout=LIMIT_S)
    assert lost.value.code() is grpc.StatusCode.DATA_LOSS


def test_weights_that_cannot_be_had_abort_the_call(store) -> None:
    timeouts = []

    def fetch(layer: int, experts: list[int], hold_s: float, timeout_s: float) -> Lease:
        timeouts.append(timeout_s)
        raise ExpertsUnavailable("the prefetcher is away")

    own = ExpertSource.own(store, 4096)
    source = ExpertSource(lambda: own.arena, fetch, close=own.close)
    with serving(store, source) as stub, pytest.raises(grpc.RpcError, match="the prefetcher is away") as failed:
        stub.Compute(message(store, experts=8), timeout=LIMIT_S)
    # Nor would weights that come after the call's deadline be of any use.
    # (gRPC sends a deadline rounded up.)
    assert len(timeouts) == 1 and 0 < timeouts[0] <= LIMIT_S + 1
    # Not UNAVAILABLE: the worker is there, a new channel to it would not help.
    assert failed.value.code() is grpc.StatusCode.ABORTED
