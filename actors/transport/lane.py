"""The lane: expert calls between two processes of one host, by a Unix socket and shared memory.

A frame of the socket (SOCK_SEQPACKET: one packet) is a header of 16 bytes and the protobuf message that gRPC would
carry, without its floats. Those lie in a memfd that the caller makes and hands over with its first frame: its lower
half holds hidden states and router weights of the call, its upper half the rows of the reply. A connection carries one
call at a time; whoever gives a call up closes its connection, which the worker sees between two experts.

Nothing is left behind: the socket's name is abstract, the memory anonymous. Both sides refuse another user. Nobody
spins: that halves the time of a call that computes nothing, and takes nothing measurable off a layer's.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import select
import socket
import struct
import time
import weakref
from typing import NamedTuple

import grpc
import numpy as np
import torch

from ...protos.v1.experts_pb2 import ExpertCall
from .errors import Refusal
from .wire import EncodedCall, MalformedCall

LANE_BYTES = 4 * 1024 * 1024
"""Room for the floats of a call, and as much for those of its reply; larger calls go over gRPC."""
FRAME_BYTES = 64 * 1024
"""No frame is larger."""
OK = 0
"""Number of a reply that holds rows; others are gRPC's status codes, and the body says why."""
_HEADER = struct.Struct("<8sq")
# The number of the caller's first frame: bytes of its memory; of a call: its deadline, nanoseconds of the wall clock.
_MAGIC = b"MPELANE1"
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
_LONGEST_POLL_MS = 2**31 - 1
_CREDENTIALS = struct.Struct("3i")
_CODES = {code.value[0]: code for code in grpc.StatusCode}


class LaneLost(ConnectionError):
    """The other side has closed the lane, or has gone."""


class Frame(NamedTuple):
    """What one packet holds."""

    number: int
    body: bytes


class Memory:
    """The floats of one connection, mapped here."""

    def __init__(self, fd: int):
        """Raises Refusal when `fd` is not a memfd of the lane's size that nobody can shrink."""
        try:
            size, seals = os.fstat(fd).st_size, fcntl.fcntl(fd, fcntl.F_GET_SEALS)
        except OSError as error:
            raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, f"the lane's memory is no memfd: {error}") from error
        if size != 2 * LANE_BYTES or seals & _SEALS != _SEALS:
            raise Refusal(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"the lane's memory has {size} bytes, seals {seals:#x}: it takes {2 * LANE_BYTES} and {_SEALS:#x}",
            )
        mapping = mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        floats = np.frombuffer(mapping, dtype=np.float32)
        # Views keep the mapping: it goes with the last of them.
        self._call, self._reply = floats[: LANE_BYTES // 4], floats[LANE_BYTES // 4 :]

    @classmethod
    def create(cls) -> tuple[Memory, int]:
        """New memory, and the descriptor to hand over and close."""
        fd = os.memfd_create("moespac-lane", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, 2 * LANE_BYTES)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
            return cls(fd), fd
        except BaseException:
            os.close(fd)
            raise

    def write_call(self, call: EncodedCall) -> None:
        hidden, weights = call.hidden, call.router_weights
        end = hidden.numel()
        self._call[:end].reshape(hidden.shape)[...] = hidden.numpy()
        self._call[end : end + len(weights)] = weights.numpy()

    def read_call(self, head: ExpertCall) -> tuple[memoryview, memoryview]:
        """Hidden states and router weights, in place, for `decode_call`: it checks their sizes."""
        data, end = self._call.data.cast("B"), 4 * head.rows * head.hidden_size
        return data[:end], data[end : end + 4 * len(head.token_rows)]

    def rows(self, pairs: int, hidden_size: int) -> torch.Tensor:
        """Where the reply's rows belong, float32 [pairs, H], in place. Raises MalformedCall when there is no room."""
        if 4 * pairs * hidden_size > LANE_BYTES:
            raise MalformedCall(
                "pair_counts", f"{pairs} pairs", f"the lane holds {LANE_BYTES // (4 * hidden_size)}: call by gRPC"
            )
        return torch.from_numpy(self._reply[: pairs * hidden_size].reshape(pairs, hidden_size))

    def close(self) -> None:
        self._call = self._reply = np.empty(0, dtype=np.float32)


def fits(call: EncodedCall) -> bool:
    """Whether the call's floats and its reply's have room on the lane."""
    pairs, (rows, hidden_size) = len(call.router_weights), call.hidden.shape
    return 4 * max(rows * hidden_size + pairs, pairs * hidden_size) <= LANE_BYTES


def new_socket() -> socket.socket:
    """Not connected yet; never waits."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    made.setblocking(False)
    return only_here(made)


_sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()


def only_here(made: socket.socket) -> socket.socket:
    """Has a socket closed in forked children: a copy there would hide that the other side has gone."""
    _sockets.add(made)
    return made


def _close_in_child() -> None:
    for inherited in list(_sockets):
        inherited.close()


os.register_at_fork(after_in_child=_close_in_child)


def check_user(connection: socket.socket, uid: int, who: str) -> None:
    """Raises Refusal unless the process at the other end runs as `uid`."""
    size = _CREDENTIALS.size
    theirs = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))[1]
    if theirs != uid:
        raise Refusal(
            grpc.StatusCode.PERMISSION_DENIED,
            f"{who} runs as user {theirs}, this process as user {uid}: a lane joins processes of one user only",
        )


def send_frame(connection: socket.socket, number: int, body: bytes = b"", fd: int | None = None) -> None:
    """Never waits. Raises LaneLost."""
    data = _HEADER.pack(_MAGIC, number) + body
    try:
        if fd is None:
            connection.send(data)
        else:
            socket.send_fds(connection, [data], [fd])
    except OSError as error:  # BlockingIOError too: a peer that leaves replies unread is of no use
        raise LaneLost(f"the lane cannot be written to: {error}") from error


def parse_frame(data: bytes) -> Frame:
    """Raises LaneLost at the end of the connection, Refusal for what is no frame."""
    if not data:
        raise LaneLost("the lane was closed by the other side")
    if len(data) < _HEADER.size or len(data) > FRAME_BYTES or not data.startswith(_MAGIC):
        size = f"{len(data):,}" if len(data) <= FRAME_BYTES else f"more than {FRAME_BYTES:,}"
        reason = f"a packet of {size} bytes is no frame: it begins with {_MAGIC.decode()}, has {FRAME_BYTES:,} at most"
        raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, reason)
    return Frame(_HEADER.unpack_from(data)[1], data[_HEADER.size :])


def receive_frame(connection: socket.socket) -> Frame | None:
    """None when there is none now. Raises what `parse_frame` raises."""
    try:
        data = connection.recv(FRAME_BYTES + 1)
    except BlockingIOError:
        return None
    except OSError as error:
        raise LaneLost(f"the lane cannot be read: {error}") from error
    return parse_frame(data)


class Lane:
    """The caller's end of one connection. For one thread at a time."""

    def __init__(self, connection: socket.socket, memory: Memory):
        self._connection, self._memory = connection, memory
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)

    @classmethod
    def open(cls, address: str, uid: int | None = None) -> Lane:
        """Connects, waiting for nothing: a refusal is the answer to the first call.

        `uid`: whose worker it must be; None: this process's. Raises OSError (nobody listens there), Refusal.
        """
        connection = new_socket()
        try:
            connection.connect(f"\0{address}")
            check_user(connection, os.geteuid() if uid is None else uid, "the worker")
            memory, fd = Memory.create()
            try:
                send_frame(connection, 2 * LANE_BYTES, fd=fd)
            finally:
                os.close(fd)
        except BaseException:
            connection.close()
            raise
        return cls(connection, memory)

    def probe(self, timeout_s: float) -> None:
        """Returns when the worker answers. Raises Refusal, LaneLost, TimeoutError."""
        send_frame(self._connection, 0)
        frame, _ = self._receive(time.monotonic() + timeout_s)
        self._check(frame)

    def send(self, call: EncodedCall, head: bytes, deadline_ns: int) -> None:
        """`head`: the call's, as bytes; `deadline_ns`: of the wall clock. The call `fits`. Raises LaneLost."""
        self._memory.write_call(call)
        send_frame(self._connection, deadline_ns, head)

    def ready(self) -> bool:
        """Whether `receive` would not wait."""
        return bool(self._poll.poll(0))

    def receive(self, pairs: int, hidden_size: int, deadline: float) -> tuple[bytes, torch.Tensor, bool]:
        """The reply's message, its rows (float32 [pairs, H], a copy), and whether it had to be waited for.

        `deadline`: on `time.monotonic`. Raises Refusal, LaneLost, TimeoutError.
        """
        frame, waited = self._receive(deadline)
        self._check(frame)
        return frame.body, self._memory.rows(pairs, hidden_size).clone(), waited

    def close(self) -> None:
        """A call under way is given up by it. Idempotent."""
        self._connection.close()
        self._memory.close()

    def _receive(self, deadline: float) -> tuple[Frame, bool]:
        waited = False
        while (frame := receive_frame(self._connection)) is None:
            waited = True
            left_ms = 1000 * (deadline - time.monotonic())
            if not self._poll.poll(min(max(0.0, left_ms), _LONGEST_POLL_MS)):
                raise TimeoutError("no answer before the deadline")
        return frame, waited

    @staticmethod
    def _check(frame: Frame) -> None:
        if frame.number != OK:
            code = _CODES.get(frame.number, grpc.StatusCode.UNKNOWN)
            raise Refusal(code, frame.body.decode(errors="replace"))
