"""Every call carries the caller's version; a server refuses callers of another version with one clear error."""

from __future__ import annotations

import collections

import grpc
import grpc.aio

from ...version import __version__
from .errors import version_mismatch

METADATA_KEY = "moespac-version"
# Tools that know no moespac (probes, grpcurl) must be able to ask these.
OPEN_SERVICES = ("/grpc.health.v1.Health/", "/grpc.reflection.")


def _refusal(details: grpc.HandlerCallDetails, server: str) -> str | None:
    if details.method.startswith(OPEN_SERVICES):
        return None
    theirs = next((value for key, value in details.invocation_metadata if key == METADATA_KEY), "")
    return None if theirs == __version__ else version_mismatch(theirs, server)


class VersionGuard(grpc.ServerInterceptor):
    """Server side, for synchronous servers; `name` is the serving actor."""

    def __init__(self, name: str):
        self._name = name

    def intercept_service(self, continuation, handler_call_details):
        refusal = _refusal(handler_call_details, self._name)
        handler = continuation(handler_call_details)
        if refusal is None or handler is None:
            return handler

        def refuse(_request, context):
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, refusal)

        return _like(handler, refuse)


class AsyncVersionGuard(grpc.aio.ServerInterceptor):
    """The same for grpc.aio servers."""

    def __init__(self, name: str):
        self._name = name

    async def intercept_service(self, continuation, handler_call_details):
        refusal = _refusal(handler_call_details, self._name)
        handler = await continuation(handler_call_details)
        if refusal is None or handler is None:
            return handler

        async def refuse(_request, context):
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, refusal)

        return _like(handler, refuse)


def _like(handler: grpc.RpcMethodHandler, behaviour) -> grpc.RpcMethodHandler:
    """A handler of the same arity and serialisers that runs `behaviour`."""
    make = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[(handler.request_streaming, handler.response_streaming)]
    return make(behaviour, handler.request_deserializer, handler.response_serializer)


class _CallDetails(
    collections.namedtuple(
        "_CallDetails", ("method", "timeout", "metadata", "credentials", "wait_for_ready", "compression")
    ),
    grpc.ClientCallDetails,
):
    pass


class VersionStamp(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):
    """Client side, for synchronous channels."""

    def _stamped(self, details: grpc.ClientCallDetails) -> _CallDetails:
        metadata = [*(details.metadata or ()), (METADATA_KEY, __version__)]
        return _CallDetails(
            details.method,
            details.timeout,
            metadata,
            details.credentials,
            details.wait_for_ready,
            details.compression,
        )

    def intercept_unary_unary(self, continuation, client_call_details, request):
        return continuation(self._stamped(client_call_details), request)

    def intercept_unary_stream(self, continuation, client_call_details, request):
        return continuation(self._stamped(client_call_details), request)
