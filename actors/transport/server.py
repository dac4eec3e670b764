"""An actor's own gRPC server: health service, version check, message sizes; one place for all actors."""

from __future__ import annotations

import errno
import socket
from concurrent import futures

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from .errors import CannotListen, PortField, PortInUse
from .version_check import VersionGuard

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
# gRPC's default is 4 MiB: 1,024 tokens of hidden size 2048 in float32 are 8 MiB already.
CHANNEL_OPTIONS = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
)
# Without this two servers may share a port silently (SO_REUSEPORT) and the conflict is never reported.
SERVER_OPTIONS = (*CHANNEL_OPTIONS, ("grpc.so_reuseport", 0))


def address_of(host: str, port: int) -> str:
    """host:port as gRPC reads it: an IPv6 address stands in brackets, whether or not `host` has them."""
    bare = host.strip("[]")
    return f"[{bare}]:{port}" if ":" in bare else f"{bare}:{port}"


def check_can_listen(host: str, port: int, field: PortField = "port") -> None:
    """Raises PortInUse if something listens on (host, port), CannotListen if nobody can; port 0 is always free.

    `field`: where the port was written.
    """
    bare = host.strip("[]")
    try:
        with socket.socket(socket.AF_INET6 if ":" in bare else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((bare, port))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise PortInUse(host, port, field) from error
        if error.errno == errno.EACCES:
            problem, remedy = f"on {host} is reserved for the administrator", "choose one from 1024 on (0: a free one)"
            raise CannotListen(host, port, field, problem, remedy) from error
        problem, remedy = f"cannot be listened on ({error.strerror or error})", "write an address of this machine"
        raise CannotListen(host, port, "host", problem, f"{remedy}, such as 127.0.0.1") from error


def listen(server: grpc.Server | grpc.aio.Server, host: str, port: int) -> str:
    """Takes the port for `server`, which has not started yet; host:port. Raises PortInUse, CannotListen."""
    check_can_listen(host, port)
    try:
        return address_of(host, server.add_insecure_port(address_of(host, port)))
    except RuntimeError as error:  # somebody was faster than this process
        raise PortInUse(host, port) from error


class ActorServer:
    """`threads` handlers at once; health says NOT_SERVING until `set_ready(True)`."""

    def __init__(self, name: str, host: str = "127.0.0.1", port: int = 0, threads: int = 8):
        self.name = name
        self._host, self._port = host, port
        self._pool = futures.ThreadPoolExecutor(threads, thread_name_prefix=f"{name}-grpc")
        self._server = grpc.server(self._pool, interceptors=(VersionGuard(name),), options=SERVER_OPTIONS)
        self._health = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self.set_ready(False)

    def add(self, add_servicer_to_server, servicer) -> None:
        """`add_servicer_to_server`: the generated function of the service."""
        add_servicer_to_server(servicer, self._server)

    def start(self) -> str:
        """Listens; returns host:port. Raises PortInUse, CannotListen."""
        address = listen(self._server, self._host, self._port)
        self._server.start()
        return address

    def set_ready(self, ready: bool) -> None:
        serving = health_pb2.HealthCheckResponse
        self._health.set("", serving.SERVING if ready else serving.NOT_SERVING)

    def stop(self, grace_s: float = 1.0) -> None:
        """Refuses new calls at once, lets running ones go on for `grace_s` seconds."""
        self._health.enter_graceful_shutdown()
        self._server.stop(grace_s).wait()
        self._pool.shutdown(wait=False, cancel_futures=True)
