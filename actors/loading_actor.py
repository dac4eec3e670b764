"""What CPU worker, GPU device and prefetcher have in common as actors: they listen at once and load meanwhile."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from typing import ClassVar

import structlog

from ..errors import UserError
from .hardware import host_hardware
from .ray_context import listen_host, node_id
from .transport.endpoint import Endpoint, Resolve
from .transport.peers import Peers
from .transport.server import ActorServer


class LoadingActor(ABC):
    """The constructor returns at once; a thread loads, and `ready` says when work is done.

    A subclass's constructor adds its services to `_server` and then calls `_open`.
    """

    kind: ClassVar[str]

    def __init__(self, name: str, host: str, resolve: Resolve, handler_threads: int):
        """`host`: address to listen on; `resolve`: finds other actors."""
        self._log = structlog.get_logger().bind(actor=name)
        self._name = name
        self._peers = Peers(resolve)
        self._server = ActorServer(name, listen_host(host), threads=handler_threads)
        self._failure: str | None = None
        self._loaded = False
        self._stopping = threading.Event()

    def _open(self) -> None:
        self._endpoint = Endpoint(self._name, self.kind, self._server.start(), node_id(), self._hardware())
        self._starter = threading.Thread(target=self._start, name=f"{self._name}-start", daemon=True)
        self._starter.start()

    def _hardware(self) -> str:
        """What it computes on."""
        return host_hardware()

    def endpoint(self) -> Endpoint:
        """Where it listens, from the first moment on; calls that need what is being loaded are refused until then."""
        return self._endpoint

    @abstractmethod
    def progress(self) -> dict[str, str | int]:
        """`stage`: what it does now; `done` of `total`, in the stage's unit."""

    def ready(self) -> bool:
        """Whether it does its work."""
        return self._loaded and not self._stopping.is_set()

    def failure(self) -> str | None:
        """Why the start-up failed, with what to change; None while it goes on and after it succeeded."""
        return self._failure

    @abstractmethod
    def stop(self, grace_s: float = 1.0) -> None:
        """Refuses new calls, lets running ones go on for `grace_s` seconds, frees threads and memory. Idempotent."""

    @abstractmethod
    def _load(self) -> bool:
        """Loads everything, on the starting thread. False: stopped meanwhile. Raises what makes a start impossible."""

    def _start(self) -> None:
        try:
            self._loaded = self._load()
        except UserError as error:
            self._failure = f"{self._name}: {error}"
        except Exception as error:
            # Whatever it is, whoever waits for this actor must learn of it; the traceback goes to the log.
            self._failure = f"{self._name}: {type(error).__name__}: {error}"
            self._log.exception("start-up failed")
        if self._loaded:
            self._server.set_ready(True)
