"""One request at the scheduler, held across the scheduler's restarts.

The tokens emitted so far are kept here and handed to the next scheduler, which goes on behind them: since a token is a
function of what precedes it, the stream has neither gap nor repetition.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass

import grpc
import grpc.aio
import structlog

from ...actors.transport.async_peers import VERSION_METADATA
from ...protos.v1 import generation_pb2 as pb
from ...protos.v1 import generation_pb2_grpc
from .scheduler_link import SchedulerLink, SchedulerLost

STILL_HELD = (grpc.StatusCode.ALREADY_EXISTS, grpc.StatusCode.RESOURCE_EXHAUSTED)
"""What a scheduler may answer to a request taken up again while it has not let go of the interrupted stream."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 1.0
FINISH_TIMEOUT_S = 5.0
log = structlog.get_logger()


class SchedulerAway(Exception):
    """The scheduler did not come back in time."""

    def __init__(self, patience_s: float, reason: str):
        super().__init__(
            f"the scheduler has been away for {patience_s:g} s ({reason}): try again later, "
            f"and see `moespac status` if it stays away"
        )


@dataclass(frozen=True)
class _Interrupted:
    """A stream that ended early: which scheduler process served it, and whether it had begun to answer."""

    incarnation: str
    answered: bool


class Submission:
    """Iterate over `events()` once. Times are of the monotonic clock."""

    def __init__(
        self,
        link: SchedulerLink,
        request: pb.SubmitRequest,
        deadline: float | None,
        patience_s: float,
        emulated: bool,
    ):
        """`deadline`: when the client gives up; `patience_s`: how long a scheduler may be away without progress;
        `emulated`: whether the device behind it is.
        """
        self._link, self._request, self._emulated = link, request, emulated
        self._deadline, self._patience_s = deadline, patience_s
        self._emitted: list[int] = []
        self._restarts = 0
        self._interrupted: _Interrupted | None = None
        self._arrived = time.monotonic()
        self._first_token: float | None = None
        self._last_token = self._arrived
        self._stub: generation_pb2_grpc.SchedulingStub | None = None
        self._counted: int | None = None
        self._unanswered: str | None = None

    async def finish(self, tokens: int) -> None:
        """Ends the generation: its first `tokens` tokens are all. `events` then yields the statistics, no more tokens.

        To be called between two events.
        """
        self._counted = tokens
        if self._stub is None:
            return  # the scheduler has said its last
        request = pb.FinishRequest(request_id=self._request.request_id)
        try:
            await self._stub.Finish(request, timeout=FINISH_TIMEOUT_S, metadata=VERSION_METADATA)
        except grpc.aio.AioRpcError as error:
            self._unanswered = error.details() or error.code().name

    async def events(self) -> AsyncIterator[pb.SubmitEvent]:
        """The scheduler's events, as if it had never been away; the last one carries the statistics.

        Raises SchedulerAway, and AioRpcError when the scheduler refuses the request.
        """
        pause_s, away_since = FIRST_PAUSE_S, None
        while True:
            try:
                async with aclosing(self._one_stream()) as stream:
                    async for event in stream:
                        if self._counted is not None and not event.HasField("statistics"):
                            continue
                        pause_s, away_since = FIRST_PAUSE_S, None
                        yield event
                        if event.HasField("statistics"):
                            return
            except SchedulerLost as lost:
                now = time.monotonic()
                away_since = now if away_since is None else away_since
                if now - away_since >= self._patience_s:
                    raise SchedulerAway(self._patience_s, lost.reason) from lost
                log.warning("scheduler lost", request=self._request.request_id, reason=lost.reason)
                if self._counted is not None or len(self._emitted) >= self._request.max_tokens:
                    self._restarts += 1
                    yield pb.SubmitEvent(statistics=self._own_statistics())
                    return
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def _one_stream(self) -> AsyncIterator[pb.SubmitEvent]:
        """Events of one scheduler's life. Raises SchedulerLost when it ends early."""
        request = pb.SubmitRequest()
        request.CopyFrom(self._request)
        request.emitted_ids.extend(self._emitted)
        async with self._link.connected() as connection:
            again = self._interrupted is not None
            answered, finished = False, False
            call = connection.stub.Submit(request, timeout=self._remaining_s(), metadata=VERSION_METADATA)
            try:
                async for event in call:
                    if not answered:
                        answered = True
                        self._resumed(connection.endpoint.incarnation)
                    finished = event.HasField("statistics")
                    self._stub = None if finished else connection.stub
                    self._take(event)
                    yield event
                    if finished:
                        return
                    if self._unanswered is not None:
                        raise SchedulerLost(self._unanswered)
                raise SchedulerLost("it ended the stream too early")
            except grpc.aio.AioRpcError as error:
                if again and error.code() in STILL_HELD:
                    raise SchedulerLost(error.details() or error.code().name) from error
                raise
            finally:
                self._stub = None
                call.cancel()  # tells the scheduler when the client has left; no effect once the stream has ended
                if not finished and (answered or self._interrupted is None):
                    self._interrupted = _Interrupted(connection.endpoint.incarnation, answered)

    def _remaining_s(self) -> float | None:
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def _resumed(self, incarnation: str) -> None:
        """Counts a restart, unless the scheduler had merely put the request off."""
        lost, self._interrupted = self._interrupted, None
        if lost is not None and (lost.answered or lost.incarnation != incarnation):
            self._restarts += 1

    def _take(self, event: pb.SubmitEvent) -> None:
        if event.token_ids and self._counted is None:
            self._last_token = time.monotonic()
            if self._first_token is None:
                self._first_token = self._last_token
            self._emitted.extend(event.token_ids)
        if event.HasField("statistics") and (self._restarts or self._counted is not None):
            self._correct(event.statistics)

    def _correct(self, statistics: pb.Statistics) -> None:
        """After a restart the last scheduler knows only its own part, and it never knows which tokens count before a
        stop string: times and tokens are those seen here.
        """
        now = time.monotonic()
        first = now if self._first_token is None else self._first_token
        tokens = len(self._emitted) if self._counted is None else self._counted
        statistics.restarts += self._restarts
        statistics.tokens = tokens
        statistics.ttft_s = first - self._arrived
        statistics.tpot_s = (self._last_token - first) / (tokens - 1) if tokens > 1 else 0.0
        statistics.tokens_per_second = tokens / max(now - self._arrived, 1e-9)

    def _own_statistics(self) -> pb.Statistics:
        """The scheduler was lost behind the last token: what it counted went with it."""
        statistics = pb.Statistics(
            finish_reason=pb.Statistics.LENGTH,
            prompt_tokens=len(self._request.prompt_ids),
            emulated=self._emulated,
        )
        self._correct(statistics)
        return statistics
