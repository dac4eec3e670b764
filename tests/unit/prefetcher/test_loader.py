import random
import shutil
import threading
import time

import numpy as np
import pytest

from moespac.actors.core import ExpertKey, Plan
from moespac.actors.prefetcher.arena import Arena, ArenaReader
from moespac.actors.prefetcher.lease import ExpertsUnavailable
from moespac.actors.prefetcher.loader import Loader, spread
from moespac.actors.prefetcher.store import ExpertStore, StoreCorrupt

STRIDE = 4096
LONG_S = 60.0


class Rig:
    """A loader with `blocks` blocks, and a reader of its arena."""

    def __init__(self, store, blocks, readers=2, start=True):
        self.store = store
        self.arena = Arena.create(store.shape, blocks * STRIDE)
        self.reader = ArenaReader.attach(self.arena.location, store.shape)
        self.loader = Loader(store, self.arena, readers)
        if start:
            self.loader.start()
            assert self.loader.wait_filled(LONG_S)

    def present(self):
        return {key for key in self.store.shape.keys() if self.reader.view(key) is not None}  # noqa: SIM118

    def content(self, key):
        view = self.reader.view(key)
        data = bytes(view.data)
        return data if self.reader.still_valid(view) else None

    def close(self):
        self.loader.check_integrity()
        self.loader.stop()
        self.reader.close()
        self.arena.close()


@pytest.fixture
def rig(store):
    rigs = []

    def make(*args, store=store, **kwargs):
        rigs.append(Rig(store, *args, **kwargs))
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.close()


def plan(shape, utilities, epoch=1):
    table = np.zeros((shape.n_layers, shape.n_experts), dtype=int)
    for key, utility in utilities.items():
        table[shape.row(key.layer), key.expert] = utility
    return Plan(epoch, np.ones(shape.n_layers, dtype=int), table, 0, "GREEDY")


def until(condition, seconds=20.0):
    """Waits for what another thread brings about."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.005)


def test_fills_the_arena_with_everything(rig, payloads):
    full = rig(24)
    assert full.loader.loaded_bytes == full.loader.capacity_bytes == 24 * 3072
    assert {key: full.content(key) for key in payloads} == payloads


def test_fills_a_small_arena_evenly_over_the_layers(rig, store):
    small = rig(6)
    assert (
        small.present() == set(spread(store.shape)[:6]) == {ExpertKey(layer, e) for layer in range(3) for e in (0, 1)}
    )


def test_fetch_reads_what_is_absent_once(rig, store, payloads):
    small = rig(6)
    before = store.bytes_read
    lease = small.loader.fetch(2, [7, 0], LONG_S)
    assert lease.granted == (0, 7)
    assert small.content(ExpertKey(2, 7)) == payloads[ExpertKey(2, 7)]
    assert store.bytes_read - before == 3072, "expert 0 was there already"
    lease.release()


def test_arena_smaller_than_a_layer_grants_in_parts(rig, payloads):
    small = rig(3)
    missing, rounds = list(range(8)), 0
    while missing:
        lease = small.loader.fetch(1, missing, LONG_S)
        assert 1 <= len(lease.granted) <= 3
        for expert in lease.granted:
            assert small.content(ExpertKey(1, expert)) == payloads[ExpertKey(1, expert)]
        small.loader.check_integrity()
        lease.release()
        missing = [e for e in missing if e not in lease.granted]
        rounds += 1
    assert rounds == 3


def test_leased_experts_are_never_evicted(rig, payloads):
    small = rig(4)
    lease = small.loader.fetch(0, [5, 6], LONG_S)
    views = [small.reader.view(ExpertKey(0, e)) for e in (5, 6)]
    for expert in range(8):
        small.loader.fetch(2, [expert], LONG_S).release()
    assert all(small.reader.still_valid(view) for view in views)
    assert [bytes(view.data) for view in views] == [payloads[view.key] for view in views]
    lease.release()
    lease.release()  # idempotent
    for expert in range(8):
        small.loader.fetch(2, [expert], LONG_S).release()
    assert not any(small.reader.still_valid(view) for view in views)


def test_two_leases_on_one_expert(rig):
    small = rig(1)
    first, second = (small.loader.fetch(0, [3], LONG_S) for _ in range(2))
    first.release()
    with pytest.raises(ExpertsUnavailable):
        small.loader.fetch(0, [4], LONG_S, timeout_s=0.05)
    second.release()
    small.loader.fetch(0, [4], LONG_S).release()


def test_full_of_leases_waits_then_says_so(rig):
    small = rig(2)
    held = small.loader.fetch(0, [0, 1], LONG_S)
    with pytest.raises(ExpertsUnavailable, match="every block is leased"):
        small.loader.fetch(1, [0], LONG_S, timeout_s=0.05)
    got = []
    waiting = threading.Thread(target=lambda: got.append(small.loader.fetch(1, [0], LONG_S)))
    waiting.start()
    held.release()
    waiting.join(LONG_S)
    assert got[0].granted == (0,)
    got[0].release()


def test_lease_of_one_who_died_runs_out(rig):
    small = rig(2)
    small.loader.fetch(0, [0, 1], 0.1)
    assert small.loader.fetch(1, [0, 1], LONG_S).granted == (0, 1)


def test_plan_orders_what_is_kept_and_read(rig, store):
    small = rig(4)
    wanted = {ExpertKey(0, 7): 5, ExpertKey(1, 6): 4, ExpertKey(2, 5): 3, ExpertKey(0, 0): 1, ExpertKey(1, 1): 0}
    small.loader.set_plan(plan(store.shape, wanted))
    top = {key for key, utility in wanted.items() if utility}
    until(lambda: small.present() == top)
    small.loader.set_plan(plan(store.shape, {ExpertKey(2, 2): 9, ExpertKey(0, 7): 5}, epoch=2))
    until(lambda: {ExpertKey(2, 2), ExpertKey(0, 7)} <= small.present())
    before = store.bytes_read
    small.loader.set_plan(plan(store.shape, {}, epoch=3))
    small.loader.fetch(0, [7], LONG_S).release()  # there already: the reads before it are over too
    small.loader.check_integrity()
    assert store.bytes_read == before, "nothing is worth more than what is there: nothing is read"


def test_unknown_experts(rig):
    small = rig(2)
    for layer, experts in ((9, [0]), (0, [8]), (0, [-1]), (0, [])):
        with pytest.raises(KeyError):
            small.loader.fetch(layer, experts, LONG_S)


def test_damaged_expert_is_named_and_the_others_are_served(rig, damaged_store, payloads):
    with (damaged_store / "experts.safetensors").open("r+b") as file:
        file.seek(-4096, 2)  # the last one: layer 2, expert 7
        file.write(b"damage")
    store = ExpertStore.open(damaged_store)
    full = rig(24, store=store)
    assert "layer 2, expert 7: checksum differs" in full.loader.error
    assert full.loader.loaded_bytes == 23 * 3072
    with pytest.raises(StoreCorrupt, match="layer 2, expert 7"):
        full.loader.fetch(2, [7], LONG_S)
    assert full.loader.fetch(2, [6, 7], LONG_S).granted == (6,)
    assert full.reader.view(ExpertKey(2, 7)) is None
    assert {key: full.content(key) for key in payloads if key != ExpertKey(2, 7)} == {
        key: data for key, data in payloads.items() if key != ExpertKey(2, 7)
    }


def test_stop_ends_a_waiting_fetch(rig):
    small = rig(1)
    small.loader.fetch(0, [0], LONG_S)
    errors = []

    def wait():
        with pytest.raises(ExpertsUnavailable, match="stopping") as caught:
            small.loader.fetch(0, [1], LONG_S)
        errors.append(caught)

    waiting = threading.Thread(target=wait)
    waiting.start()
    small.loader.stop()
    waiting.join(LONG_S)
    assert len(errors) == 1


def test_readers_at_least_one(store):
    with pytest.raises(ValueError, match="readers"):
        Rig(store, 2, readers=0, start=False)


def test_many_fetch_at_once_from_a_small_arena(rig, store, payloads):
    """Eight threads, five blocks, plans changing meanwhile: whoever holds a lease sees the right bytes."""
    small = rig(5, readers=3)
    wrong, served = [], []

    def work(seed):
        choose = random.Random(seed)
        for _ in range(40):
            layer, experts = choose.randrange(3), choose.sample(range(8), choose.randint(1, 4))
            lease = small.loader.fetch(layer, experts, LONG_S, urgent=choose.random() < 0.7)
            for expert in lease.granted:
                key = ExpertKey(layer, expert)
                if small.content(key) != payloads[key]:
                    wrong.append(key)
                served.append(key)
            lease.release()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    choose, epoch = random.Random(99), 0
    while any(thread.is_alive() for thread in threads):
        epoch += 1
        small.loader.set_plan(plan(store.shape, {key: choose.randrange(6) for key in payloads}, epoch))
        small.loader.check_integrity()
        threads[0].join(0.01)
    assert wrong == [] and len(served) >= 320


def test_store_on_a_disk_that_fails(rig, store_path, tmp_path):
    """The file is cut under a running loader."""
    store = ExpertStore.open(shutil.copytree(store_path, tmp_path / "copy"))
    small = rig(2, store=store)
    with (tmp_path / "copy" / "experts.safetensors").open("r+b") as file:
        file.truncate(4096)
    with pytest.raises(StoreCorrupt, match="layer 1, expert 4"):
        small.loader.fetch(1, [4], LONG_S)
    (left,) = small.present()  # the other gave its block to the expert that could not be read
    lease = small.loader.fetch(left.layer, [left.expert], LONG_S)
    assert lease.granted == (left.expert,), "what is in memory stays usable"
