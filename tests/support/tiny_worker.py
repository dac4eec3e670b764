"""A CPU worker on a small store: in this process, or in one of its own (`python tiny_worker.py STORE`)."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc

from moespac.actors.cpu_worker.actor import CpuWorkerActor
from moespac.actors.transport.endpoint import Endpoint, PeerUnknown
from moespac.actors.transport.peers import open_channel
from moespac.configs import CpuDeviceConfig, Deployment, GpuDeviceConfig, ModelConfig, PrefetcherConfig

START_LIMIT_S = 60


def deployment(compute_dtype: str = "float32", **worker) -> Deployment:
    """One worker, `cpu-0`; its arena is its own unless said otherwise."""
    worker = {"arena": "own", "memory": 2**20} | worker
    return Deployment(
        model=ModelConfig(target=Path("target"), compute_dtype=compute_dtype),
        devices=(
            GpuDeviceConfig(name="gpu-0", torch_device="cpu", expert_memory=0, kv_memory=2**20),
            CpuDeviceConfig(name="cpu-0", **{k: v for k, v in worker.items() if v is not None}),
        ),
        prefetcher=PrefetcherConfig(host_memory=2**20),
    )


def nobody(name: str) -> Endpoint:
    """Resolves no name."""
    raise PeerUnknown(f"no actor {name}")


def until_serving(address: str) -> None:
    """Returns when the server at `address` says that it is ready."""
    deadline = time.monotonic() + START_LIMIT_S
    request = health_pb2.HealthCheckRequest()
    with open_channel(address) as channel:
        # Asked, not watched: health's Watch may block the whole server when the watcher leaves.
        stub = health_pb2_grpc.HealthStub(channel)
        while stub.Check(request, timeout=START_LIMIT_S).status != health_pb2.HealthCheckResponse.SERVING:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{address} was not ready within {START_LIMIT_S} s")
            time.sleep(0.01)


@contextmanager
def worker(store: Path, **settings) -> Iterator[CpuWorkerActor]:
    """A worker in this process, ready."""
    actor = CpuWorkerActor("cpu-0", deployment(**settings), store, "prefetcher", "127.0.0.1", nobody)
    try:
        until_serving(actor.endpoint().address)
        yield actor
    finally:
        actor.stop()


@contextmanager
def worker_process(store: Path) -> Iterator[tuple[subprocess.Popen, Endpoint]]:
    """A worker in a process of its own, ready."""
    process = subprocess.Popen(
        [sys.executable, __file__, str(store)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        address = process.stdout.readline().strip()
        until_serving(address)
        yield process, Endpoint("cpu-0", "cpu_worker", address, pid=process.pid)
    finally:
        process.kill()
        process.communicate()


if __name__ == "__main__":
    torch.set_num_threads(1)
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))  # the address alone goes to stdout
    with worker(Path(sys.argv[1])) as running:
        print(running.endpoint().address, flush=True)
        sys.stdin.read()  # until the parent closes it, or dies
