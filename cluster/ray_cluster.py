"""The Ray cluster under the actors: a private one on this machine, or one that runs already."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import ray
from ray._private import ray_constants

from ..actors.ray_context import NODE_ADDRESS
from ..errors import UserError
from .guard import Guard

# Ray's smallest. The object store is not on any path of ours: experts live in the prefetcher's own arena.
OBJECT_STORE_BYTES = 80 * 1024 * 1024
LOOPBACK = "127.0.0.1"
REACH_S = 5.0
TEMP_PREFIX = "moespac-ray-"
# Ray puts Unix sockets below its session folder; the kernel allows such a path 107 bytes, Ray's part takes up to 66.
MAX_TEMP_PATH = 40


class ClusterError(UserError):
    """The cluster cannot be started or joined; the message says what to do."""


@dataclass(frozen=True)
class RayCluster:
    """A cluster that this process is connected to as a driver."""

    namespace: str
    private: bool
    host: str
    """What actors are told to listen on."""
    guard: Guard | None = None
    """Cleans up after a private cluster if this process is killed."""

    def stop(self) -> None:
        """Disconnects; a private cluster ends with all its processes, and its files are removed."""
        ray.shutdown()
        if self.guard is not None:
            self.guard.dismiss()


Held = Callable[[], contextlib.AbstractContextManager[None]]
"""Holds signals back: Ray broken off while it starts or joins may neither go on nor shut down."""


def start_private(namespace: str, resources: set[str], held: Held = contextlib.nullcontext) -> RayCluster:
    """One node on this machine, on loopback, offering every custom resource in `resources`."""
    _quiet()
    temp_dir = _session_folder()
    guard = Guard(os.getpid(), temp_dir)
    cluster = RayCluster(namespace, True, LOOPBACK, guard)
    try:
        with held(), _on_loopback():
            ray.init(
                address="local",
                namespace=namespace,
                # Actors are placed by custom resources and share cores by their own `threads`.
                num_cpus=0,
                num_gpus=0,
                resources={name: 1.0 for name in resources},
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _temp_dir=str(temp_dir),
            )
    except BaseException:
        cluster.stop()
        raise
    return cluster


def join(address: str, namespace: str, resources: set[str], held: Held = contextlib.nullcontext) -> RayCluster:
    """Connects to a running cluster; refuses one whose nodes lack a custom resource that the deployment names."""
    _quiet()
    _check_reachable(address)
    try:
        with held():
            ray.init(address=address, namespace=namespace, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ClusterError(
            f"cannot join the Ray cluster at {address}: {error}; start it with `ray start --head` or `ray up`, "
            f"or leave --address out to run on this machine alone"
        ) from error
    offered = set(ray.cluster_resources())
    missing = sorted(resources - offered)
    if missing:
        ray.shutdown()
        builtin = ("node:", "CPU", "GPU", "memory", "object_store", "accelerator_type")
        custom = ", ".join(sorted(name for name in offered if not name.startswith(builtin))) or "none"
        raise ClusterError(
            f"no node of the cluster at {address} offers {', '.join(missing)} (custom resources offered: {custom}): "
            f"start a node with `ray start --resources '{{\"{missing[0]}\": 1}}'`, or change `placement`"
        )
    addresses = {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    # Nodes that share one address are on one host: loopback is enough and stays closed to the network.
    host = LOOPBACK if len(addresses) == 1 else NODE_ADDRESS
    return RayCluster(namespace, False, host)


def _check_reachable(address: str) -> None:
    """Ray itself tries an address that nobody answers at for minutes. Raises ClusterError."""
    host, separator, port = address.rpartition(":")
    if not separator or not port.isdigit():
        return  # "auto" and the like: Ray's to understand
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACH_S).close()
    except OSError as error:
        raise ClusterError(
            f"no Ray cluster answers at {address} ({error.strerror or error}): start it with `ray start --head` or "
            f"`ray up`, or leave --address out to run on this machine alone"
        ) from error


def _session_folder() -> Path:
    """A fresh folder for Ray's session, in the system's temporary folder unless that has too long a name."""
    parent = Path(tempfile.gettempdir())
    if len(str(parent / TEMP_PREFIX)) + 8 > MAX_TEMP_PATH:
        parent = Path("/tmp")
    return Path(tempfile.mkdtemp(prefix=TEMP_PREFIX, dir=parent))


@contextlib.contextmanager
def _on_loopback() -> Iterator[None]:
    """Within the block Ray takes 127.0.0.1 for this node's address, and listens there alone.

    Asked for 127.0.0.1 it would look up the address by which others reach this machine, and listen on all. It keeps to
    loopback where clusters of several machines are ruled out, as on desktop systems: so they are ruled out here.
    """
    variable, before = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", ray_constants.ENABLE_RAY_CLUSTER
    os.environ[variable] = "0"  # for the processes that Ray starts
    ray_constants.ENABLE_RAY_CLUSTER = False  # for this one, which has read the variable already
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
        del os.environ[variable]


def _quiet() -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    # Ray's default puts actors behind everything else that runs on the machine; they are what it is here for.
    os.environ.setdefault("RAY_worker_niceness", "0")
