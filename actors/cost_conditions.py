"""What the measured cost of each actor depends on: where any of it has changed, the costs are another's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import structlog

from ..configs import Deployment
from .policy.cost import LINK
from .transport.endpoint import Endpoint, PeerUnknown

log = structlog.get_logger()

Conditions = dict[str, dict[str, str]]
"""By actor, names and values."""


_NO_MATTER = {"kind", "name", "placement", "expert_memory", "kv_memory", "memory", "arena", "link"}
"""Of a device's section: what says where it is and how much it holds, not how fast it is."""


def conditions(deployment: Deployment, fingerprint: str, endpoints: Mapping[str, Endpoint], home: str) -> Conditions:
    """What the costs of each device in `endpoints` depend on, and those of the link.

    `fingerprint`: of the store, which stands for shape and format; `home`: an actor on the host of the device that
    holds the trunk, so that a worker's address tells whether it is there too.
    """
    found: Conditions = {}
    for device in deployment.devices:
        if device.name in endpoints:
            settings = device.model_dump(mode="json", exclude=_NO_MATTER)
            found[device.name] = {
                "store": fingerprint,
                "compute_dtype": deployment.model.compute_dtype,
                "hardware": endpoints[device.name].hardware,
                **{name: str(value) for name, value in settings.items()},
            }
    gpu = deployment.gpu
    if gpu.name in found:
        link = "real" if gpu.link is None else f"{gpu.link.bandwidth:g} B/s after {gpu.link.latency:g} s"
        same = {name: found[gpu.name][name] for name in ("store", "hardware", "torch_device")}
        found[LINK] = {**same, "link": link}
    for worker in deployment.workers:
        if worker.name in found:
            near = home in endpoints and _host(endpoints[home]) == _host(endpoints[worker.name])
            found[worker.name]["host"] = "the device's" if near else "another"
    return found


def endpoints_of(names: Iterable[str], resolve: Callable[[str], Endpoint]) -> dict[str, Endpoint]:
    """Those of `names` that are up."""
    found = {}
    for name in names:
        try:
            found[name] = resolve(name)
        except PeerUnknown:
            log.info("not up yet: its costs start from usual ones", actor=name)
    return found


def _host(endpoint: Endpoint) -> str:
    return endpoint.address.rpartition(":")[0]
