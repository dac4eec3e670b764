"""The worker's side of the lane: who may connect, and calls answered on the thread that computes them."""

from __future__ import annotations

import errno
import os
import select
import socket
import time
import uuid
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import grpc

from ..transport.errors import Refusal
from ..transport.lane import (
    FRAME_BYTES,
    LANE_BYTES,
    OK,
    Frame,
    LaneLost,
    Memory,
    check_user,
    new_socket,
    only_here,
    parse_frame,
    receive_frame,
    send_frame,
)
from .compute_thread import ComputeThread

_LONGEST_REASON = 4096


class LaneCall(NamedTuple):
    """A call as it came; nothing of it is checked yet."""

    head: bytes
    """An ExpertCall without its floats."""
    memory: Memory
    deadline: float
    """On `time.monotonic`."""
    wanted: Callable[[], bool]
    """Whether somebody waits for the rows."""


class _Connection:
    """One caller's connection."""

    def __init__(self, connection: socket.socket, refusal: Refusal | None):
        self.socket, self.refusal = connection, refusal
        self.greeted = False
        self.memory: Memory | None = None
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)

    def hello(self) -> None:
        """Takes the memory over, or notes why not. Raises LaneLost."""
        self.greeted = True
        try:
            data, fds, _, _ = socket.recv_fds(self.socket, FRAME_BYTES + 1, 1)
        except OSError as error:
            raise LaneLost(str(error)) from error
        try:
            announced = parse_frame(data).number
            if self.refusal is None:
                if announced != 2 * LANE_BYTES or not fds:
                    problem = f"the caller's lane has {announced} bytes and {len(fds)} descriptors"
                    raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, f"{problem}: it takes {2 * LANE_BYTES} and 1")
                self.memory = Memory(fds[0])
        except Refusal as refusal:
            self.refusal = refusal
        finally:
            for fd in fds:
                os.close(fd)

    def wanted(self, deadline: float) -> bool:
        """False when the caller has closed its end, or its deadline has passed."""
        if self._poll.poll(0):
            # Something came: its end, or a caller's next call before the answer to this one.
            try:
                return bool(self.socket.recv(1, socket.MSG_PEEK)) and time.monotonic() < deadline
            except OSError:
                return False
        return time.monotonic() < deadline

    def close(self) -> None:
        self.socket.close()
        if self.memory is not None:
            self.memory.close()


class LaneServer:
    """Listens on an abstract Unix socket. Everything but `close` happens on the thread that computes."""

    def __init__(
        self,
        name: str,
        thread: ComputeThread,
        answer: Callable[[LaneCall], bytes],
        limit: int,
        uid: int | None = None,
    ):
        """`answer`: the reply's message, its rows left in the call's memory; raises Refusal, nothing else.

        `limit`: callers' connections at once, a call each; `uid`: of the only user let in, this process's if None.
        """
        self._name, self._thread, self._answer, self._limit = name, thread, answer, limit
        self._uid = os.geteuid() if uid is None else uid
        self._connections: dict[int, _Connection] = {}
        self.address = f"moespac-lane-{uuid.uuid4().hex}"
        self._listener = new_socket()
        self._listener.bind(f"\0{self.address}")
        self._listener.listen(limit)
        thread.watch(self._listener.fileno(), self._accept)

    def close(self) -> None:
        """To be called when the thread has ended: callers see the end of their connections. Idempotent."""
        self._listener.close()
        for connection in self._connections.values():
            connection.close()
        self._connections.clear()

    def _accept(self) -> None:
        try:
            accepted = only_here(self._listener.accept()[0])
        except OSError as error:  # the caller has gone again, or there are no descriptors left for it
            if error.errno in (errno.EMFILE, errno.ENFILE):
                time.sleep(0.01)  # it goes on waiting: no reason to turn at full speed
            return
        accepted.setblocking(False)
        # Refused callers are told so when they ask for something; of more than that, nobody is kept.
        if len(self._connections) >= 2 * self._limit:
            accepted.close()
            return
        connection = _Connection(accepted, self._refusal(accepted))
        self._connections[accepted.fileno()] = connection
        self._thread.watch(accepted.fileno(), partial(self._readable, connection))

    def _refusal(self, accepted: socket.socket) -> Refusal | None:
        try:
            check_user(accepted, self._uid, "the caller")
        except Refusal as refusal:
            return refusal
        if sum(c.refusal is None for c in self._connections.values()) < self._limit:
            return None
        reason = f"{self._name} holds {self._limit} lanes: try again, or elsewhere"
        return Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, reason)

    def _readable(self, connection: _Connection) -> None:
        """Takes one frame: the first is the caller's hello, every other one gets one answer."""
        try:
            if connection.greeted:
                self._serve(connection)
            else:
                connection.hello()
        except (LaneLost, OSError):  # OSError: there is no room for the caller's memory
            self._drop(connection)

    def _serve(self, connection: _Connection) -> None:
        try:
            frame = receive_frame(connection.socket)
            if frame is not None:
                send_frame(connection.socket, OK, self._answer_to(connection, frame))
        except Refusal as refusal:
            send_frame(connection.socket, refusal.code.value[0], refusal.reason.encode()[:_LONGEST_REASON])

    def _answer_to(self, connection: _Connection, frame: Frame) -> bytes:
        if connection.refusal is not None:
            raise connection.refusal
        if not frame.body:  # a caller that wants to know whether the lane works
            return b""
        # The call may have waited for its turn: its deadline is a point in time, on a clock that both sides share.
        deadline = time.monotonic() + (frame.number - time.time_ns()) * 1e-9
        wanted = partial(connection.wanted, deadline)
        return self._answer(LaneCall(frame.body, connection.memory, deadline, wanted))

    def _drop(self, connection: _Connection) -> None:
        fd = connection.socket.fileno()
        if self._connections.pop(fd, None) is not None:
            self._thread.forget(fd)
        connection.close()
