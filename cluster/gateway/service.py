"""What clients ask for: Generate, Models, Status."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import grpc
import grpc.aio

from ...configs import Deployment
from ...protos.v1 import generation_pb2 as pb
from ...protos.v1 import generation_pb2_grpc, steps_pb2
from ...version import __version__
from .output import Output
from .readiness import SchedulerState
from .request_totals import RequestTotals
from .requests import RequestInvalid, check_length, check_request, check_tokens
from .scheduler_link import SchedulerLink
from .submission import SchedulerAway, Submission
from .text import TextCodec

Context = grpc.aio.ServicerContext
ActorsInfo = Callable[[], Sequence[pb.ActorInfo]]
"""The deployment's actors as they are now. May block; must not raise."""
ACTORS_INFO_TIMEOUT_S = 5.0
DEADLINE_SLACK_S = 0.05
"""A client gives up at its deadline, which may be a little earlier than here."""
SHUTTING_DOWN = "the service is shutting down: send the request again when it is back"


class GenerationService(generation_pb2_grpc.GenerationServicer):
    """Holds at most as many streams as the scheduler runs and lets wait; a stream buffers nothing but its tokens."""

    def __init__(
        self,
        deployment: Deployment,
        codec: TextCodec,
        link: SchedulerLink,
        state: SchedulerState,
        actors_info: ActorsInfo | None,
        patience_s: float,
    ):
        """`actors_info`: None: the scheduler's list is shown; `patience_s`: how long a stream waits for a scheduler
        that is away.
        """
        self._deployment, self._codec, self._link, self._state = deployment, codec, link, state
        self._actors_info, self._patience_s = actors_info, patience_s
        # It asks Ray, which may hang: one thread of its own, so that nothing else waits for it.
        self._lookups = ThreadPoolExecutor(1, thread_name_prefix="actors-info")
        self._model = deployment.model.target.name
        self._started = time.monotonic()
        self._streams: set[asyncio.Timeout] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._stopping = False
        self._requests = RequestTotals()
        self.metrics_port = 0
        """Where Prometheus metrics are served; 0: nowhere."""

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> None:
        scheduler = self._deployment.scheduler
        most = scheduler.max_running + scheduler.max_waiting
        if self._stopping:
            self._requests.add(grpc.StatusCode.UNAVAILABLE)
            await context.abort(grpc.StatusCode.UNAVAILABLE, SHUTTING_DOWN)
        if len(self._streams) >= most:
            self._requests.add(grpc.StatusCode.RESOURCE_EXHAUSTED)
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"{most} requests are running or waiting, the most this deployment takes: try again later, "
                f"or raise scheduler.max_waiting",
            )
        # Never runs out by itself: `drain` moves it to end the stream.
        scope = asyncio.timeout(None)
        self._streams.add(scope)
        self._idle.clear()
        end: pb.Statistics | grpc.StatusCode = grpc.StatusCode.UNKNOWN
        try:
            async with scope:
                end = await self._generate(request, context)
        except RequestInvalid as error:
            end = grpc.StatusCode.INVALID_ARGUMENT
            await context.abort(end, str(error))
        except SchedulerAway as error:
            end = grpc.StatusCode.UNAVAILABLE
            await context.abort(end, str(error))
        except grpc.aio.AioRpcError as error:
            # The scheduler refused the request: its words are meant for the client.
            end = error.code()
            await context.abort(end, error.details() or "the scheduler gave no reason")
        except TimeoutError:
            if not scope.expired():
                raise
            end = grpc.StatusCode.UNAVAILABLE
            await context.abort(end, SHUTTING_DOWN)
        except asyncio.CancelledError:
            remaining_s = context.time_remaining()
            late = remaining_s is not None and remaining_s <= DEADLINE_SLACK_S
            end = grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED
            raise
        finally:
            self._requests.add(end)
            self._streams.discard(scope)
            if not self._streams:
                self._idle.set()

    async def Models(self, request: pb.ModelsRequest, context: Context) -> pb.ModelsReply:
        device = self._state.device
        if device is None:
            await context.abort(
                grpc.StatusCode.UNAVAILABLE,
                f"nothing is known of the model yet ({self._state.problem}): wait until health says SERVING",
            )
        draft = self._deployment.draft_model
        info = pb.ModelInfo(
            name=self._model,
            draft=draft.name if draft else "",
            context_length=device.context_length,
            shape=device.model,
        )
        return pb.ModelsReply(models=[info])

    async def Status(self, request: pb.StatusRequest, context: Context) -> pb.StatusReply:
        reply, _ = await self.status(None)
        if self._actors_info is not None and (actors := await self._actors()):
            del reply.actors[:]
            reply.actors.extend(actors)
        return reply

    async def status(self, limit_s: float | None) -> tuple[pb.StatusReply, bool]:
        """Status but for the actors, and whether the scheduler answered; within `limit_s` seconds, if given."""
        answer = None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                answer = await self._state.refresh()
        reply = pb.StatusReply() if answer is None else answer
        reply.version = __version__
        reply.deployment = self._deployment.name
        reply.ready = self._state.ready and not self._stopping
        reply.uptime_s = time.monotonic() - self._started
        reply.requests.CopyFrom(self._requests.message())
        reply.metrics_port = self.metrics_port
        return reply, answer is not None

    async def _actors(self) -> Sequence[pb.ActorInfo]:
        """Empty when they cannot be asked in time."""
        asked = asyncio.get_running_loop().run_in_executor(self._lookups, self._actors_info)
        try:
            return await asyncio.wait_for(asked, ACTORS_INFO_TIMEOUT_S)
        except TimeoutError:
            return ()

    async def drain(self, grace_s: float) -> None:
        """Takes no further request; lets the running ones finish for `grace_s` seconds, then ends them."""
        self._stopping = True
        try:
            async with asyncio.timeout(grace_s):
                await self._idle.wait()
        except TimeoutError:
            for scope in self._streams:
                scope.reschedule(asyncio.get_running_loop().time())
            await self._idle.wait()

    async def _generate(self, request: pb.GenerateRequest, context: Context) -> pb.Statistics:
        """Its statistics, when all is sent."""
        check_request(request, self._model, bool(self._deployment.draft_kinds))
        # Long prompts take a while, and other streams must go on.
        prompt_ids = await asyncio.to_thread(self._codec.encode, request.prompt)
        device = await self._device()
        check_tokens(request, device.vocab_size)
        check_length(len(prompt_ids), request.max_tokens, device.context_length)
        remaining_s = context.time_remaining()
        submission = Submission(
            self._link,
            pb.SubmitRequest(
                request_id=uuid.uuid4().hex,
                prompt_ids=prompt_ids,
                max_tokens=request.max_tokens,
                sampling=request.sampling,
                gamma=request.gamma if request.HasField("gamma") else None,
                trace=request.trace,
                ignore_eos=request.ignore_eos,
                stop_token_ids=request.stop_token_ids,
                logprobs=request.logprobs if request.HasField("logprobs") else None,
            ),
            None if remaining_s is None else time.monotonic() + remaining_s,
            self._patience_s,
            device.emulated,
        )
        output, statistics = Output(self._codec.stream(), request.stop), pb.Statistics()
        async with contextlib.aclosing(submission.events()) as events:
            async for event in events:
                running = output.stop is None
                await self._forward(event, output, context)
                if running and output.stop is not None:
                    await submission.finish(output.tokens)
                statistics = event.statistics
        return statistics

    async def _device(self) -> steps_pb2.DeviceDescription:
        try:
            return await self._state.wait_device(self._patience_s)
        except TimeoutError as error:
            raise SchedulerAway(self._patience_s, self._state.problem) from error

    @staticmethod
    async def _forward(event: pb.SubmitEvent, output: Output, context: Context) -> None:
        """`write` waits for a client that reads slowly, and with it the scheduler's stream."""
        if event.spans:
            await context.write(pb.GenerateEvent(spans=pb.Spans(spans=event.spans)))
        text, counted = output.push(event.token_ids)
        if event.HasField("statistics"):
            text += output.finish()
        if text or counted:
            piece = pb.TextPiece(text=text, token_ids=event.token_ids[:counted], logprobs=event.logprobs[:counted])
            await context.write(pb.GenerateEvent(piece=piece))
        if event.HasField("statistics"):
            if output.stop is not None:
                event.statistics.finish_reason, event.statistics.stop = pb.Statistics.STOP, output.stop
                event.statistics.ClearField("stop_token_id")
            await context.write(pb.GenerateEvent(statistics=event.statistics))
