"""Ends a service that another process started."""

from __future__ import annotations

import time

import psutil

from ..errors import UserError
from . import run_record

PATIENCE_S = 30.0
"""Beyond the time that requests get to finish: ending processes takes a moment."""


class StopFailed(UserError):
    """The service has not ended; the message says what to do."""


def stop_recorded(record: run_record.RunRecord, timeout_s: float | None = None) -> None:
    """Asks it to finish its requests and end; waits `timeout_s` seconds (None: as long as they may take).

    Raises StopFailed when it has not ended by then.
    """
    limit_s = record.drain_s + PATIENCE_S if timeout_s is None else timeout_s
    if record.detached and record.server:
        _stop_detached(record, min(record.drain_s, limit_s))
        run_record.release(record)
        return
    process = run_record.launcher(record)
    if process is None:
        return
    process.terminate()
    give_up = time.monotonic() + limit_s
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > give_up:
            raise StopFailed(
                f"service {record.name!r} (pid {record.pid}) has not ended within {limit_s:.0f} s: it may still be "
                f"finishing requests; stop it again to end it at once"
            )
        time.sleep(0.1)


def _stop_detached(record: run_record.RunRecord, drain_s: float) -> None:
    # Only here: a private service is stopped without loading Ray.
    import contextlib

    import ray
    from ray.exceptions import RayError
    from ray.util import list_named_actors

    from .ray_cluster import ClusterError, join

    try:
        cluster = join(record.ray_address, record.namespace, set())
    except ClusterError as error:
        run_record.release(record)
        raise StopFailed(
            f"the cluster that service {record.name!r} ran on is gone, and it with it; its record was removed ({error})"
        ) from error
    try:
        names = {
            entry["name"] for entry in list_named_actors(all_namespaces=True) if entry["namespace"] == record.namespace
        }
        # The gateway first: it lets requests finish, which takes all the others.
        for name in sorted(names, key=lambda name: name != "gateway"):
            with contextlib.suppress(RayError, ValueError):
                handle = ray.get_actor(name, namespace=record.namespace)
                if name == "gateway":
                    ray.get(handle.stop.remote(drain_s), timeout=drain_s + PATIENCE_S)
                ray.kill(handle, no_restart=True)
    finally:
        cluster.stop()
