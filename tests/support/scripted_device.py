"""A Device over real gRPC that follows a script: for what a real one does too rarely, such as hanging or dying."""

from __future__ import annotations

import threading
from collections.abc import Callable

import grpc

from moespac.actors.policy.chain import UNKNOWN
from moespac.actors.transport.endpoint import Endpoint, PeerUnknown
from moespac.actors.transport.server import ActorServer
from moespac.protos.v1 import steps_pb2 as pb
from moespac.protos.v1 import steps_pb2_grpc

SHAPE = pb.ModelShape(layer_ids=[0, 1], n_experts=4, top_k=2, hidden_size=8, intermediate_size=4, expert_bytes=192)
TOKENS_PER_STEP = 2


class ScriptedDevice(steps_pb2_grpc.DeviceServicer):
    """Emits the numbers that follow a request's last token, two a step. `on_step`, `on_close` may interfere."""

    def __init__(self, name: str = "gpu-0"):
        self.name = name
        self.ready = True
        self.drafts = ["model"]
        self.eos: list[int] = []
        self.on_step: Callable[[pb.StepRequest, grpc.ServicerContext], None] = lambda request, context: None
        self.on_close: Callable[[pb.CloseRequest, grpc.ServicerContext], None] = lambda request, context: None
        self.opened: list[pb.OpenRequest] = []
        self.closed: list[str] = []
        self.steps: list[tuple[str, float]] = []
        """(request id, seconds that the call had left)."""
        self.plans: list[pb.Plan] = []
        self.sessions: dict[str, int] = {}
        self._logprobs: set[str] = set()
        self._server: ActorServer | None = None
        self._address: str | None = None
        self._incarnation = 0
        self._lock = threading.Lock()

    def start(self) -> None:
        self._incarnation += 1
        self.sessions.clear()
        self._server = ActorServer(self.name)
        self._server.add(steps_pb2_grpc.add_DeviceServicer_to_server, self)
        self._address = self._server.start()

    def stop(self) -> None:
        """As a killed process: no goodbye, another port when it comes back."""
        self._address = None
        self._server.stop(0)

    def resolve(self, name: str) -> Endpoint:
        if name != self.name or self._address is None:
            raise PeerUnknown(f"{name} is away")
        return Endpoint(self.name, "gpu_device", self._address, incarnation=str(self._incarnation))

    def Describe(self, request, context):
        return pb.DeviceDescription(
            name=self.name,
            model=SHAPE,
            slots=2,
            kv_bytes_per_token=10,
            context_length=1000,
            ready=self.ready,
            eos_token_ids=self.eos,
            drafts=self.drafts,
        )

    def Open(self, request, context):
        with self._lock:
            self.opened.append(request)
            self.sessions[request.request_id] = request.token_ids[-1]
            if request.HasField("logprobs"):
                self._logprobs.add(request.request_id)
        return pb.OpenReply()

    def Step(self, request, context):
        self.steps.append((request.request_id, context.time_remaining()))
        self.on_step(request, context)
        with self._lock:
            if request.request_id not in self.sessions:
                context.abort(grpc.StatusCode.NOT_FOUND, f"unknown request {request.request_id}")
            last = self.sessions[request.request_id]
            self.sessions[request.request_id] += TOKENS_PER_STEP
        emitted = [last + 1 + i for i in range(TOKENS_PER_STEP)]
        layers = [pb.LayerCounts(layer=layer, counts=[2, 2, 0, 0], used=2, hits=1) for layer in SHAPE.layer_ids]
        return pb.StepReply(
            emitted=emitted,
            logprobs=[pb.TokenLogprobs(token=token) for token in emitted if request.request_id in self._logprobs],
            proposed=2,
            accepted=1,
            confidences=bytes([UNKNOWN, UNKNOWN]),
            draft_kind=request.drafts[0].kind if request.drafts else "",
            window=pb.Window(tokens=2, layers=layers),
            timings=pb.Timings(draft_s=0.001, verify_s=0.002),
        )

    def Close(self, request, context):
        self.on_close(request, context)
        self.closed.append(request.request_id)
        self.sessions.pop(request.request_id, None)
        return pb.CloseReply()

    def SetPlan(self, request, context):
        self.plans.append(request)
        return pb.PlanReply(accepted=True, epoch_held=request.epoch)
