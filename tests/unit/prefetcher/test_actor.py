import time
from pathlib import Path

import pytest

from moespac.actors.prefetcher.actor import PrefetcherActor
from moespac.actors.transport.endpoint import Endpoint, PeerUnknown
from moespac.configs import Deployment, GpuDeviceConfig, ModelConfig, PrefetcherConfig

STRIDE = 4096


def nobody(name: str) -> Endpoint:
    raise PeerUnknown(f"no actor {name}")


def deployment(host_memory: int) -> Deployment:
    return Deployment(
        model=ModelConfig(target=Path("target")),
        devices=(GpuDeviceConfig(name="gpu-0", torch_device="cpu", expert_memory=0, kv_memory=2**20),),
        prefetcher=PrefetcherConfig(host_memory=host_memory),
    )


@pytest.fixture
def start(store_path):
    started = []

    def make(host_memory=24 * STRIDE, path=store_path):
        actor = PrefetcherActor("prefetcher", deployment(host_memory), path, ("gpu-0",), "127.0.0.1", nobody)
        started.append(actor)
        return actor

    yield make
    for actor in started:
        actor.stop()
        actor.stop()


def until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.01)


def test_starts_fills_and_stops(start):
    actor = start(host_memory=10 * STRIDE)
    assert actor.endpoint().kind == "prefetcher" and actor.endpoint().address.startswith("127.0.0.1:")
    until(actor.ready)
    assert actor.progress() == {"stage": "ready", "done": 10 * 3072, "total": 10 * 3072}
    assert actor.failure() is None
    actor.stop()
    assert not actor.ready()


def test_missing_store(start, tmp_path):
    actor = start(path=tmp_path / "nowhere")
    until(actor.failure)
    assert "nowhere" in actor.failure() and "moespac convert" in actor.failure() and not actor.ready()


def test_budget_smaller_than_one_expert(start):
    actor = start(host_memory=STRIDE - 1)
    until(actor.failure)
    assert "host_memory of 4,095 bytes does not hold one expert" in actor.failure()


def test_damaged_store(start, damaged_store):
    with (damaged_store / "experts.safetensors").open("r+b") as file:
        file.seek(-4096, 2)
        file.write(b"damage")
    actor = start(path=damaged_store)
    until(actor.failure)
    assert "layer 2, expert 7: checksum differs" in actor.failure() and not actor.ready()
