"""What the gateway asks of the scheduler, over gRPC."""

from __future__ import annotations

import time

import grpc
import grpc.aio

from ...protos.v1 import generation_pb2 as pb
from ...protos.v1 import generation_pb2_grpc
from ...version import __version__
from .loop import StepLoop
from .request import Failure


class SchedulingService(generation_pb2_grpc.SchedulingServicer):
    """Streams of token ids; a stream that its client leaves ends the request within one step."""

    def __init__(self, deployment_name: str, loop: StepLoop, prefetcher_status):
        """`prefetcher_status()`: the last PrefetcherDescription seen."""
        self._name, self._loop, self._prefetcher_status = deployment_name, loop, prefetcher_status
        self._started_s = time.monotonic()

    async def Submit(self, request: pb.SubmitRequest, context: grpc.aio.ServicerContext):
        await self._validate(request, context)
        entry = self._loop.new_request(request, context.time_remaining())
        refusal = self._loop.submit(entry)
        if refusal is not None:
            await context.abort(refusal.code, refusal.message)
        try:
            while True:
                event = await entry.events.get()
                if isinstance(event, Failure):
                    await context.abort(event.code, event.message)
                yield event
                if event.HasField("statistics"):
                    return
        finally:
            self._loop.abandon(entry)

    async def Finish(self, request: pb.FinishRequest, context: grpc.aio.ServicerContext) -> pb.FinishReply:
        self._loop.finish(request.request_id)
        return pb.FinishReply()

    async def Status(self, request, context) -> pb.StatusReply:
        reply = pb.StatusReply(
            version=__version__,
            deployment=self._name,
            ready=self._loop.ready,
            device=self._loop.description,
            prefetcher=self._prefetcher_status(),
            running=self._loop.running,
            waiting=self._loop.waiting,
            plan_epoch=self._loop.plan_epoch,
            uptime_s=time.monotonic() - self._started_s,
        )
        self._loop.report(reply)
        return reply

    async def _validate(self, request: pb.SubmitRequest, context: grpc.aio.ServicerContext) -> None:
        if not self._loop.ready:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the device is not ready: wait until health says SERVING")
        if not request.prompt_ids:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "prompt_ids is empty: give at least one token")
        if request.max_tokens <= len(request.emitted_ids):
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"max_tokens is {request.max_tokens}: it must be above the {len(request.emitted_ids)} tokens "
                f"already emitted",
            )
