"""The actor's life: where its weights come from, what it says while starting, and why it does not start."""

import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from tiny_models import make_qwen3_moe
from tiny_worker import deployment, nobody, until_serving, worker

from moespac.actors.cpu_worker.actor import CpuWorkerActor
from moespac.actors.cpu_worker.weights import StartFailed, convert_here, open_source
from moespac.actors.prefetcher.actor import PrefetcherActor
from moespac.actors.prefetcher.convert import convert
from moespac.actors.prefetcher.store import ExpertStore
from moespac.actors.transport.calls import ExpertCaller
from moespac.actors.transport.endpoint import Endpoint, PeerUnknown
from moespac.actors.transport.peers import Peers
from moespac.configs import ModelConfig


class Names:
    """A directory of running actors."""

    def __init__(self):
        self.endpoints: dict[str, Endpoint] = {}

    def __call__(self, name: str) -> Endpoint:
        try:
            return self.endpoints[name]
        except KeyError:
            raise PeerUnknown(f"no actor {name}") from None


@contextmanager
def prefetcher(store_path: Path, names: Names):
    actor = PrefetcherActor("prefetcher", deployment(), store_path, (), "127.0.0.1", names)
    try:
        until_serving(actor.endpoint().address)
        names.endpoints["prefetcher"] = actor.endpoint()
        yield actor
    finally:
        actor.stop()


def start(store_path: Path, names, **settings) -> CpuWorkerActor:
    return CpuWorkerActor("cpu-0", deployment(**settings), store_path, "prefetcher", "127.0.0.1", names)


def failure_of(actor: CpuWorkerActor) -> str:
    actor._starter.join(30)
    try:
        assert not actor.ready()
        return actor.failure() or ""
    finally:
        actor.stop()


def rows_from(actor: CpuWorkerActor, store_path: Path, layer: int = 0) -> dict[int, torch.Tensor]:
    peers = Peers(lambda name: actor.endpoint())
    pairs = [(e, torch.arange(3), torch.ones(3)) for e in range(8)]
    hidden = torch.randn(3, 32, generator=torch.Generator().manual_seed(1))
    store = ExpertStore.open(store_path)
    try:
        caller = ExpertCaller(peers, store.fingerprint)
        return caller.start("cpu-0", layer, 0, [], hidden, pairs, 20).result()
    finally:
        peers.close()
        store.close()


def same(a: dict[int, torch.Tensor], b: dict[int, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[e], b[e]) for e in a)


def test_an_own_arena_needs_no_prefetcher(store_path) -> None:
    with worker(store_path) as actor:
        assert actor.ready()
        assert actor.failure() is None
        assert actor.progress() == {"stage": "ready", "done": 2, "total": 2}
        assert (actor.endpoint().name, actor.endpoint().kind) == ("cpu-0", "cpu_worker")
        rows_from(actor, store_path)
    assert not actor.ready()
    actor.stop()


@pytest.mark.parametrize("arena", ["auto", "shared"])
def test_the_prefetchers_arena_is_used_where_it_can_be_mapped_even_if_it_comes_later(store_path, arena) -> None:
    names = Names()
    actor = start(store_path, names, arena=arena, memory=None)
    try:
        assert not actor.ready()
        with prefetcher(store_path, names):
            until_serving(actor.endpoint().address)
            assert actor.progress()["stage"] == "ready"
            shared = rows_from(actor, store_path)
            # Nothing was read by the worker itself: the weights are the prefetcher's.
            assert actor._store.bytes_read == 0
        with worker(store_path) as alone:
            assert same(shared, rows_from(alone, store_path))
    finally:
        actor.stop()


def test_the_worker_goes_on_when_the_prefetcher_has_gone(store_path) -> None:
    names = Names()
    # Room for one expert of 24: nearly every expert has to be fetched, or read by the worker itself.
    small = deployment(arena="shared", memory=None)
    small = small.model_copy(update={"prefetcher": small.prefetcher.model_copy(update={"host_memory": 4096})})
    feeder = PrefetcherActor("prefetcher", small, store_path, (), "127.0.0.1", names)
    names.endpoints["prefetcher"] = feeder.endpoint()
    actor = CpuWorkerActor("cpu-0", small, store_path, "prefetcher", "127.0.0.1", names)
    try:
        until_serving(actor.endpoint().address)
        before = rows_from(actor, store_path, layer=1)
        feeder.stop()
        del names.endpoints["prefetcher"]
        assert same(rows_from(actor, store_path, layer=1), before)
        assert actor._store.bytes_read > 0
    finally:
        feeder.stop()
        actor.stop()


def test_on_another_host_memory_of_its_own_is_needed_and_used(store_path) -> None:
    names = Names()
    store = ExpertStore.open(store_path)
    peers = Peers(names)
    with prefetcher(store_path, names):
        arguments = (store, peers, "prefetcher", threading.Event(), 10, "another host")
        with pytest.raises(StartFailed, match=r"devices\.cpu-0\.memory: not set, but .* is on another host: set"):
            open_source(deployment(arena="auto", memory=None).workers[0], *arguments)
        with pytest.raises(StartFailed, match=r"devices\.cpu-0\.arena: shared, but .* on another host: set arena"):
            open_source(deployment(arena="shared", memory=None).workers[0], *arguments)
        source = open_source(deployment(arena="auto", memory=2**20).workers[0], *arguments)
        used = []
        source.with_experts(0, [0, 5], used.extend)
        assert set(used) == {0, 5}
        assert store.bytes_read > 0
        source.close()
    peers.close()
    store.close()


def test_a_prefetcher_with_other_weights_is_refused(store_path, tmp_path) -> None:
    convert(make_qwen3_moe(tmp_path / "target", seed=77), tmp_path / "store")
    names = Names()
    with prefetcher(tmp_path / "store", names):
        failure = failure_of(start(store_path, names, arena="auto"))
    assert "point both at copies of the same store" in failure
    assert str(store_path) in failure


def on_a_bare_machine(tmp_path: Path, **model) -> CpuWorkerActor:
    """A worker whose store is not there."""
    settings = deployment()
    settings = settings.model_copy(update={"model": settings.model.model_copy(update=model)})
    return CpuWorkerActor("cpu-0", settings, tmp_path / "stores" / "none", "prefetcher", "127.0.0.1", nobody)


def test_a_machine_without_the_store_converts_its_own_copy_of_the_model(store_path, tmp_path) -> None:
    actor = on_a_bare_machine(tmp_path, target=store_path.parent / "target")
    try:
        until_serving(actor.endpoint().address)
        assert actor.progress()["stage"] == "ready"
        here = rows_from(actor, tmp_path / "stores" / "none")
    finally:
        actor.stop()
    with worker(store_path) as first:
        assert same(here, rows_from(first, store_path))


def test_a_machine_with_neither_store_nor_model_is_a_failure_with_its_remedy(tmp_path) -> None:
    failure = failure_of(on_a_bare_machine(tmp_path, target=tmp_path / "absent"))
    assert failure.startswith(f"cpu-0: model.target: {tmp_path / 'absent'} is not on this machine")
    assert str(tmp_path / "stores" / "none") in failure
    assert "at the same path on every machine" in failure


def test_conversion_is_seen_and_ends_with_the_actor(store_path, tmp_path) -> None:
    actor = start(store_path, nobody, arena="auto")  # it waits for a prefetcher: what follows is all that is converted
    try:
        actor._converting(3, 7)
        assert actor.progress() == {"stage": "converting", "done": 3, "total": 7}
    finally:
        actor.stop()
    with pytest.raises(StartFailed, match="stopped while starting"):
        convert_here(ModelConfig(target=store_path.parent / "target"), tmp_path / "store", actor._converting)
    assert list(tmp_path.iterdir()) == []


def test_memory_below_one_expert_is_a_failure_that_says_how_much(store_path) -> None:
    assert "does not hold one expert" in failure_of(start(store_path, nobody, memory=100))


def test_a_prefetcher_that_never_comes_is_a_failure_in_time(store_path) -> None:
    store = ExpertStore.open(store_path)
    config = deployment(arena="auto").workers[0]
    with pytest.raises(StartFailed, match=r"prefetcher: not reached within 0\.2 s \(no actor prefetcher\)"):
        open_source(config, store, Peers(nobody), "prefetcher", threading.Event(), limit_s=0.2)
    store.close()


def test_stopping_ends_the_wait_for_the_prefetcher(store_path) -> None:
    actor = start(store_path, nobody, arena="auto")
    actor.stop()
    assert actor.failure() == "cpu-0: stopped while starting"
