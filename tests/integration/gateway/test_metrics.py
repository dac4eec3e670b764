"""`/metrics` of a gateway, whatever state the scheduler behind it is in."""

from __future__ import annotations

import asyncio
import socket
import time

import pytest
from gateway_system import deployment, wait_until
from scraping import scrape
from scripted_scheduler import Registry, Script

from moespac.actors.transport.errors import PortInUse
from moespac.cluster.client import Client, DeadlineExceeded, InvalidRequest, ResourceExhausted
from moespac.cluster.gateway import metrics_server
from moespac.cluster.gateway.server import GatewayServer


def test_a_scheduler_that_is_away_or_silent_does_not_hang_the_scrape(start, tokens, monkeypatch):
    monkeypatch.setattr(metrics_server, "SCRAPE_S", 0.5)
    system = start(metrics_port=0)
    with Client(system.address) as client:
        port = client.status().metrics_port
    url = f"http://127.0.0.1:{port}/metrics"
    started = time.monotonic()
    assert scrape(url)["moespac_up"] == 0
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        system.registry.put("scheduler", f"127.0.0.1:{silent.getsockname()[1]}")
        assert scrape(url)["moespac_up"] == 0
        assert time.monotonic() - started < 3
    system.scheduler(Script(tokens))
    wait_until(lambda: scrape(url)["moespac_up"] == 1)
    assert scrape(url)["moespac_requests_running"] == 1


def test_every_request_is_counted_with_its_outcome(start, tokens):
    system = start(metrics_port=0, max_running=1, max_waiting=0)
    scheduler = system.scheduler(Script(tokens))
    with Client(system.address) as client:
        client.wait_ready(20)
        list(client.generate("a", max_tokens=3))
        list(client.generate("a", max_tokens=200))
        for options in ({"max_tokens": 0}, {"temperature": -1.0}):
            with pytest.raises(InvalidRequest):
                list(client.generate("a", **options))
        scheduler.script.pause_after = 2
        held = client.generate("a")
        reader = iter(held)
        next(reader)
        with pytest.raises(ResourceExhausted):
            list(client.generate("a", timeout=10))
        held.cancel()
        status = client.status

        def ended(**outcomes: int) -> bool:
            return {name: count for name, count in status().requests.outcomes.items() if count} == outcomes

        wait_until(lambda: ended(length=1, stop=1, invalid=2, refused=1, cancelled=1))
        with pytest.raises(DeadlineExceeded):
            list(client.generate("a", timeout=0.3))
        wait_until(lambda: ended(length=1, stop=1, invalid=2, refused=1, cancelled=1, deadline=1))
        samples = scrape(f"http://127.0.0.1:{status().metrics_port}/metrics")
    assert samples['moespac_requests_total{outcome="invalid"}'] == 2
    assert samples["moespac_ttft_seconds_count"] == samples["moespac_tpot_seconds_count"] == 2


def test_a_port_in_use_is_named(target):
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        with pytest.raises(PortInUse, match=f"metrics_port {port} is in use on 127.0.0.1"):
            asyncio.run(GatewayServer(deployment(target, metrics_port=port), Registry()).start())
