"""The scheduler restarts, hangs or stays away: what the gateway's clients see of it."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import scripted_scheduler
from gateway_system import TEXT, error_both, use, wait_until
from grpc_health.v1 import health_pb2, health_pb2_grpc
from scripted_scheduler import Script, ScriptedScheduler

from moespac.actors.transport.peers import open_channel
from moespac.cluster.client import Client, DeadlineExceeded, Unavailable
from moespac.cluster.gateway import scheduler_link


@contextlib.contextmanager
def scheduler_process(script: dict):
    program = Path(scripted_scheduler.__file__)
    command = [sys.executable, str(program), json.dumps(script)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize("before", [0, 9])
def test_scheduler_killed_midway_leaves_neither_gap_nor_repetition(start, tokens, before):
    system = start()
    with scheduler_process({"tokens": tokens, "pause_after": before, "first_after_s": 0.005}) as (process, address):
        system.registry.put("scheduler", address)
        with Client(system.address) as client:
            client.wait_ready(20)
            generation = client.generate("a", max_tokens=200, timeout=60)
            reader = iter(generation)
            while len(generation.token_ids) < before:
                next(reader)
            assert process.stdout.readline().strip()  # the request has arrived, however little was answered
            process.kill()
            process.wait()
            system.registry.put("scheduler", None)
            wait_until(lambda: not system.gateway.ready)
            scheduler = system.scheduler(Script(tokens, per_event=2))
            rest = list(reader)
    assert generation.text == TEXT and rest
    assert generation.token_ids == tokens
    assert list(scheduler.requests[0].emitted_ids) == tokens[:before]
    statistics = generation.statistics
    assert statistics.restarts == 1
    assert statistics.tokens == len(tokens)
    assert statistics.ttft_s > 0.001 and statistics.tokens_per_second > 0


def test_many_streams_survive_two_restarts_on_the_same_port(start, tokens):
    system = start()
    scheduler = system.scheduler(Script(tokens, pause_after=4))
    port = int(scheduler.address.rsplit(":", 1)[1])
    results: list = []

    def run():
        with Client(system.address) as client:
            generation = client.generate("a", max_tokens=200, timeout=60)
            results.append((list(generation), generation))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for pause_after in (11, None):
        wait_until(lambda requests=scheduler.requests: len(requests) == 4)
        scheduler.stop()
        scheduler = system.scheduler(Script(tokens, pause_after=pause_after), port)
    for thread in threads:
        thread.join(60)
    assert len(results) == 4
    for pieces, generation in results:
        assert "".join(pieces) == TEXT and generation.token_ids == tokens
        assert generation.statistics.tokens == len(tokens)


def test_scheduler_that_still_holds_the_interrupted_stream_is_asked_again(start, tokens):
    system = start()
    scheduler = system.scheduler(Script(tokens, pause_after=4))
    with Client(system.address) as client:
        generation = client.generate("a", timeout=60)
        reader = iter(generation)
        next(reader)
        scheduler.stop()
        held = ("ALREADY_EXISTS", "request is running already")
        scheduler = system.scheduler(Script(tokens, refuse=held))
        wait_until(lambda: len(scheduler.requests) >= 2)
        scheduler.script.refuse = None
        list(reader)
    assert generation.token_ids == tokens


class OfEmulatedDevice(ScriptedScheduler):
    def Status(self, request, context):
        reply = super().Status(request, context)
        reply.device.emulated = True
        return reply


@pytest.mark.parametrize("kind", [ScriptedScheduler, OfEmulatedDevice])
def test_scheduler_lost_behind_the_last_token(start, tokens, tokenizer, kind):
    system = start()
    scheduler = system.scheduler(Script(tokens, pause_after=5), kind=kind)
    with Client(system.address) as client:
        generation = client.generate("a", max_tokens=5, timeout=30)
        reader = iter(generation)
        while len(generation.token_ids) < 5:
            next(reader)
        scheduler.stop()
        list(reader)
    assert generation.text == tokenizer.decode(tokens[:5])
    statistics = generation.statistics
    assert (statistics.tokens, statistics.finish_reason, statistics.restarts) == (5, "length", 1)
    assert statistics.emulated is (kind is OfEmulatedDevice)


def test_scheduler_that_stays_away_ends_the_stream_with_a_clear_error(start, tokens):
    system = start(patience_s=1.0)
    scheduler = system.scheduler(Script(tokens, pause_after=3))
    with Client(system.address) as client:
        generation = client.generate("a")
        reader = iter(generation)
        next(reader)
        system.registry.put("scheduler", None)
        scheduler.stop()
        with pytest.raises(Unavailable, match=r"away for 1 s .*scheduler is away"):
            list(reader)


@pytest.mark.parametrize("known", [False, True])
def test_scheduler_that_takes_connections_and_says_nothing(start, tokens, monkeypatch, known):
    monkeypatch.setattr(scheduler_link, "CONNECT_TIMEOUT_S", 0.3)
    system = start(patience_s=1.0)
    if known:
        scheduler = system.scheduler(Script(tokens))
        wait_until(lambda: system.gateway.ready)
        scheduler.stop()
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        system.registry.put("scheduler", f"127.0.0.1:{silent.getsockname()[1]}")
        wait_until(lambda: not system.gateway.ready)
        started = time.monotonic()
        with Client(system.address) as client, pytest.raises(Unavailable, match=r"away for 1 s .*did not answer"):
            list(client.generate("a", timeout=30))
        assert time.monotonic() - started < 6
        with open_channel(system.address) as channel:
            reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
        assert reply.status == health_pb2.HealthCheckResponse.NOT_SERVING
    system.scheduler(Script(tokens))
    wait_until(lambda: system.gateway.ready)


def test_deadline_holds_while_the_scheduler_is_away(start, tokens):
    system = start(patience_s=60.0)
    started = time.monotonic()
    assert isinstance(error_both(system.address, "a", timeout=0.6), DeadlineExceeded)
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("code", ["UNAVAILABLE", "CANCELLED"])
def test_scheduler_that_is_not_ready_only_puts_the_request_off(start, tokens, code):
    system = start()
    scheduler = system.scheduler(Script(tokens, refuse=(code, "the device is not ready")))
    with Client(system.address) as client:
        generation = client.generate("a", timeout=60)
        wait_until(lambda: len(scheduler.requests) >= 2)
        scheduler.script.refuse = None
        assert "".join(generation) == TEXT
    assert generation.statistics.restarts == 0


def test_health_follows_the_scheduler(start, tokens):
    system = start()
    serving = health_pb2.HealthCheckResponse
    with open_channel(system.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)

        def says(status):
            requests = [health_pb2.HealthCheckRequest(service=name) for name in ("", "moespac.v1.Generation")]
            return all(health.Check(request, timeout=5).status == status for request in requests)

        assert says(serving.NOT_SERVING)
        scheduler = system.scheduler(Script(tokens, ready=False))
        wait_until(lambda: use(system.address, lambda c: c.status().device.context_length) == 256)
        assert says(serving.NOT_SERVING)
        with Client(system.address) as client, pytest.raises(DeadlineExceeded, match=r"was not ready after 0\.3 s"):
            client.wait_ready(0.3)
        scheduler.script.ready = True
        wait_until(lambda: says(serving.SERVING))
        scheduler.stop()
        wait_until(lambda: says(serving.NOT_SERVING))
        with Client(system.address) as client:
            assert not client.status().ready
