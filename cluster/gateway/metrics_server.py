"""`/metrics` for Prometheus, on a port and threads of its own: gathered anew at every scrape."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from ...actors.transport.errors import PortInUse
from ...actors.transport.server import check_can_listen
from ...protos.v1 import generation_pb2 as pb
from .metrics import families

SCRAPE_S = 2.0
"""A scheduler that takes longer to say how it is counts as away; Prometheus itself gives up after 10 s."""
LOOP_S = 1.0
"""How much longer the event loop may take to hand over what it has."""
Ask = Callable[[float], Awaitable[tuple[pb.StatusReply, bool]]]
"""Status within so many seconds, and whether the scheduler answered."""


class MetricsServer:
    """For the event loop on which it is started."""

    def __init__(self, host: str, port: int, ask: Ask):
        check_can_listen(host, port, "metrics_port")
        registry = CollectorRegistry()
        registry.register(_Scrape(ask, asyncio.get_running_loop()))
        try:
            self._server, _ = start_http_server(port, host.strip("[]"), registry)
        except OSError as error:  # somebody was faster than this process
            raise PortInUse(host, port, "metrics_port") from error
        self.port: int = self._server.server_port

    async def stop(self) -> None:
        await asyncio.to_thread(self._server.shutdown)
        self._server.server_close()


class _Scrape(Collector):
    def __init__(self, ask: Ask, loop: asyncio.AbstractEventLoop):
        self._ask, self._loop = ask, loop

    def collect(self) -> Iterator[Metric]:
        asked = asyncio.run_coroutine_threadsafe(self._ask(SCRAPE_S), self._loop)
        yield from families(*asked.result(SCRAPE_S + LOOP_S))
