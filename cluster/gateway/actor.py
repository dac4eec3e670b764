"""The gateway as an actor: the client-facing server on an event loop of its own."""

from __future__ import annotations

import os

from ...actors.ray_context import listen_host, node_id
from ...actors.transport.endpoint import Endpoint, PeerUnknown, Resolve
from ...actors.transport.errors import CannotListen
from ...actors.transport.event_loop import EventLoopThread
from ...actors.transport.server import address_of
from ...configs import Deployment
from .server import GatewayServer
from .service import ActorsInfo
from .text import TokenizerError

EVERY_ADDRESS = ("0.0.0.0", "[::]")
STAGES = ("tokenizer", "scheduler", "ready")
"""Of the start-up: reading the tokenizer and listening, waiting for the scheduler to be ready, serving."""


class GatewayActor:
    """Where clients connect. The constructor returns at once; `ready` says when a token can be produced."""

    def __init__(
        self,
        name: str,
        deployment: Deployment,
        scheduler_name: str,
        host: str,
        resolve: Resolve,
        actors_info: ActorsInfo | None = None,
    ):
        """It listens where the deployment's `service` says; `host`: by which it is announced when that is every
        address of the node; `resolve`: finds the scheduler; `actors_info`: lists the actors for Status.
        """
        self._host = host
        self._server = GatewayServer(
            deployment, resolve, actors_info, name=name, scheduler_name=scheduler_name, died=_end_process
        )
        self._name = name
        self._endpoint: Endpoint | None = None
        self._failure: str | None = None
        self._stopped = False
        self._thread = EventLoopThread(f"{name}-loop")
        self._starting = self._thread.spawn(self._start())

    def endpoint(self) -> Endpoint:
        """Where it listens. Raises PeerUnknown while it does not yet, or when it failed to."""
        if self._endpoint is None:
            raise PeerUnknown(f"{self._name} does not listen: {self._failure or 'it is starting'}")
        return self._endpoint

    def progress(self) -> dict[str, str | int]:
        """`stage`: its name; `done` and `total`: stages of the start-up."""
        done = 0 if self._endpoint is None else 2 if self._server.ready else 1
        return {"stage": STAGES[done], "done": done, "total": len(STAGES) - 1}

    def ready(self) -> bool:
        """Whether a token can be produced now."""
        return self._endpoint is not None and self._server.ready and not self._stopped

    def failure(self) -> str | None:
        """Why the start-up failed, with what to change; None while it goes on and after it succeeded."""
        return self._failure

    def stop(self, grace_s: float | None = None) -> None:
        """Drains for `grace_s` seconds (None: the deployment's `drain_timeout`), then stops. Idempotent."""
        if self._stopped:
            return
        self._stopped = True
        self._starting.result()
        if self._endpoint is not None:
            self._thread.run(self._server.stop(grace_s))
        self._thread.close()

    async def _start(self) -> None:
        try:
            address = await self._server.start()
        except (TokenizerError, CannotListen) as error:
            self._failure = f"{self._name}: {error}"
            return
        listening, port = address.rsplit(":", 1)
        if listening in EVERY_ADDRESS:
            address = address_of(listen_host(self._host), int(port))
        self._endpoint = Endpoint(self._name, "gateway", address, node_id())


def _end_process() -> None:
    # It would look alive and tell clients what was true once: Ray starts a new one.
    os._exit(70)
