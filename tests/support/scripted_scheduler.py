"""A scheduler that says what a script says, over real gRPC: to test what talks to a scheduler, not what one decides.

Run as a program, it is a process that can be killed: `python scripted_scheduler.py '{"tokens": [1, 2, 3]}'` prints its
address, then one line for every request that arrives.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from dataclasses import dataclass, field

import grpc

from moespac.actors.transport.endpoint import Endpoint, PeerUnknown
from moespac.actors.transport.server import ActorServer
from moespac.protos.v1 import generation_pb2 as pb
from moespac.protos.v1 import generation_pb2_grpc, steps_pb2


@dataclass
class Script:
    """What the scheduler says to every request."""

    tokens: list[int]
    """The generation; a request gets those after its emitted_ids, up to its max_tokens."""
    per_event: int = 1
    pause_after: int | None = None
    """Tokens in all after which a stream says nothing more, not even that it is at its end, until `go_on`."""
    first_after_s: float = 0.0
    """What the first event of a stream takes at least."""
    refuse: tuple[str, str] | None = None
    """Status code and message to answer every Submit with."""
    context_length: int = 256
    ready: bool = True
    vocab_size: int = 320
    never_finish: bool = False
    """Refuses to end a request before its time."""
    trace: list[str] = field(default_factory=list)
    """Rows to send a span of with each event, where the request asks for a trace."""


class ScriptedScheduler(generation_pb2_grpc.SchedulingServicer):
    def __init__(self, script: Script, port: int = 0, arrived=lambda request: None):
        """`arrived(request)` is called for every Submit."""
        self.script, self._arrived = script, arrived
        self.requests: list[pb.SubmitRequest] = []
        self.finished: list[str] = []
        """Requests that the gateway ended before their time."""
        self.time_remaining: list[float | None] = []
        self.left = threading.Event()
        """Set when a caller left a stream that was not at its end."""
        self._waiting: list[threading.Event] = []
        self._server = ActorServer("scheduler", port=port, threads=16)
        self._server.add(generation_pb2_grpc.add_SchedulingServicer_to_server, self)
        self.address = self._server.start()

    def stop(self) -> None:
        self._server.stop(0)

    def go_on(self) -> None:
        """Ends all pauses."""
        self.script.pause_after = None
        for waiting in self._waiting:
            waiting.set()

    def Submit(self, request, context):
        script = self.script
        self.requests.append(request)
        self.time_remaining.append(context.time_remaining())
        self._arrived(request)
        if script.refuse:
            context.abort(grpc.StatusCode[script.refuse[0]], script.refuse[1])
        emitted = list(request.emitted_ids)
        if emitted != script.tokens[: len(emitted)]:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"emitted_ids {emitted} are not the script's")
        gone = threading.Event()
        self._waiting.append(gone)
        finished = threading.Event()

        def ended():
            if not finished.is_set():
                self.left.set()
            gone.set()

        context.add_callback(ended)
        started, done, last = time.monotonic(), len(emitted), min(request.max_tokens, len(script.tokens))
        time.sleep(script.first_after_s)
        while request.request_id not in self.finished:
            if script.pause_after is not None and done >= script.pause_after:
                gone.wait()
                if not context.is_active():
                    return
            if done == last:
                break
            tokens = script.tokens[done : min(done + script.per_event, last)]
            done += len(tokens)
            now = time.time_ns()
            rows = script.trace if request.trace else []
            spans = [steps_pb2.Span(row=row, name="pass", start_ns=now, end_ns=now + 1000) for row in rows]
            asked = tokens if request.HasField("logprobs") else []
            logprobs = [steps_pb2.TokenLogprobs(token=token, logprob=-token / 8) for token in asked]
            yield pb.SubmitEvent(token_ids=tokens, spans=spans, logprobs=logprobs)
        own = done - len(emitted)
        reason = pb.Statistics.LENGTH if done == request.max_tokens else pb.Statistics.STOP
        finished.set()
        seconds = max(time.monotonic() - started, 1e-9)
        yield pb.SubmitEvent(
            statistics=pb.Statistics(
                finish_reason=reason,
                prompt_tokens=len(request.prompt_ids),
                tokens=own,
                ttft_s=0.001,
                tokens_per_second=own / seconds,
                steps=own,
                proposed=4 * own,
                accepted=3 * own,
                plan_ms=[1.0, 2.0, 3.0],
                solver_statuses=["OPTIMAL", "OPTIMAL", "GREEDY"],
                emulated=True,
            )
        )

    def Finish(self, request, context):
        if self.script.never_finish:
            context.abort(grpc.StatusCode.INTERNAL, "scripted to go on")
        self.finished.append(request.request_id)
        self.go_on()
        return pb.FinishReply()

    def Status(self, request, context):
        device = steps_pb2.DeviceDescription(
            name="gpu-0",
            torch_device="cpu",
            context_length=self.script.context_length,
            vocab_size=self.script.vocab_size,
            model=steps_pb2.ModelShape(layer_ids=[0, 1, 2], n_experts=8, top_k=2, expert_bytes=3072),
        )
        return pb.StatusReply(
            ready=self.script.ready, device=device, running=1, actors=[pb.ActorInfo(name="scheduler", ready=True)]
        )


class Registry:
    """A `Resolve` whose answers the test decides."""

    def __init__(self) -> None:
        self._addresses: dict[str, str] = {}
        self.lookups = 0

    def put(self, name: str, address: str | None) -> None:
        if address is None:
            self._addresses.pop(name, None)
        else:
            self._addresses[name] = address

    def __call__(self, name: str) -> Endpoint:
        self.lookups += 1
        if name not in self._addresses:
            raise PeerUnknown(f"{name} is away")
        # Every address is another process here.
        return Endpoint(name, name, self._addresses[name], incarnation=self._addresses[name])


if __name__ == "__main__":
    scheduler = ScriptedScheduler(
        Script(**json.loads(sys.argv[1])), arrived=lambda request: print(request.request_id, flush=True)
    )
    print(scheduler.address, flush=True)
    threading.Event().wait()
