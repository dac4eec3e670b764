"""Starts the actors of a deployment, waits until they are ready, watches them and ends them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, GetTimeoutError, RayActorError, RayError

from ..actors.cpu_worker.actor import CpuWorkerActor
from ..actors.gpu_device.actor import GpuDeviceActor
from ..actors.prefetcher.actor import PrefetcherActor
from ..actors.scheduler.actor import SchedulerActor
from ..actors.transport.endpoint import Endpoint, PeerUnknown
from ..configs import Deployment
from ..errors import UserError
from ..version import __version__
from .gateway.actor import GatewayActor
from .ray_cluster import RayCluster
from .resolve import ActorDirectory, RayResolve

SCHEDULER, PREFETCHER, GATEWAY = "scheduler", "prefetcher", "gateway"
MAX_RESTARTS = 5
"""An actor that dies more often takes the service down: something is wrong that restarting does not mend."""
POLL_S = 0.2
PLACEMENT_SHARE = 0.001
"""Amount of its custom resource that an actor takes: resources say where, not how many."""


class LaunchError(UserError):
    """An actor could not start; the message names it and says what to change."""


@dataclass(frozen=True)
class Progress:
    """How far an actor's start-up is; `done` of `total` in the unit of its stage."""

    actor: str
    stage: str
    done: int
    total: int
    ready: bool


@dataclass(frozen=True)
class _Spec:
    name: str
    cls: type
    placement: str | None
    arguments: dict


class Launch:
    """The actors of one deployment on a cluster. Use `start`, then `wait_ready`, then `watch`; `stop` at any time."""

    def __init__(self, deployment: Deployment, store: Path, cluster: RayCluster, detached: bool = False):
        self._deployment, self._cluster, self._detached = deployment, cluster, detached
        self._resolve = RayResolve(cluster.namespace)
        self._specs = list(self._plan(deployment, str(store)))
        self._handles: dict[str, ray.actor.ActorHandle] = {}

    def start(self) -> None:
        """Creates the actors; they load at the same time and find each other as they come up."""
        for spec in self._specs:
            options = {
                "name": spec.name,
                "namespace": self._cluster.namespace,
                "lifetime": "detached" if self._detached else "non_detached",
                "max_restarts": MAX_RESTARTS,
                "num_cpus": 0,
                "max_concurrency": 8,  # `endpoint` must answer while `stop` drains
            }
            if spec.placement is not None:
                options["resources"] = {spec.placement: PLACEMENT_SHARE}
            try:
                self._handles[spec.name] = ray.remote(spec.cls).options(**options).remote(**spec.arguments)
            except ValueError as error:
                # Records of services are kept per machine; the cluster knows of those started elsewhere.
                raise LaunchError(
                    f"the cluster has an actor {spec.name!r} of deployment {self._deployment.name!r} already: "
                    f"stop that deployment where it was started, or give this one another `name`"
                ) from error

    def wait_ready(self, report: Callable[[Progress], None]) -> list[Endpoint]:
        """Until every actor is ready; raises LaunchError as soon as one has failed or runs another version."""
        pending = {spec.name for spec in self._specs}
        endpoints: dict[str, Endpoint] = {}
        while pending:
            for name in sorted(pending):
                handle = self._handles[name]
                try:
                    progress, ready, failure = ray.get(
                        [handle.progress.remote(), handle.ready.remote(), handle.failure.remote()], timeout=2.0
                    )
                except (GetTimeoutError, ActorUnavailableError):
                    if name not in endpoints:
                        report(Progress(name, "waiting for its place", 0, 0, False))
                    continue
                except RayActorError as error:
                    raise LaunchError(f"actor {name!r} died while starting: {_cause(error)}") from error
                if failure is not None:
                    raise LaunchError(failure)
                if name not in endpoints:
                    with contextlib.suppress(PeerUnknown):  # it does not listen yet
                        endpoints[name] = self._endpoint(name)
                report(Progress(name, progress["stage"], progress["done"], progress["total"], ready))
                if ready and name in endpoints:
                    pending.discard(name)
            time.sleep(POLL_S)
        return [endpoints[spec.name] for spec in self._specs]

    def watch(self) -> str | None:
        """One look at all actors: None while they run or restart, else why one is gone for good."""
        for name, handle in self._handles.items():
            try:
                # A restarted actor may fail to load: it is alive then, and of no use.
                failure = ray.get(handle.failure.remote(), timeout=5.0)
            except ActorDiedError as error:
                return f"actor {name!r} is gone for good: {_cause(error)}"
            except (GetTimeoutError, ActorUnavailableError):
                continue
            if failure is not None:
                return f"actor {name!r} could not start again: {failure}"
        return None

    def stop(self, drain_s: float) -> None:
        """The gateway refuses new requests and drains for `drain_s` seconds, then all actors end."""
        order = [GATEWAY, SCHEDULER, *(s.name for s in self._specs if s.name not in (GATEWAY, SCHEDULER))]
        for name in order:
            handle = self._handles.get(name)
            if handle is None:
                continue
            grace_s = drain_s if name == GATEWAY else 1.0
            # One that does not stop by itself is killed below in any case.
            with contextlib.suppress(RayError):
                ray.get(handle.stop.remote(grace_s), timeout=grace_s + 5.0)
            with contextlib.suppress(RayError, ValueError):  # it is dead already
                ray.kill(handle, no_restart=True)
        self._handles.clear()

    def _endpoint(self, name: str) -> Endpoint:
        endpoint = self._resolve(name)
        if endpoint.version != __version__:
            raise LaunchError(
                f"actor {name!r} runs moespac {endpoint.version} on node {endpoint.node}, this is {__version__}: "
                f"install the same version on every node"
            )
        return endpoint

    def _plan(self, deployment: Deployment, store: str) -> Iterator[_Spec]:
        workers = tuple(worker.name for worker in deployment.workers)
        common = {"deployment": deployment, "host": self._cluster.host, "resolve": self._resolve}
        gpu, prefetcher, scheduler = deployment.gpu, deployment.prefetcher, deployment.scheduler
        yield _Spec(
            PREFETCHER,
            PrefetcherActor,
            prefetcher.placement,
            {"name": PREFETCHER, "store_path": store, "device_names": (gpu.name,), **common},
        )
        yield _Spec(
            gpu.name,
            GpuDeviceActor,
            gpu.placement,
            {
                "name": gpu.name,
                "store_path": store,
                "prefetcher_name": PREFETCHER,
                "worker_names": workers,
                **common,
            },
        )
        for worker in deployment.workers:
            yield _Spec(
                worker.name,
                CpuWorkerActor,
                worker.placement,
                {"name": worker.name, "store_path": store, "prefetcher_name": PREFETCHER, **common},
            )
        yield _Spec(
            SCHEDULER,
            SchedulerActor,
            scheduler.placement,
            {"name": SCHEDULER, "store_path": store, "prefetcher_name": PREFETCHER, **common},
        )
        kinds = (
            (gpu.name, "gpu_device"),
            *((worker, "cpu_worker") for worker in workers),
            (PREFETCHER, "prefetcher"),
            (SCHEDULER, "scheduler"),
            (GATEWAY, "gateway"),
        )
        yield _Spec(
            GATEWAY,
            GatewayActor,
            scheduler.placement,
            {
                **common,
                "name": GATEWAY,
                "scheduler_name": SCHEDULER,
                "actors_info": ActorDirectory(self._resolve, kinds),
            },
        )


def placements(deployment: Deployment) -> set[str]:
    """Every custom resource the deployment's actors ask for."""
    sections = (*deployment.devices, deployment.prefetcher, deployment.scheduler)
    return {section.placement for section in sections if section.placement is not None}


def _cause(error: RayActorError) -> str:
    # Ray's message is long; what the constructor raised stands in its last line.
    return str(error).strip().splitlines()[-1]
