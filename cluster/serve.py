"""A running service: store, Ray cluster and actors, from start to a clean end."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

import ray

from ..actors.prefetcher.convert import ensure_store
from ..actors.transport.endpoint import Endpoint
from ..actors.transport.server import address_of
from ..configs import Deployment
from . import run_record
from .client import Client
from .launch import GATEWAY, Launch, LaunchError, Progress, placements
from .ray_cluster import Held, RayCluster, join, start_private

WATCH_S = 1.0


class Service:
    """Use as a context manager: leaving it ends every process and removes every file that it made."""

    def __init__(
        self,
        deployment: Deployment,
        address: str | None = None,
        detached: bool = False,
        report: Callable[[Progress], None] = lambda progress: None,
        convert_progress: Callable[[int, int], None] | None = None,
        held: Held = contextlib.nullcontext,
    ):
        """`address`: a running Ray cluster to join; `detached`: the actors outlive this process; `held`: see `Held`."""
        self._deployment, self._address, self._detached = deployment, address, detached
        self._report, self._convert_progress, self._held = report, convert_progress, held
        self._cluster: RayCluster | None = None
        self._launch: Launch | None = None
        self._record: run_record.RunRecord | None = None
        self.endpoints: list[Endpoint] = []
        self.store: Path | None = None
        """The expert store, once it is made."""

    @property
    def server(self) -> str:
        """host:port for clients."""
        return next(endpoint.address for endpoint in self.endpoints if endpoint.name == GATEWAY)

    def metrics_url(self) -> str:
        """Where Prometheus finds a started service's metrics; the deployment must have a `metrics_port`."""
        with Client(self.server) as client:
            port = client.status().metrics_port
        return f"http://{address_of(self.server.rpartition(':')[0], port)}/metrics"

    def start(self) -> None:
        """Blocks until a token can be produced; whatever fails, nothing is left behind."""
        name = self._deployment.name
        namespace = f"moespac-{name}"
        self._record = run_record.claim(
            name, self._address, namespace, self._detached, self._deployment.service.drain_timeout
        )
        try:
            model = self._deployment.model
            self.store = ensure_store(
                model.target, model.store, self._convert_progress, model.store_format, model.expert_scales
            )
            self._start_actors(self.store, namespace)
        except BaseException:
            self.stop(0.0)
            raise
        self._record = run_record.announce(self._record, self.server)

    def _start_actors(self, store: Path, namespace: str) -> None:
        resources = placements(self._deployment)
        if self._address is None:
            self._cluster = start_private(namespace, resources, self._held)
        else:
            self._cluster = join(self._address, namespace, resources, self._held)
        self._launch = Launch(self._deployment, store, self._cluster, self._detached)
        self._launch.start()
        self.endpoints = self._launch.wait_ready(self._report)

    def watch(self) -> None:
        """One look at all actors; raises LaunchError when one is gone for good."""
        gone = self._launch.watch()
        if gone is not None:
            raise LaunchError(gone)

    def leave(self) -> None:
        """Disconnects from detached actors, which go on."""
        self._launch = self._cluster = self._record = None
        ray.shutdown()

    def stop(self, drain_s: float | None = None) -> None:
        """Running requests get `drain_s` seconds (None: the deployment's) to finish. Idempotent."""
        launch, self._launch = self._launch, None
        try:
            if launch is not None:
                launch.stop(self._deployment.service.drain_timeout if drain_s is None else drain_s)
        finally:
            # Also where a second signal breaks the draining off: with the cluster all its processes end.
            if self._cluster is not None:
                self._cluster.stop()
                self._cluster = None
            if self._record is not None:
                run_record.release(self._record)
                self._record = None

    def __enter__(self) -> Service:
        self.start()
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.stop(0.0)


def run_until_interrupted(service: Service) -> None:
    """Watches a started service until it is interrupted, then drains; a second interruption ends it at once.

    Raises LaunchError when an actor is gone for good.
    """
    try:
        while True:
            time.sleep(WATCH_S)
            service.watch()
    except KeyboardInterrupt:
        try:
            service.stop()
        except KeyboardInterrupt:
            service.stop(0.0)


def with_port(deployment: Deployment, port: int) -> Deployment:
    """The same deployment, listening on another port."""
    return deployment.model_copy(update={"service": deployment.service.model_copy(update={"port": port})})
