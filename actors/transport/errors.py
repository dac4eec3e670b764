"""Failures of the data plane that callers tell apart."""

from __future__ import annotations

from typing import Literal

import grpc

from ...errors import UserError
from ...version import __version__

PortField = Literal["port", "metrics_port"]
"""Of the deployment's `service` section."""


class CannotListen(UserError, OSError):
    """A server cannot listen where it should; `field` says what has to change: the host or which port."""

    def __init__(self, host: str, port: int, field: Literal["host"] | PortField, problem: str, remedy: str):
        super().__init__(f"{field} {host if field == 'host' else port} {problem}: {remedy}")
        self.host, self.port = host, port
        self.field, self.problem, self.remedy = field, problem, remedy


class PortInUse(CannotListen):
    """Another process listens on the wanted port."""

    def __init__(self, host: str, port: int, field: PortField = "port"):
        remedy = "stop what listens there, or choose another port (0 takes a free one)"
        super().__init__(host, port, field, f"is in use on {host}", remedy)


def version_mismatch(theirs: str, server: str) -> str:
    """Message for a peer of another version; `server` is who refuses."""
    return (
        f"version mismatch: the caller runs moespac {theirs or '(unknown)'}, {server} runs {__version__}: "
        f"install the same moespac version on every node and client"
    )


class Refusal(Exception):
    """One side does not do what the other asked. `code`: gRPC's name of the failure, whichever way the call came."""

    def __init__(self, code: grpc.StatusCode, reason: str):
        super().__init__(f"{code.name}: {reason}")
        self.code, self.reason = code, reason
