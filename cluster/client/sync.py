"""The synchronous client."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Unpack

import grpc
from grpc_health.v1 import health_pb2_grpc

from ...actors.transport.peers import open_channel
from ...protos.v1 import generation_pb2, generation_pb2_grpc
from .calls import READY_POLL_S, UNARY_TIMEOUT_S, Readiness, Received, health_request
from .errors import Unavailable, from_rpc
from .options import Options, generate_request
from .results import Model


class Generation(Received):
    """One running generation: iterate over it for pieces of text, then read `statistics`.

    Leaving the loop early cancels the request. Errors are raised by the iteration, as `MoespacError`.
    """

    def __init__(self, call: grpc.Call, address: str, timeout_s: float | None):
        super().__init__()
        self._call, self._address, self._timeout_s = call, address, timeout_s

    def __iter__(self) -> Iterator[str]:
        try:
            for event in self._call:
                if piece := self._take(event):
                    yield piece
            self._check_complete()
        except grpc.RpcError as error:
            raise from_rpc(error, self._address, self._timeout_s) from error
        finally:
            self._call.cancel()  # no effect once the stream has ended

    def cancel(self) -> None:
        """Ends the request; the service frees its work. May be called from any thread, more than once."""
        self._call.cancel()

    def __enter__(self) -> Generation:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.cancel()


class Client:
    """A connection to a moespac service; may be shared by threads. Close it, or use it in a `with` statement."""

    def __init__(self, address: str = "localhost:50051"):
        self.address = address
        self._channel = open_channel(address)
        self._stub = generation_pb2_grpc.GenerationStub(self._channel)
        self._health = health_pb2_grpc.HealthStub(self._channel)
        self._closed = threading.Event()

    def generate(
        self, prompt: str, max_tokens: int = 128, timeout: float | None = None, **options: Unpack[Options]
    ) -> Generation:
        """Starts generating up to `max_tokens` tokens.

        `timeout`: seconds for the whole generation; `options`: see `Options`. Raises InvalidRequest for what cannot
        even be sent; what the service refuses is raised by the iteration.
        """
        request = generate_request(prompt, max_tokens, **options)
        return Generation(self._stub.Generate(request, timeout=timeout), self.address, timeout)

    def models(self, timeout: float = UNARY_TIMEOUT_S) -> list[Model]:
        """The models that are served."""
        reply = self._unary(self._stub.Models, generation_pb2.ModelsRequest(), timeout)
        return [Model.from_proto(info) for info in reply.models]

    def status(self, timeout: float = UNARY_TIMEOUT_S) -> generation_pb2.StatusReply:
        """The service's state: actors, device, prefetcher, requests."""
        return self._unary(self._stub.Status, generation_pb2.StatusRequest(), timeout)

    def wait_ready(self, timeout: float = 60.0) -> None:
        """Returns once the service can produce a token. Raises DeadlineExceeded after `timeout` seconds."""
        readiness = Readiness(self.address, timeout)
        while True:
            limit = readiness.call_timeout()
            try:
                if readiness.answered(self._health.Check(health_request(), timeout=limit)):
                    return
            except grpc.RpcError as error:
                try:
                    readiness.failed(error)
                except grpc.RpcError:
                    raise from_rpc(error, self.address, timeout) from error
            if self._closed.wait(READY_POLL_S):
                raise Unavailable("the client was closed while waiting: create another one")

    def close(self) -> None:
        """Ends the connection and cancels what runs on it."""
        self._closed.set()
        self._channel.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.close()

    def _unary(self, method, request, timeout_s: float):
        try:
            return method(request, timeout=timeout_s)
        except grpc.RpcError as error:
            raise from_rpc(error, self.address, timeout_s) from error
