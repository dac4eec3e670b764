"""The scheduler's view of the prefetcher: what it sends and asks is advice and figures, so failures are only noted."""

from __future__ import annotations

import asyncio

import grpc
import grpc.aio
import structlog

from ...protos.v1 import steps_pb2 as pb
from ...protos.v1 import steps_pb2_grpc
from ..transport.async_peers import VERSION_METADATA, AsyncPeers
from ..transport.endpoint import PeerUnknown
from .device_client import SHORT_CALL_S

log = structlog.get_logger()


class PrefetcherClient:
    """Calls to the prefetcher `name`; each answers None while it is away."""

    def __init__(self, peers: AsyncPeers, name: str):
        self._peers, self._name = peers, name
        self.incarnation = ""
        """Of the prefetcher last connected to."""

    async def set_plan(self, plan: pb.Plan) -> pb.PlanReply | None:
        return await self._call("SetPlan", plan)

    async def describe(self) -> pb.PrefetcherDescription | None:
        return await self._call("Describe", pb.DescribeRequest())

    async def _call(self, method: str, message):
        try:
            connection = await self._peers.connect(self._name)
        except PeerUnknown as error:
            log.warning("prefetcher away", call=method, reason=str(error))
            return None
        self.incarnation = connection.endpoint.incarnation
        try:
            stub = steps_pb2_grpc.PrefetcherStub(connection.channel)
            return await getattr(stub, method)(message, timeout=SHORT_CALL_S, metadata=VERSION_METADATA)
        except grpc.aio.AioRpcError as error:
            log.warning("prefetcher call failed", call=method, code=error.code().name, reason=error.details())
            if error.code() == grpc.StatusCode.UNAVAILABLE:
                self._peers.lost(self._name, connection)
            return None
        except asyncio.CancelledError:
            if asyncio.current_task().cancelling():
                raise
            return None  # not this task was cancelled but the call: its connection was closed
