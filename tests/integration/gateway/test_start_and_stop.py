"""Where the gateway listens, how it starts, drains and stops, and when its process ends."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from pathlib import Path

import gateway_system
import grpc
import pytest
from gateway_system import TEXT, deployment, use, wait_until
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from scripted_scheduler import Registry, Script, ScriptedScheduler

from moespac.actors.transport.errors import PortInUse
from moespac.cluster.client import Client, Unavailable
from moespac.cluster.gateway.actor import GatewayActor
from moespac.cluster.gateway.server import GatewayServer
from moespac.protos.v1 import generation_pb2


def test_reflection_lists_the_services(start, tokens):
    system = start(Script(tokens))
    with grpc.insecure_channel(system.address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        reply = next(iter(stub.ServerReflectionInfo(iter([request]), timeout=10)))
    names = {service.name for service in reply.list_services_response.service}
    assert names == {"moespac.v1.Generation", "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}


def test_port_in_use_is_named(target):
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        with pytest.raises(PortInUse, match=str(port)):
            asyncio.run(GatewayServer(deployment(target, port), Registry()).start())


def test_second_gateway_on_one_port_is_refused(start, target):
    port = int(start().address.rsplit(":", 1)[1])
    with pytest.raises(PortInUse, match=f"port {port} is in use on 127.0.0.1"):
        asyncio.run(GatewayServer(deployment(target, port), Registry()).start())


@pytest.mark.parametrize(
    ("host", "announced"),
    [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.2"), ("::", "127.0.0.2"), ("::1", "[::1]"), ("[::1]", "[::1]")],
)
def test_the_actor_is_announced_where_it_can_be_reached(target, host, announced):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.create_server((host.strip("[]"), 0), family=family) as free:
            port = free.getsockname()[1]
    except OSError as error:
        pytest.skip(f"this machine has no {host}: {error}")
    actor = GatewayActor("gateway", deployment(target, port, host), "scheduler", "127.0.0.2", Registry())
    try:
        wait_until(lambda: actor.progress()["stage"] == "scheduler")
        assert actor.endpoint().address == f"{announced}:{port}"
        assert use(actor.endpoint().address, lambda client: client.status()).deployment == "test"
    finally:
        actor.stop(0)


@pytest.mark.parametrize("port", [0, 50051])
def test_an_address_of_another_machine_is_no_port_in_use(target, port):
    actor = GatewayActor("gateway", deployment(target, port, "192.0.2.1"), "scheduler", "127.0.0.1", Registry())
    wait_until(lambda: actor.failure())
    assert "gateway: host 192.0.2.1 cannot be listened on" in actor.failure()
    assert "write an address of this machine" in actor.failure()
    actor.stop()


def test_stop_lets_running_streams_finish(start, tokens):
    system = start()
    scheduler = system.scheduler(Script(tokens, pause_after=3))
    with Client(system.address) as client:
        reader = iter(client.generate("a"))
        first = next(reader)
        stopping = system.loop.spawn(system.gateway.stop(30))
        wait_until(lambda: refused(client))
        scheduler.go_on()
        assert first + "".join(reader) == TEXT
        stopping.result(10)


def test_stop_ends_streams_that_take_too_long(start, tokens):
    system = start()
    scheduler = system.scheduler(Script(tokens, pause_after=3))
    with Client(system.address) as client:
        reader = iter(client.generate("a"))
        next(reader)
        stopping = system.loop.spawn(system.gateway.stop(0.3))
        with pytest.raises(Unavailable, match="shutting down"):
            list(reader)
        stopping.result(10)
    assert scheduler.left.wait(10)


def refused(client: Client) -> bool:
    try:
        next(iter(client.generate("a")))
    except Unavailable as error:
        return "shutting down" in error.message
    return False


def test_status_lists_the_actors_it_is_told_of(target, tokens):
    registry, told = Registry(), [generation_pb2.ActorInfo(name="cpu-0", kind="cpu_worker", pid=7, ready=True)]
    actor = GatewayActor("gateway", deployment(target), "scheduler", "127.0.0.1", registry, lambda: told)
    try:
        wait_until(lambda: actor.progress()["stage"] == "scheduler")
        status = use(actor.endpoint().address, lambda client: client.status())
        assert list(status.actors) == told and not status.ready and status.version
        with pytest.raises(Unavailable, match="nothing is known of the model yet"):
            use(actor.endpoint().address, lambda client: client.models())
    finally:
        actor.stop(0)


def test_actor_serves_from_its_own_thread(target, tokens):
    registry = Registry()
    scheduler = ScriptedScheduler(Script(tokens))
    registry.put("scheduler", scheduler.address)
    actor = GatewayActor("gateway", deployment(target), "scheduler", "127.0.0.1", registry)
    try:
        wait_until(actor.ready)
        assert actor.progress() == {"stage": "ready", "done": 2, "total": 2}
        endpoint = actor.endpoint()
        assert (endpoint.name, endpoint.kind, actor.failure()) == ("gateway", "gateway", None)
        assert use(endpoint.address, lambda client: "".join(client.generate("a"))) == TEXT
    finally:
        actor.stop(1.0)
        scheduler.stop()
    assert not actor.ready()
    with Client(endpoint.address) as client, pytest.raises(Unavailable):
        list(client.generate("a", timeout=10))


def test_actor_tells_why_it_failed(target, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        actor = GatewayActor("gateway", deployment(target, port), "scheduler", "127.0.0.1", Registry())
        wait_until(lambda: actor.failure())
        assert str(port) in actor.failure() and not actor.ready()
        actor.stop()
    actor = GatewayActor("gateway", deployment(tmp_path), "scheduler", "127.0.0.1", Registry())
    wait_until(lambda: actor.failure())
    assert "tokenizer.json: no such file" in actor.failure()
    actor.stop()


DEFECT = """
import sys, threading
from pathlib import Path
from gateway_system import deployment
from moespac.cluster.gateway.actor import GatewayActor

def resolve(name):
    raise RuntimeError("a defect")

if __name__ == "__main__":
    actor = GatewayActor("gateway", deployment(Path(sys.argv[1])), "scheduler", "127.0.0.1", resolve)
    threading.Event().wait(60)
"""


def test_an_actor_that_cannot_follow_readiness_any_more_ends_its_process(target):
    ended = subprocess.run(
        [sys.executable, "-c", DEFECT, str(target)],
        env=os.environ | {"PYTHONPATH": str(Path(gateway_system.__file__).parent)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 70, ended.stderr
    assert "a defect" in ended.stdout + ended.stderr
