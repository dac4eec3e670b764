"""One message of an expert call under way, over gRPC or the lane."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol

import grpc
import torch
from google.protobuf.message import DecodeError

from ...protos.v1.experts_pb2 import ExpertRows
from .errors import Refusal
from .lane import Lane, LaneLost
from .wire import MalformedCall, decode_rows

Way = Literal["grpc", "lane"]
"""How a message travels: gRPC, or shared memory on one host."""


class Arrived(NamedTuple):
    """A reply."""

    reply: ExpertRows
    rows: torch.Tensor
    """float32 [pairs, H]."""
    received_ns: int
    """When it was there; nanoseconds of the wall clock since the epoch."""


class Flight(Protocol):
    """For one thread at a time."""

    way: Way

    def done(self) -> bool:
        """Whether `receive` would not wait."""
        ...

    def receive(self, pairs: int, hidden_size: int) -> Arrived:
        """Waits for the reply until the call's deadline. Raises Refusal. At most once."""
        ...

    def cancel(self) -> None:
        """Nobody waits any more. Idempotent, and nothing where the reply was received."""
        ...


class GrpcFlight:
    """A unary call."""

    way: Way = "grpc"

    def __init__(self, future: grpc.Future):
        self._future = future
        self._received_ns = 0
        future.add_done_callback(self._arrived)

    def _arrived(self, _future: grpc.Future) -> None:
        self._received_ns = time.time_ns()

    def done(self) -> bool:
        return self._future.done()

    def receive(self, pairs: int, hidden_size: int) -> Arrived:
        try:
            reply = self._future.result()
            rows = decode_rows(reply, pairs, hidden_size)
        except grpc.RpcError as error:
            raise Refusal(error.code(), error.details()) from error
        except MalformedCall as error:
            raise Refusal(grpc.StatusCode.INTERNAL, f"unusable reply: {error}") from error
        except ValueError as error:
            # gRPC's answer on a channel that another thread gave up just before this call was sent.
            raise Refusal(grpc.StatusCode.CANCELLED, str(error)) from error
        # The waiter may run before the callback that takes the time.
        return Arrived(reply, rows, self._received_ns or time.time_ns())

    def cancel(self) -> None:
        self._future.cancel()


class LaneFlight:
    """A call that has been sent on a connection of its own."""

    way: Way = "lane"

    def __init__(self, lane: Lane, deadline: float, ended: Callable[[Lane | None], None]):
        """`deadline`: on `time.monotonic`; `ended` gets the lane to be used again, None if its worker has gone."""
        self._lane: Lane | None = lane
        self._deadline, self._ended = deadline, ended

    def done(self) -> bool:
        return self._lane is None or self._lane.ready()

    def receive(self, pairs: int, hidden_size: int) -> Arrived:
        lane, self._lane = self._lane, None
        if lane is None:
            raise Refusal(grpc.StatusCode.CANCELLED, "cancelled by the caller")
        again: Lane | None = None
        try:
            message, rows, waited = lane.receive(pairs, hidden_size, self._deadline)
            now_ns, reply = time.time_ns(), ExpertRows.FromString(message)
            again = lane
        except TimeoutError as error:
            raise Refusal(grpc.StatusCode.DEADLINE_EXCEEDED, str(error)) from error
        except LaneLost as error:
            self._ended(None)
            raise Refusal(grpc.StatusCode.UNAVAILABLE, str(error)) from error
        except DecodeError as error:
            raise Refusal(grpc.StatusCode.INTERNAL, f"unusable reply: {error}") from error
        finally:
            # After a failure the worker may still write to its memory.
            if again is None:
                lane.close()
        self._ended(lane)
        # A reply that was there already came when it had been made; both sides share the clock.
        return Arrived(reply, rows, now_ns if waited else min(now_ns, reply.finished_ns))

    def cancel(self) -> None:
        lane, self._lane = self._lane, None
        if lane is not None:
            lane.close()
