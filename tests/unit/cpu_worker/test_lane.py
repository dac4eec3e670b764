"""The worker's end of the lane: who may connect, what it refuses, when it stops computing."""

import os
import socket
import struct
import threading
import time
from contextlib import contextmanager

import grpc
import pytest
import torch

from moespac.actors.cpu_worker.compute import ExpertComputer
from moespac.actors.cpu_worker.service import ExpertsService
from moespac.actors.prefetcher.source import ExpertSource
from moespac.actors.prefetcher.store import ExpertStore
from moespac.actors.transport.errors import Refusal
from moespac.actors.transport.flights import LaneFlight
from moespac.actors.transport.lane import FRAME_BYTES, LANE_BYTES, Lane, LaneLost, Memory, only_here, send_frame
from moespac.actors.transport.wire import EncodedCall, encode_call
from moespac.kernels.reference import TorchExperts

HIDDEN, LAYER = 32, 0
LIMIT_S = 20
EXPERTS = (0, 2, 5)


class SlowDisk:
    """A real source that brings one expert at a time, each when it is let through."""

    def __init__(self, store: ExpertStore):
        self._own = ExpertSource.own(store, 2**20)
        self.reached, self.let_through = threading.Semaphore(0), threading.Semaphore(0)

    def with_experts(self, layer, experts, use, deadline=None) -> float:
        for expert in experts:
            self.reached.release()
            assert self.let_through.acquire(timeout=LIMIT_S)
            self._own.with_experts(layer, [expert], use, deadline)
        return 0.0

    def close(self) -> None:
        self._own.close()


class CountingKernel(TorchExperts):
    """Remembers how many experts it computed."""

    computed = 0

    def rows(self, hidden, work):
        self.computed += len(work)
        return super().rows(hidden, work)


@pytest.fixture
def store(store_path):
    store = ExpertStore.open(store_path)
    yield store
    store.close()


@contextmanager
def serving(store: ExpertStore, source=None, max_waiting: int = 2):
    source = ExpertSource.own(store, 2**20) if source is None else source
    service = ExpertsService("cpu-0", threads=1, max_waiting=max_waiting)
    kernel = CountingKernel(store.layout, torch.float32)
    service.serve(ExpertComputer(source, kernel, torch.float32), store.fingerprint, store.shape)
    try:
        yield service, kernel
    finally:
        service.close()
        source.close()


def call_of(store: ExpertStore) -> EncodedCall:
    hidden = torch.randn(3, HIDDEN, generator=torch.Generator().manual_seed(1))
    return encode_call(store.fingerprint, 0, [], LAYER, hidden, [(e, torch.arange(3), torch.ones(3)) for e in EXPERTS])


def send(lane: Lane, call: EncodedCall, seconds: float = LIMIT_S) -> None:
    lane.send(call, call.head.SerializeToString(), time.time_ns() + round(seconds * 1e9))


def rows_of(lane: Lane) -> torch.Tensor:
    return lane.receive(3 * len(EXPERTS), HIDDEN, time.monotonic() + LIMIT_S)[1]


def refusal_of(lane: Lane) -> Refusal:
    with pytest.raises(Refusal) as refused:
        rows_of(lane)
    return refused.value


def open_lane(service: ExpertsService) -> Lane:
    return Lane.open(service._lane.address)


def until(holds) -> None:
    give_up = time.monotonic() + LIMIT_S
    while not holds():
        assert time.monotonic() < give_up
        time.sleep(0.005)


def test_one_connection_serves_call_after_call(store) -> None:
    with serving(store) as (service, _):
        lane = open_lane(service)
        lane.probe(LIMIT_S)
        send(lane, call_of(store))
        first = rows_of(lane)
        send(lane, call_of(store))
        assert torch.equal(rows_of(lane), first)
        lane.close()


@pytest.mark.parametrize(
    "change, code, text",
    [
        ({"layer": 9}, grpc.StatusCode.INVALID_ARGUMENT, "layer: 9: layers with routed experts are"),
        ({"token_rows": [7] * 9}, grpc.StatusCode.INVALID_ARGUMENT, "token_rows: 7: the call has 3 rows"),
        ({"store_fingerprint": "x"}, grpc.StatusCode.FAILED_PRECONDITION, "store_fingerprint: the caller expects x"),
        ({"hidden_size": 2**31}, grpc.StatusCode.INVALID_ARGUMENT, "hidden_size: 2147483648: the model's is 32"),
        # More rows than the memory holds: never read beyond it.
        ({"rows": 2**31}, grpc.StatusCode.INVALID_ARGUMENT, rf"hidden: {LANE_BYTES} bytes"),
    ],
)
def test_bad_calls_are_refused_as_over_grpc_and_the_next_one_is_served(store, change, code, text) -> None:
    with serving(store) as (service, kernel):
        lane, call = open_lane(service), call_of(store)
        for field, value in change.items():
            call.head.ClearField(field)
            if isinstance(value, list):
                getattr(call.head, field).extend(value)
            else:
                setattr(call.head, field, value)
        send(lane, call)
        refused = refusal_of(lane)
        assert refused.code is code and text in refused.reason
        assert kernel.computed == 0
        send(lane, call_of(store))
        assert rows_of(lane).isfinite().all()
        lane.close()


def test_what_is_no_frame_or_no_message_is_refused_by_name(store) -> None:
    with serving(store) as (service, _):
        lane = open_lane(service)
        for packet in (b"x", b"NOTALANE" + bytes(30), bytes(FRAME_BYTES + 100)):
            lane._connection.send(packet)
            refused = refusal_of(lane)
            assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
            assert "is no frame: it begins with MPELANE1" in refused.reason
        assert "more than 65,536 bytes" in refused.reason
        send_frame(lane._connection, time.time_ns() + 10**10, b"\xff\xff\xff")
        assert refusal_of(lane).code is grpc.StatusCode.INVALID_ARGUMENT
        send(lane, call_of(store))
        assert rows_of(lane).isfinite().all()
        lane.close()


def memfd(size: int, sealed: bool = True) -> int:
    memory, fd = Memory.create()
    memory.close()
    if sealed and size == 2 * LANE_BYTES:
        return fd
    os.close(fd)
    fd = os.memfd_create("other", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    return fd


@pytest.mark.parametrize(
    "make, text",
    [
        (lambda: memfd(2 * LANE_BYTES, sealed=False), "seals 0x0"),
        (lambda: memfd(4096), "has 4096 bytes"),
        (lambda: os.open("/dev/null", os.O_RDWR), "is no memfd"),
        (lambda: None, "0 descriptors"),
    ],
    ids=["unsealed", "small", "a file", "none"],
)
def test_memory_that_a_caller_could_take_away_is_refused(store, make, text) -> None:
    """Reading behind the end of a file that was shrunk would kill the worker."""
    with serving(store) as (service, _):
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.connect(f"\0{service._lane.address}")
        fd = make()
        send_frame(connection, 2 * LANE_BYTES, fd=fd)
        if fd is not None:
            os.close(fd)
        memory, fd = Memory.create()
        os.close(fd)
        connection.setblocking(False)
        lane = Lane(connection, memory)
        for _ in range(2):
            send(lane, call_of(store))
            refused = refusal_of(lane)
            assert refused.code is grpc.StatusCode.INVALID_ARGUMENT and text in refused.reason
        lane.close()


def test_another_user_is_refused_by_both_sides(store) -> None:
    with serving(store) as (service, kernel):
        with pytest.raises(Refusal, match=rf"the worker runs as user {os.geteuid()}, this process as user 4711"):
            Lane.open(service._lane.address, uid=4711)
        service._lane._uid = 4711
        lane = open_lane(service)
        send(lane, call_of(store))
        refused = refusal_of(lane)
        assert refused.code is grpc.StatusCode.PERMISSION_DENIED
        assert f"the caller runs as user {os.geteuid()}, this process as user 4711" in refused.reason
        assert kernel.computed == 0
        lane.close()


def test_lanes_are_bounded_and_free_again_when_callers_leave(store) -> None:
    with serving(store, max_waiting=1) as (service, _):
        lanes = [open_lane(service) for _ in range(3)]
        for lane in lanes:
            send(lane, call_of(store))
        refused = refusal_of(lanes[2])
        assert refused.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "cpu-0 holds 2 lanes: try again, or elsewhere" in refused.reason
        assert torch.equal(rows_of(lanes[0]), rows_of(lanes[1]))
        lanes[0].close()
        lanes[2].close()
        until(lambda: len(service._lane._connections) == 1)
        another = open_lane(service)
        another.probe(LIMIT_S)
        # As many again are kept to be told why not; the rest see the end at once.
        crowd, outcomes = [], []
        for _ in range(4):
            try:
                crowd.append(open_lane(service))
                crowd[-1].probe(LIMIT_S)
            except (Refusal, LaneLost) as error:
                outcomes.append(type(error))
        assert outcomes == [Refusal, Refusal, LaneLost, LaneLost]
        for lane in (*lanes, another, *crowd):
            lane.close()


@pytest.mark.parametrize("why", ["cancelled", "late"])
def test_a_call_given_up_stops_between_two_experts(store, why) -> None:
    disk = SlowDisk(store)
    with serving(store, disk) as (service, kernel):
        lane = open_lane(service)
        send(lane, call_of(store), LIMIT_S if why == "cancelled" else 0.2)
        assert disk.reached.acquire(timeout=LIMIT_S)
        disk.let_through.release()
        assert disk.reached.acquire(timeout=LIMIT_S)
        if why == "cancelled":
            assert kernel.computed == 1
            lane.close()
        else:
            time.sleep(0.25)
        computed = kernel.computed
        other = open_lane(service)
        send(other, call_of(store))
        disk.let_through.release()  # of the first call's second expert, which nobody wants any more
        for _ in EXPERTS:
            assert disk.reached.acquire(timeout=LIMIT_S)
            disk.let_through.release()
        assert rows_of(other).isfinite().all()
        assert kernel.computed == computed + len(EXPERTS)
        if why == "late":
            assert refusal_of(lane).code is grpc.StatusCode.CANCELLED
        lane.close()
        other.close()


def test_a_worker_that_stops_ends_its_lanes_after_the_running_call(store) -> None:
    disk = SlowDisk(store)
    with serving(store, disk) as (service, _):
        running, waiting = open_lane(service), open_lane(service)
        send(running, call_of(store))
        assert disk.reached.acquire(timeout=LIMIT_S)
        send(waiting, call_of(store))
        closing = threading.Thread(target=service.close)
        closing.start()
        disk.let_through.release(len(EXPERTS))
        assert rows_of(running).isfinite().all()
        with pytest.raises(LaneLost):
            rows_of(waiting)
        closing.join(LIMIT_S)
        with pytest.raises(OSError):
            open_lane(service)


def test_what_the_thread_cannot_prepare_is_said_over_the_lane(store) -> None:
    service = ExpertsService("cpu-0", threads=1, cores=[100_000])
    source = ExpertSource.own(store, 2**20)
    computer = ExpertComputer(source, TorchExperts(store.layout, torch.float32), torch.float32)
    service.serve(computer, store.fingerprint, store.shape)
    lane = open_lane(service)
    send(lane, call_of(store))
    refused = refusal_of(lane)
    assert refused.code is grpc.StatusCode.UNKNOWN and "100000" in refused.reason
    lane.close()
    service.close()
    source.close()


def test_a_reply_that_is_no_message_is_an_unusable_reply() -> None:
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    memory, fd = Memory.create()
    os.close(fd)
    here.setblocking(False)
    lane = Lane(here, memory)
    send_frame(there, 0, b"\xff\xff\xff")
    flight = LaneFlight(lane, time.monotonic() + LIMIT_S, lambda lane: pytest.fail("to be used again"))
    assert flight.done()
    with pytest.raises(Refusal, match="INTERNAL: unusable reply"):
        flight.receive(1, HIDDEN)
    assert here.fileno() == -1
    there.close()


def test_a_forked_child_does_not_hold_a_lane_open() -> None:
    """Else nobody would notice that the process at the other end has gone."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    only_here(here)
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(tell, struct.pack("i", here.fileno()))
        os._exit(0)
    assert struct.unpack("i", os.read(told, 4)) == (-1,)
    os.waitpid(child, 0)
    assert here.fileno() >= 0
    for end in (here, there):
        end.close()
    os.close(told)
    os.close(tell)
