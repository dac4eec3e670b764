"""What can go wrong for a client, as types; every error says what to do about it."""

from __future__ import annotations

from typing import ClassVar

import grpc

from ...errors import UserError


class MoespacError(UserError):
    """A request failed. `code`: the gRPC status code; `message`: what happened, and the remedy."""

    default_code: ClassVar[grpc.StatusCode] = grpc.StatusCode.UNKNOWN

    def __init__(self, message: str, code: grpc.StatusCode | None = None):
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code


class InvalidRequest(MoespacError, ValueError):
    """The request itself is wrong; sending it again cannot help."""

    default_code = grpc.StatusCode.INVALID_ARGUMENT


class ResourceExhausted(MoespacError):
    """The service has no room for the request now, or never will; the message says which."""

    default_code = grpc.StatusCode.RESOURCE_EXHAUSTED


class DeadlineExceeded(MoespacError, TimeoutError):
    """The request's timeout passed."""

    default_code = grpc.StatusCode.DEADLINE_EXCEEDED


class Unavailable(MoespacError, ConnectionError):
    """Nobody answers, or the service lost an actor for longer than it waits for one."""

    default_code = grpc.StatusCode.UNAVAILABLE


class VersionMismatch(MoespacError):
    """Client and service are of different moespac versions."""

    default_code = grpc.StatusCode.FAILED_PRECONDITION


class Cancelled(MoespacError):
    """The generation was cancelled, here or by the service."""

    default_code = grpc.StatusCode.CANCELLED


_BY_CODE = {
    kind.default_code: kind for kind in (InvalidRequest, ResourceExhausted, DeadlineExceeded, Unavailable, Cancelled)
}


def cancelled() -> Cancelled:
    return Cancelled("the generation was cancelled")


def from_rpc(error: grpc.RpcError, address: str, timeout_s: float | None = None) -> MoespacError:
    """The typed error for what gRPC raised on a call to `address` that had `timeout_s` seconds."""
    code, details = error.code(), error.details() or ""
    if code is grpc.StatusCode.FAILED_PRECONDITION and details.startswith("version mismatch"):
        return VersionMismatch(details)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        limit = "its deadline" if timeout_s is None else f"its timeout of {timeout_s:g} s"
        return DeadlineExceeded(f"the call to {address} took longer than {limit}: allow more time, or ask for less")
    if code is grpc.StatusCode.UNAVAILABLE and details.startswith("failed to connect"):
        return Unavailable(f"no moespac service answers at {address}: start one with `moespac serve` ({details})")
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return MoespacError(f"{address} serves something else than moespac ({details}): check the address", code)
    if code is grpc.StatusCode.CANCELLED:
        return cancelled()
    return _BY_CODE.get(code, MoespacError)(details or f"the call to {address} failed with {code.name}", code)
