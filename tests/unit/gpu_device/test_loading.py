"""What a device waits for when it starts, and what it does not."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import replace

import pytest
import torch
from tiny_device import make_store
from tiny_models import make_qwen3_moe

from moespac.actors.core import CostSample
from moespac.actors.cost_conditions import conditions
from moespac.actors.cost_file import CostFile
from moespac.actors.gpu_device.actor import GpuDeviceActor
from moespac.actors.gpu_device.link import TransferLog
from moespac.actors.gpu_device.loading import DeviceUnusable, fitting, known_costs
from moespac.actors.gpu_device.measured_costs import MeasuredCosts
from moespac.actors.policy.cost import CostModel
from moespac.actors.prefetcher.arena import Arena
from moespac.actors.prefetcher.loader import Loader
from moespac.actors.prefetcher.service import Engine, PrefetcherService
from moespac.actors.prefetcher.store import ExpertStore
from moespac.actors.transport.endpoint import Endpoint, PeerUnknown
from moespac.actors.transport.peers import Peers
from moespac.actors.transport.server import ActorServer
from moespac.configs import CpuDeviceConfig, Deployment, GpuDeviceConfig, ModelConfig, PrefetcherConfig
from moespac.protos.v1.steps_pb2_grpc import add_PrefetcherServicer_to_server


def test_what_the_device_has_no_memory_for_is_named_with_a_remedy():
    config = GpuDeviceConfig(name="gpu-0", torch_device="cpu", expert_memory=0, kv_memory=2**20)
    with (
        pytest.raises(DeviceUnusable, match=r"devices\.gpu-0: the trunk does not fit in the memory of cpu: choose"),
        fitting(config, "the trunk", "choose another"),
    ):
        torch.empty(2**60, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="of another kind"), fitting(config, "the trunk", "choose another"):
        raise RuntimeError("of another kind")


def test_an_arena_on_another_host_is_refused_at_once(tmp_path):
    target = make_qwen3_moe(tmp_path / "target")
    store_path = make_store(target, tmp_path / "store")
    with closing(ExpertStore.open(store_path)) as store:
        arena = Arena.create(store.shape, 2**20)
        arena.location = replace(arena.location, host_id="another machine")
        loader = Loader(store, arena, 1)
        loader.start()
        service, server = PrefetcherService("prefetcher"), ActorServer("prefetcher")
        service.serve(Engine(store, arena, loader, lambda _plan: None))
        server.add(add_PrefetcherServicer_to_server, service)
        endpoint = Endpoint("prefetcher", "prefetcher", server.start())
        deployment = Deployment(
            model=ModelConfig(target=target),
            devices=(GpuDeviceConfig(name="gpu-0", torch_device="cpu", expert_memory=0, kv_memory=2**20),),
            prefetcher=PrefetcherConfig(host_memory=2**20),
        )
        actor = GpuDeviceActor("gpu-0", deployment, store_path, "prefetcher", [], "127.0.0.1", lambda _name: endpoint)
        try:
            give_up = time.monotonic() + 30
            while actor.failure() is None:
                assert time.monotonic() < give_up
                time.sleep(0.02)
            assert "devices.gpu-0.placement" in actor.failure() and "the same placement" in actor.failure()
        finally:
            actor.stop()
            server.stop(0)
            loader.stop()
            arena.close()


def test_costs_measured_before_are_known_of_workers_that_are_up(tmp_path):
    deployment = Deployment(
        model=ModelConfig(target=tmp_path / "target"),
        devices=(
            GpuDeviceConfig(name="gpu-0", torch_device="cpu", expert_memory=0, kv_memory=2**20),
            CpuDeviceConfig(name="cpu-0"),
            CpuDeviceConfig(name="cpu-1"),
        ),
        prefetcher=PrefetcherConfig(host_memory=2**20),
    )
    everybody = {name: Endpoint(name, "", "127.0.0.1:1", hardware="A") for name in ("prefetcher", "cpu-0", "cpu-1")}

    def resolve(name: str) -> Endpoint:
        if name != "prefetcher" and name != "cpu-1":
            raise PeerUnknown(name)
        return everybody[name]

    with closing(ExpertStore.open(make_store(make_qwen3_moe(tmp_path / "target"), tmp_path / "store"))) as store:
        before = conditions(deployment, store.fingerprint, everybody, "prefetcher")
        CostFile(store.path).save(before, [CostSample(name, 2, 4, 0.7) for name in ("cpu-0", "cpu-1")])
        known = known_costs(deployment, store, Peers(resolve), "prefetcher")
        assert {sample.actor for sample in known} == {"cpu-1"}, "cpu-0 may have come back on other hardware"
        costs = MeasuredCosts(CostModel(store.shape.expert_bytes, "gpu-0"), TransferLog())
        costs.take_up(known, "gpu-0")
        assert costs.call_s("cpu-1", 2, 4) == pytest.approx(0.7, rel=1e-3)
        assert costs.call_s("cpu-0", 2, 4) < 0.01
