"""A gateway in this process, in front of scripted schedulers."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from scripted_scheduler import Registry, Script, ScriptedScheduler

from moespac.actors.transport.event_loop import EventLoopThread
from moespac.cluster.client import AsyncClient, Client, MoespacError
from moespac.cluster.gateway.server import GatewayServer
from moespac.configs import (
    Deployment,
    DraftConfig,
    GpuDeviceConfig,
    ModelConfig,
    PrefetcherConfig,
    SchedulerConfig,
    ServiceConfig,
)

TEXT = "the expert, été: 東京 🙂 naïve" * 2
"""What the scripted schedulers' tokens say."""


def deployment(
    target: Path, port: int = 0, host: str = "127.0.0.1", metrics_port: int | None = None, **scheduler
) -> Deployment:
    return Deployment(
        name="test",
        model=ModelConfig(target=target),
        devices=(GpuDeviceConfig(name="gpu-0", torch_device="cpu", expert_memory=0, kv_memory=1 << 20),),
        prefetcher=PrefetcherConfig(host_memory=1 << 20),
        draft=DraftConfig(kinds=()),
        scheduler=SchedulerConfig(**scheduler),
        service=ServiceConfig(host=host, port=port, metrics_port=metrics_port),
    )


class System:
    """A gateway on a loop of its own, a registry, and the scripted schedulers of one test."""

    def __init__(self, target: Path, patience_s: float = 30.0, **scheduler):
        self.registry = Registry()
        self.loop = EventLoopThread("gateway-loop")
        self.gateway = GatewayServer(deployment(target, **scheduler), self.registry, patience_s=patience_s)
        self.address = self.loop.run(self.gateway.start())
        self._schedulers: list[ScriptedScheduler] = []

    def scheduler(self, script: Script, port: int = 0, kind: type = ScriptedScheduler) -> ScriptedScheduler:
        scheduler = kind(script, port=port)
        self._schedulers.append(scheduler)
        self.registry.put("scheduler", scheduler.address)
        return scheduler

    def close(self) -> None:
        self.loop.run(self.gateway.stop(0))
        self.loop.close()
        for scheduler in self._schedulers:
            scheduler.stop()


def wait_until(condition, seconds: float = 15.0) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "did not happen in time"
        time.sleep(0.02)


def use(address: str, call):
    """Runs `call(client)` for the synchronous client."""
    with Client(address) as client:
        return call(client)


def generate_both(address: str, prompt: str, **arguments):
    """The same generation through both clients: [(pieces, generation)]."""
    with Client(address) as client:
        generation = client.generate(prompt, **arguments)
        results = [(list(generation), generation)]

    async def run():
        async with AsyncClient(address) as client:
            generation = client.generate(prompt, **arguments)
            return [piece async for piece in generation], generation

    return [*results, asyncio.run(run())]


def error_both(address: str, *args, **arguments) -> MoespacError:
    """The error that both clients raise for a generation, which must be the same."""
    with Client(address) as client, pytest.raises(MoespacError) as sync_error:
        list(client.generate(*args, **arguments))

    async def run():
        async with AsyncClient(address) as client:
            async for _ in client.generate(*args, **arguments):
                pass

    with pytest.raises(MoespacError) as async_error:
        asyncio.run(run())
    assert type(async_error.value) is type(sync_error.value)
    assert async_error.value.message == sync_error.value.message
    return sync_error.value
