"""A prefetcher in a process of its own, seen from this one, killed and replaced."""

import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest

from moespac.actors.core import ExpertKey
from moespac.actors.prefetcher.arena import ArenaUnreachable
from moespac.actors.prefetcher.source import ExpertSource, ExpertsUnavailable
from moespac.actors.transport.endpoint import Endpoint, PeerUnknown
from moespac.actors.transport.peers import Peers
from moespac.protos.v1 import steps_pb2 as pb
from moespac.protos.v1.steps_pb2_grpc import PrefetcherStub

# Serves the store with an arena of so many bytes, prints its address and waits: `python -c … STORE BYTES`.
SERVE = """
import sys
from moespac.actors.prefetcher.arena import Arena
from moespac.actors.prefetcher.loader import Loader
from moespac.actors.prefetcher.service import Engine, PrefetcherService
from moespac.actors.prefetcher.store import ExpertStore
from moespac.actors.transport.server import ActorServer
from moespac.protos.v1.steps_pb2_grpc import add_PrefetcherServicer_to_server

store = ExpertStore.open(sys.argv[1])
arena = Arena.create(store.shape, int(sys.argv[2]))
loader = Loader(store, arena, 2)
loader.start()
loader.wait_filled(60)
service = PrefetcherService("prefetcher")
service.serve(Engine(store, arena, loader, lambda plan: None))
server = ActorServer("prefetcher")
server.add(add_PrefetcherServicer_to_server, service)
print(server.start(), flush=True)
sys.stdin.readline()
server.stop(0)
loader.stop()
"""
STRIDE = 4096


class Running:
    """Prefetchers by turns; resolves to the one that runs."""

    def __init__(self, store_path):
        self._store_path, self._child, self._endpoint = store_path, None, None

    def start(self, blocks):
        command = [sys.executable, "-c", SERVE, str(self._store_path), str(blocks * STRIDE)]
        self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        address = self._child.stdout.readline().strip()
        self._endpoint = Endpoint("prefetcher", "prefetcher", address, pid=self._child.pid)
        return self._child.pid

    def kill(self):
        self._endpoint = None
        self._child.send_signal(signal.SIGKILL)
        self._child.communicate()

    def __call__(self, name):
        if self._endpoint is None:
            raise PeerUnknown(f"no actor {name}")
        return self._endpoint

    def end(self):
        if self._child is not None and self._child.poll() is None:
            self.kill()


@pytest.fixture
def running(store_path):
    running = Running(store_path)
    yield running
    running.end()


@contextmanager
def attached(running, shape, store=None):
    peers = Peers(running)
    source = ExpertSource.shared(peers, "prefetcher", shape, store)
    try:
        yield source
    finally:
        source.close()
        peers.close()


def read_all(source, shape):
    found = {}
    for layer in shape.layer_ids:

        def use(blocks, at=layer):
            found.update((ExpertKey(at, e), bytes(block)) for e, block in blocks.items())

        source.with_experts(layer, range(shape.n_experts), use)
    return found


@pytest.fixture(scope="module")
def two_blocks(store_path):
    """Runs with an arena of two blocks: of a layer's eight experts six are always absent."""
    running = Running(store_path)
    running.start(blocks=2)
    yield running
    running.end()


def test_reads_in_place_and_fetches_the_rest_in_parts(two_blocks, store, payloads):
    with attached(two_blocks, store.shape) as source:
        assert source.arena.location.pid == two_blocks("prefetcher").pid
        # Many more fetches than blocks: were one lease kept, the last would have no room.
        for _ in range(3):
            assert read_all(source, store.shape) == payloads


def test_many_threads_share_a_small_arena(two_blocks, store, payloads):
    results = []
    with attached(two_blocks, store.shape) as source:
        threads = [threading.Thread(target=lambda: results.append(read_all(source, store.shape))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == [payloads] * 4


def test_no_fetch_goes_on_beyond_the_deadline(two_blocks, store):
    """Somebody else holds both blocks."""
    peers = Peers(two_blocks)
    stub = peers.stub("prefetcher", PrefetcherStub)
    lease = stub.Fetch(pb.FetchRequest(layer=2, expert_ids=[0, 1], hold_s=60), timeout=10).lease
    used, started = [], time.monotonic()
    with attached(two_blocks, store.shape) as source, pytest.raises(ExpertsUnavailable):
        source.with_experts(0, [0], used.extend, started + 0.5)
    assert 0.4 < time.monotonic() - started < 5 and not used
    stub.Release(pb.ReleaseRequest(lease=lease), timeout=5)
    peers.close()


def test_prefetcher_killed_and_replaced(running, store, payloads):
    first = running.start(blocks=24)
    with attached(running, store.shape) as source:
        running.kill()
        assert read_all(source, store.shape) == payloads, "the old mapping stays readable"
        second = running.start(blocks=3)
        end = time.monotonic() + 20
        while source.arena.location.pid != second:
            assert time.monotonic() < end, "the new arena was not attached"
            time.sleep(0.02)
        assert first != second and source.arena.owner_alive()
        assert read_all(source, store.shape) == payloads


def test_killed_with_an_incomplete_arena_falls_back_to_the_store(running, store, payloads):
    running.start(blocks=3)
    with attached(running, store.shape, store) as source, attached(running, store.shape) as without_store:
        running.kill()
        assert read_all(source, store.shape) == payloads
        with pytest.raises(ExpertsUnavailable, match="layer 0, experts"):
            read_all(without_store, store.shape)


def test_killed_during_use(running, store, payloads):
    running.start(blocks=3)
    found = {}

    def use(blocks):
        if not found:
            running.kill()
        found.update((e, bytes(block)) for e, block in blocks.items())

    with attached(running, store.shape, store) as source:
        source.with_experts(1, range(8), use)
    assert found == {e: payloads[ExpertKey(1, e)] for e in range(8)}


def test_no_prefetcher_is_an_error_in_time(running, store):
    peers = Peers(running)
    started = time.monotonic()
    with pytest.raises(ArenaUnreachable, match=r"no arena within 0.3 s: prefetcher is away"):
        ExpertSource.shared(peers, "prefetcher", store.shape, timeout_s=0.3)
    assert time.monotonic() - started < 5
    peers.close()
