"""The scheduler's view of the device that holds the trunk: one method a call, a deadline on each."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence

import grpc
import grpc.aio

from ...protos.v1 import steps_pb2 as pb
from ...protos.v1 import steps_pb2_grpc
from ..core import DraftChoice
from ..transport.async_peers import VERSION_METADATA, AsyncPeers
from ..transport.endpoint import INCARNATION, PeerUnknown
from ..transport.messages import sampling_to_proto
from .request import Request

SHORT_CALL_S = 10.0
"""Deadline of calls that compute nothing."""
_GONE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


class DeviceLost(Exception):
    """The device's process is away, and with it the KV caches."""


class DeviceClient:
    """Calls to the device `name`. Every method raises DeviceLost when it is away, AioRpcError for its refusals."""

    def __init__(self, peers: AsyncPeers, name: str, step_timeout_s: float):
        self.name = name
        self._peers = peers
        self._step_timeout_s = step_timeout_s
        self.incarnation = ""
        """Of the device last connected to."""

    async def describe(self) -> pb.DeviceDescription:
        return await self._call("Describe", pb.DescribeRequest(), SHORT_CALL_S)

    async def open(self, request: Request) -> None:
        """Reserves KV cache and hands over the tokens, those already emitted included."""
        message = pb.OpenRequest(
            request_id=request.id,
            token_ids=(*request.prompt_ids, *request.emitted),
            reserve_tokens=request.reserve_tokens,
            sampling=sampling_to_proto(request.sampling),
            scheduler=INCARNATION,
            prompt_tokens=len(request.prompt_ids),
            logprobs=request.logprobs,
        )
        await self._call("Open", message, SHORT_CALL_S)

    async def step(
        self,
        request_id: str,
        choices: Sequence[DraftChoice],
        prefill_chunk: int,
        trace: bool,
        remaining_s: float = math.inf,
    ) -> pb.StepReply:
        """One turn. It gets `remaining_s` of its request's deadline, or the step timeout if that is shorter.

        A step that takes longer than the step timeout raises DeviceLost: whatever holds the device up, it is of no use.
        """
        drafts = [pb.DraftChoice(**choice._asdict()) for choice in choices]
        message = pb.StepRequest(request_id=request_id, drafts=drafts, prefill_chunk=prefill_chunk, trace=trace)
        try:
            return await self._call("Step", message, min(remaining_s, self._step_timeout_s))
        except grpc.aio.AioRpcError as error:
            if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED and remaining_s > self._step_timeout_s:
                raise DeviceLost(f"a step took longer than {self._step_timeout_s:.0f} s") from error
            raise

    async def close(self, request_id: str) -> None:
        await self._call("Close", pb.CloseRequest(request_id=request_id), SHORT_CALL_S)

    async def set_plan(self, plan: pb.Plan) -> pb.PlanReply:
        return await self._call("SetPlan", plan, SHORT_CALL_S)

    async def wait_ready(self, patience_s: float) -> pb.DeviceDescription:
        """Waits until the device, perhaps a restarted one, is ready. Raises DeviceLost after `patience_s`."""
        give_up = time.monotonic() + patience_s
        pause_s = 0.1
        while True:
            try:
                description = await self.describe()
                if description.ready:
                    return description
            except DeviceLost:
                pass
            except grpc.aio.AioRpcError as error:
                # A device that is busy loading may answer late; one of another version never will.
                if error.code() == grpc.StatusCode.FAILED_PRECONDITION:
                    raise
            if time.monotonic() > give_up:
                raise DeviceLost(f"device {self.name!r} has not become ready within {patience_s:.0f} s")
            await asyncio.sleep(pause_s)
            pause_s = min(1.0, pause_s * 1.5)

    async def _call(self, method: str, message, timeout_s: float):
        try:
            connection = await self._peers.connect(self.name)
        except PeerUnknown as error:
            raise DeviceLost(str(error)) from error
        self.incarnation = connection.endpoint.incarnation
        stub = steps_pb2_grpc.DeviceStub(connection.channel)
        try:
            return await getattr(stub, method)(message, timeout=timeout_s, metadata=VERSION_METADATA)
        except grpc.aio.AioRpcError as error:
            if error.code() not in _GONE:
                raise
            self._peers.lost(self.name, connection)
            raise DeviceLost(error.details()) from error
        except asyncio.CancelledError:
            if asyncio.current_task().cancelling():
                raise
            # Not this task was cancelled but the call: another one found the connection lost and closed it.
            raise DeviceLost("the connection was closed") from None
