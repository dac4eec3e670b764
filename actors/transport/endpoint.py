"""Where an actor can be reached. Ports change when an actor restarts, so addresses are always looked up by name."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

from ...version import __version__

INCARNATION = uuid.uuid4().hex
"""Identity of this process: differs after a restart even where host, pid and port happen to be the same."""


@dataclass(frozen=True)
class Endpoint:
    """One running actor."""

    name: str
    kind: str
    """gpu_device, cpu_worker, prefetcher, scheduler or gateway."""
    address: str
    """host:port of its gRPC server."""
    node: str = ""
    """Ray node id."""
    hardware: str = ""
    """What it computes on, as far as its speed depends on it."""
    pid: int = field(default_factory=os.getpid)
    version: str = __version__
    incarnation: str = INCARNATION


class PeerUnknown(LookupError):
    """No such actor is up now; it may come back."""


Resolve = Callable[[str], Endpoint]
"""Looks an actor up by name; raises PeerUnknown while it is away."""


def host_id() -> str:
    """Equal for two processes exactly when each finds the other's /proc/<pid>: kernel boot and pid namespace."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return f"{file.read().strip()}/{os.readlink('/proc/self/ns/pid')}"
