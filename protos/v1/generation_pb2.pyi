from moespac.protos.v1 import steps_pb2 as _steps_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GenerateRequest(_message.Message):
    __slots__ = ("prompt", "max_tokens", "sampling", "gamma", "trace", "model", "ignore_eos", "stop", "stop_token_ids", "logprobs")
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    GAMMA_FIELD_NUMBER: _ClassVar[int]
    TRACE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    IGNORE_EOS_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    prompt: str
    max_tokens: int
    sampling: _steps_pb2.Sampling
    gamma: int
    trace: bool
    model: str
    ignore_eos: bool
    stop: _containers.RepeatedScalarFieldContainer[str]
    stop_token_ids: _containers.RepeatedScalarFieldContainer[int]
    logprobs: int
    def __init__(self, prompt: _Optional[str] = ..., max_tokens: _Optional[int] = ..., sampling: _Optional[_Union[_steps_pb2.Sampling, _Mapping]] = ..., gamma: _Optional[int] = ..., trace: _Optional[bool] = ..., model: _Optional[str] = ..., ignore_eos: _Optional[bool] = ..., stop: _Optional[_Iterable[str]] = ..., stop_token_ids: _Optional[_Iterable[int]] = ..., logprobs: _Optional[int] = ...) -> None: ...

class GenerateEvent(_message.Message):
    __slots__ = ("piece", "spans", "statistics")
    PIECE_FIELD_NUMBER: _ClassVar[int]
    SPANS_FIELD_NUMBER: _ClassVar[int]
    STATISTICS_FIELD_NUMBER: _ClassVar[int]
    piece: TextPiece
    spans: Spans
    statistics: Statistics
    def __init__(self, piece: _Optional[_Union[TextPiece, _Mapping]] = ..., spans: _Optional[_Union[Spans, _Mapping]] = ..., statistics: _Optional[_Union[Statistics, _Mapping]] = ...) -> None: ...

class TextPiece(_message.Message):
    __slots__ = ("text", "token_ids", "logprobs")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    text: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    logprobs: _containers.RepeatedCompositeFieldContainer[_steps_pb2.TokenLogprobs]
    def __init__(self, text: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ..., logprobs: _Optional[_Iterable[_Union[_steps_pb2.TokenLogprobs, _Mapping]]] = ...) -> None: ...

class Spans(_message.Message):
    __slots__ = ("spans",)
    SPANS_FIELD_NUMBER: _ClassVar[int]
    spans: _containers.RepeatedCompositeFieldContainer[_steps_pb2.Span]
    def __init__(self, spans: _Optional[_Iterable[_Union[_steps_pb2.Span, _Mapping]]] = ...) -> None: ...

class Statistics(_message.Message):
    __slots__ = ("finish_reason", "prompt_tokens", "tokens", "ttft_s", "tpot_s", "tokens_per_second", "steps", "proposed", "accepted", "uses", "hits", "bytes_moved", "transfer_s", "transfer_hidden_s", "plan_ms", "solver_statuses", "expert_calls", "fallback_experts", "emulated", "restarts", "drafts", "demand", "demand_predicted", "stop", "streamed_experts", "awaited_experts", "lane_calls", "stop_token_id", "solvers", "plan_gaps", "prefetch_recall", "prefetch_closed", "prediction_errors", "cancelled_transfers")
    class FinishReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        FINISH_REASON_UNSPECIFIED: _ClassVar[Statistics.FinishReason]
        STOP: _ClassVar[Statistics.FinishReason]
        LENGTH: _ClassVar[Statistics.FinishReason]
    FINISH_REASON_UNSPECIFIED: Statistics.FinishReason
    STOP: Statistics.FinishReason
    LENGTH: Statistics.FinishReason
    class PredictionErrorsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    TTFT_S_FIELD_NUMBER: _ClassVar[int]
    TPOT_S_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    PROPOSED_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    USES_FIELD_NUMBER: _ClassVar[int]
    HITS_FIELD_NUMBER: _ClassVar[int]
    BYTES_MOVED_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_S_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_HIDDEN_S_FIELD_NUMBER: _ClassVar[int]
    PLAN_MS_FIELD_NUMBER: _ClassVar[int]
    SOLVER_STATUSES_FIELD_NUMBER: _ClassVar[int]
    EXPERT_CALLS_FIELD_NUMBER: _ClassVar[int]
    FALLBACK_EXPERTS_FIELD_NUMBER: _ClassVar[int]
    EMULATED_FIELD_NUMBER: _ClassVar[int]
    RESTARTS_FIELD_NUMBER: _ClassVar[int]
    DRAFTS_FIELD_NUMBER: _ClassVar[int]
    DEMAND_FIELD_NUMBER: _ClassVar[int]
    DEMAND_PREDICTED_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    STREAMED_EXPERTS_FIELD_NUMBER: _ClassVar[int]
    AWAITED_EXPERTS_FIELD_NUMBER: _ClassVar[int]
    LANE_CALLS_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    SOLVERS_FIELD_NUMBER: _ClassVar[int]
    PLAN_GAPS_FIELD_NUMBER: _ClassVar[int]
    PREFETCH_RECALL_FIELD_NUMBER: _ClassVar[int]
    PREFETCH_CLOSED_FIELD_NUMBER: _ClassVar[int]
    PREDICTION_ERRORS_FIELD_NUMBER: _ClassVar[int]
    CANCELLED_TRANSFERS_FIELD_NUMBER: _ClassVar[int]
    finish_reason: Statistics.FinishReason
    prompt_tokens: int
    tokens: int
    ttft_s: float
    tpot_s: float
    tokens_per_second: float
    steps: int
    proposed: int
    accepted: int
    uses: int
    hits: int
    bytes_moved: int
    transfer_s: float
    transfer_hidden_s: float
    plan_ms: _containers.RepeatedScalarFieldContainer[float]
    solver_statuses: _containers.RepeatedScalarFieldContainer[str]
    expert_calls: int
    fallback_experts: int
    emulated: bool
    restarts: int
    drafts: _containers.RepeatedCompositeFieldContainer[DraftStatistics]
    demand: int
    demand_predicted: int
    stop: str
    streamed_experts: int
    awaited_experts: int
    lane_calls: int
    stop_token_id: int
    solvers: _containers.RepeatedScalarFieldContainer[str]
    plan_gaps: _containers.RepeatedScalarFieldContainer[float]
    prefetch_recall: float
    prefetch_closed: bool
    prediction_errors: _containers.ScalarMap[str, float]
    cancelled_transfers: int
    def __init__(self, finish_reason: _Optional[_Union[Statistics.FinishReason, str]] = ..., prompt_tokens: _Optional[int] = ..., tokens: _Optional[int] = ..., ttft_s: _Optional[float] = ..., tpot_s: _Optional[float] = ..., tokens_per_second: _Optional[float] = ..., steps: _Optional[int] = ..., proposed: _Optional[int] = ..., accepted: _Optional[int] = ..., uses: _Optional[int] = ..., hits: _Optional[int] = ..., bytes_moved: _Optional[int] = ..., transfer_s: _Optional[float] = ..., transfer_hidden_s: _Optional[float] = ..., plan_ms: _Optional[_Iterable[float]] = ..., solver_statuses: _Optional[_Iterable[str]] = ..., expert_calls: _Optional[int] = ..., fallback_experts: _Optional[int] = ..., emulated: _Optional[bool] = ..., restarts: _Optional[int] = ..., drafts: _Optional[_Iterable[_Union[DraftStatistics, _Mapping]]] = ..., demand: _Optional[int] = ..., demand_predicted: _Optional[int] = ..., stop: _Optional[str] = ..., streamed_experts: _Optional[int] = ..., awaited_experts: _Optional[int] = ..., lane_calls: _Optional[int] = ..., stop_token_id: _Optional[int] = ..., solvers: _Optional[_Iterable[str]] = ..., plan_gaps: _Optional[_Iterable[float]] = ..., prefetch_recall: _Optional[float] = ..., prefetch_closed: _Optional[bool] = ..., prediction_errors: _Optional[_Mapping[str, float]] = ..., cancelled_transfers: _Optional[int] = ...) -> None: ...

class DraftStatistics(_message.Message):
    __slots__ = ("kind", "steps", "proposed", "accepted")
    KIND_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    PROPOSED_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    kind: str
    steps: int
    proposed: _containers.RepeatedScalarFieldContainer[int]
    accepted: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, kind: _Optional[str] = ..., steps: _Optional[int] = ..., proposed: _Optional[_Iterable[int]] = ..., accepted: _Optional[_Iterable[int]] = ...) -> None: ...

class ModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ModelsReply(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[ModelInfo]
    def __init__(self, models: _Optional[_Iterable[_Union[ModelInfo, _Mapping]]] = ...) -> None: ...

class ModelInfo(_message.Message):
    __slots__ = ("name", "draft", "context_length", "shape")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DRAFT_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    name: str
    draft: str
    context_length: int
    shape: _steps_pb2.ModelShape
    def __init__(self, name: _Optional[str] = ..., draft: _Optional[str] = ..., context_length: _Optional[int] = ..., shape: _Optional[_Union[_steps_pb2.ModelShape, _Mapping]] = ...) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatusReply(_message.Message):
    __slots__ = ("version", "deployment", "ready", "actors", "device", "prefetcher", "running", "waiting", "plan_epoch", "uptime_s", "planning", "speculation", "work", "requests", "metrics_port")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DEPLOYMENT_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    ACTORS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    PREFETCHER_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    PLAN_EPOCH_FIELD_NUMBER: _ClassVar[int]
    UPTIME_S_FIELD_NUMBER: _ClassVar[int]
    PLANNING_FIELD_NUMBER: _ClassVar[int]
    SPECULATION_FIELD_NUMBER: _ClassVar[int]
    WORK_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    METRICS_PORT_FIELD_NUMBER: _ClassVar[int]
    version: str
    deployment: str
    ready: bool
    actors: _containers.RepeatedCompositeFieldContainer[ActorInfo]
    device: _steps_pb2.DeviceDescription
    prefetcher: _steps_pb2.PrefetcherDescription
    running: int
    waiting: int
    plan_epoch: int
    uptime_s: float
    planning: PlanningStatus
    speculation: SpeculationStatus
    work: WorkTotals
    requests: RequestTotals
    metrics_port: int
    def __init__(self, version: _Optional[str] = ..., deployment: _Optional[str] = ..., ready: _Optional[bool] = ..., actors: _Optional[_Iterable[_Union[ActorInfo, _Mapping]]] = ..., device: _Optional[_Union[_steps_pb2.DeviceDescription, _Mapping]] = ..., prefetcher: _Optional[_Union[_steps_pb2.PrefetcherDescription, _Mapping]] = ..., running: _Optional[int] = ..., waiting: _Optional[int] = ..., plan_epoch: _Optional[int] = ..., uptime_s: _Optional[float] = ..., planning: _Optional[_Union[PlanningStatus, _Mapping]] = ..., speculation: _Optional[_Union[SpeculationStatus, _Mapping]] = ..., work: _Optional[_Union[WorkTotals, _Mapping]] = ..., requests: _Optional[_Union[RequestTotals, _Mapping]] = ..., metrics_port: _Optional[int] = ...) -> None: ...

class Histogram(_message.Message):
    __slots__ = ("bounds", "counts", "sum")
    BOUNDS_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    SUM_FIELD_NUMBER: _ClassVar[int]
    bounds: _containers.RepeatedScalarFieldContainer[float]
    counts: _containers.RepeatedScalarFieldContainer[int]
    sum: float
    def __init__(self, bounds: _Optional[_Iterable[float]] = ..., counts: _Optional[_Iterable[int]] = ..., sum: _Optional[float] = ...) -> None: ...

class PlanningStatus(_message.Message):
    __slots__ = ("estimator", "plans", "last", "plan_s", "duty", "undelivered", "prefetch_open", "prefetch_recall", "prediction_errors")
    class PredictionErrorsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    ESTIMATOR_FIELD_NUMBER: _ClassVar[int]
    PLANS_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    PLAN_S_FIELD_NUMBER: _ClassVar[int]
    DUTY_FIELD_NUMBER: _ClassVar[int]
    UNDELIVERED_FIELD_NUMBER: _ClassVar[int]
    PREFETCH_OPEN_FIELD_NUMBER: _ClassVar[int]
    PREFETCH_RECALL_FIELD_NUMBER: _ClassVar[int]
    PREDICTION_ERRORS_FIELD_NUMBER: _ClassVar[int]
    estimator: str
    plans: _containers.RepeatedCompositeFieldContainer[PlanCount]
    last: PlanInfo
    plan_s: Histogram
    duty: float
    undelivered: int
    prefetch_open: bool
    prefetch_recall: float
    prediction_errors: _containers.ScalarMap[str, float]
    def __init__(self, estimator: _Optional[str] = ..., plans: _Optional[_Iterable[_Union[PlanCount, _Mapping]]] = ..., last: _Optional[_Union[PlanInfo, _Mapping]] = ..., plan_s: _Optional[_Union[Histogram, _Mapping]] = ..., duty: _Optional[float] = ..., undelivered: _Optional[int] = ..., prefetch_open: _Optional[bool] = ..., prefetch_recall: _Optional[float] = ..., prediction_errors: _Optional[_Mapping[str, float]] = ...) -> None: ...

class PlanCount(_message.Message):
    __slots__ = ("solver", "status", "plans")
    SOLVER_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    PLANS_FIELD_NUMBER: _ClassVar[int]
    solver: str
    status: str
    plans: int
    def __init__(self, solver: _Optional[str] = ..., status: _Optional[str] = ..., plans: _Optional[int] = ...) -> None: ...

class PlanInfo(_message.Message):
    __slots__ = ("epoch", "solver", "status", "gap", "seconds", "drift", "hot", "transfers_wanted", "transfers_allowed", "link_budget_bytes")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SOLVER_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    GAP_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    DRIFT_FIELD_NUMBER: _ClassVar[int]
    HOT_FIELD_NUMBER: _ClassVar[int]
    TRANSFERS_WANTED_FIELD_NUMBER: _ClassVar[int]
    TRANSFERS_ALLOWED_FIELD_NUMBER: _ClassVar[int]
    LINK_BUDGET_BYTES_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    solver: str
    status: str
    gap: float
    seconds: float
    drift: float
    hot: int
    transfers_wanted: int
    transfers_allowed: int
    link_budget_bytes: int
    def __init__(self, epoch: _Optional[int] = ..., solver: _Optional[str] = ..., status: _Optional[str] = ..., gap: _Optional[float] = ..., seconds: _Optional[float] = ..., drift: _Optional[float] = ..., hot: _Optional[int] = ..., transfers_wanted: _Optional[int] = ..., transfers_allowed: _Optional[int] = ..., link_budget_bytes: _Optional[int] = ...) -> None: ...

class SpeculationStatus(_message.Message):
    __slots__ = ("kinds", "steps", "decisions", "drafts", "exploration_loss", "predicted_rate", "predicted_unassisted_rate")
    KINDS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    DECISIONS_FIELD_NUMBER: _ClassVar[int]
    DRAFTS_FIELD_NUMBER: _ClassVar[int]
    EXPLORATION_LOSS_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_RATE_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_UNASSISTED_RATE_FIELD_NUMBER: _ClassVar[int]
    kinds: _containers.RepeatedScalarFieldContainer[str]
    steps: _containers.RepeatedCompositeFieldContainer[DraftedSteps]
    decisions: _containers.RepeatedCompositeFieldContainer[DecisionTotals]
    drafts: _containers.RepeatedCompositeFieldContainer[DraftStatistics]
    exploration_loss: float
    predicted_rate: float
    predicted_unassisted_rate: float
    def __init__(self, kinds: _Optional[_Iterable[str]] = ..., steps: _Optional[_Iterable[_Union[DraftedSteps, _Mapping]]] = ..., decisions: _Optional[_Iterable[_Union[DecisionTotals, _Mapping]]] = ..., drafts: _Optional[_Iterable[_Union[DraftStatistics, _Mapping]]] = ..., exploration_loss: _Optional[float] = ..., predicted_rate: _Optional[float] = ..., predicted_unassisted_rate: _Optional[float] = ...) -> None: ...

class DraftedSteps(_message.Message):
    __slots__ = ("kind", "gamma", "steps")
    KIND_FIELD_NUMBER: _ClassVar[int]
    GAMMA_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    kind: str
    gamma: int
    steps: int
    def __init__(self, kind: _Optional[str] = ..., gamma: _Optional[int] = ..., steps: _Optional[int] = ...) -> None: ...

class DecisionTotals(_message.Message):
    __slots__ = ("reason", "steps", "seconds", "tokens", "promised_tokens")
    REASON_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    PROMISED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    reason: str
    steps: int
    seconds: float
    tokens: int
    promised_tokens: float
    def __init__(self, reason: _Optional[str] = ..., steps: _Optional[int] = ..., seconds: _Optional[float] = ..., tokens: _Optional[int] = ..., promised_tokens: _Optional[float] = ...) -> None: ...

class WorkTotals(_message.Message):
    __slots__ = ("tokens", "prefill_tokens", "steps", "accepted", "decode_s", "prefill_s", "draft_s", "expert_wait_s", "uses", "hits", "transfers", "bytes_moved", "transfer_s", "transfer_hidden_s", "expert_calls", "fallback_experts", "restarts", "lane_calls", "streamed_experts", "awaited_experts", "cancelled_transfers", "copy_wait_s")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    PREFILL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    DECODE_S_FIELD_NUMBER: _ClassVar[int]
    PREFILL_S_FIELD_NUMBER: _ClassVar[int]
    DRAFT_S_FIELD_NUMBER: _ClassVar[int]
    EXPERT_WAIT_S_FIELD_NUMBER: _ClassVar[int]
    USES_FIELD_NUMBER: _ClassVar[int]
    HITS_FIELD_NUMBER: _ClassVar[int]
    TRANSFERS_FIELD_NUMBER: _ClassVar[int]
    BYTES_MOVED_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_S_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_HIDDEN_S_FIELD_NUMBER: _ClassVar[int]
    EXPERT_CALLS_FIELD_NUMBER: _ClassVar[int]
    FALLBACK_EXPERTS_FIELD_NUMBER: _ClassVar[int]
    RESTARTS_FIELD_NUMBER: _ClassVar[int]
    LANE_CALLS_FIELD_NUMBER: _ClassVar[int]
    STREAMED_EXPERTS_FIELD_NUMBER: _ClassVar[int]
    AWAITED_EXPERTS_FIELD_NUMBER: _ClassVar[int]
    CANCELLED_TRANSFERS_FIELD_NUMBER: _ClassVar[int]
    COPY_WAIT_S_FIELD_NUMBER: _ClassVar[int]
    tokens: int
    prefill_tokens: int
    steps: int
    accepted: int
    decode_s: float
    prefill_s: float
    draft_s: float
    expert_wait_s: float
    uses: int
    hits: int
    transfers: int
    bytes_moved: int
    transfer_s: float
    transfer_hidden_s: float
    expert_calls: int
    fallback_experts: int
    restarts: int
    lane_calls: int
    streamed_experts: int
    awaited_experts: int
    cancelled_transfers: int
    copy_wait_s: float
    def __init__(self, tokens: _Optional[int] = ..., prefill_tokens: _Optional[int] = ..., steps: _Optional[int] = ..., accepted: _Optional[int] = ..., decode_s: _Optional[float] = ..., prefill_s: _Optional[float] = ..., draft_s: _Optional[float] = ..., expert_wait_s: _Optional[float] = ..., uses: _Optional[int] = ..., hits: _Optional[int] = ..., transfers: _Optional[int] = ..., bytes_moved: _Optional[int] = ..., transfer_s: _Optional[float] = ..., transfer_hidden_s: _Optional[float] = ..., expert_calls: _Optional[int] = ..., fallback_experts: _Optional[int] = ..., restarts: _Optional[int] = ..., lane_calls: _Optional[int] = ..., streamed_experts: _Optional[int] = ..., awaited_experts: _Optional[int] = ..., cancelled_transfers: _Optional[int] = ..., copy_wait_s: _Optional[float] = ...) -> None: ...

class RequestTotals(_message.Message):
    __slots__ = ("outcomes", "ttft_s", "tpot_s")
    class OutcomesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    TTFT_S_FIELD_NUMBER: _ClassVar[int]
    TPOT_S_FIELD_NUMBER: _ClassVar[int]
    outcomes: _containers.ScalarMap[str, int]
    ttft_s: Histogram
    tpot_s: Histogram
    def __init__(self, outcomes: _Optional[_Mapping[str, int]] = ..., ttft_s: _Optional[_Union[Histogram, _Mapping]] = ..., tpot_s: _Optional[_Union[Histogram, _Mapping]] = ...) -> None: ...

class ActorInfo(_message.Message):
    __slots__ = ("name", "kind", "pid", "node", "address", "version", "ready")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: str
    pid: int
    node: str
    address: str
    version: str
    ready: bool
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[str] = ..., pid: _Optional[int] = ..., node: _Optional[str] = ..., address: _Optional[str] = ..., version: _Optional[str] = ..., ready: _Optional[bool] = ...) -> None: ...

class SubmitRequest(_message.Message):
    __slots__ = ("request_id", "prompt_ids", "emitted_ids", "max_tokens", "stop_token_ids", "logprobs", "sampling", "gamma", "trace", "ignore_eos")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PROMPT_IDS_FIELD_NUMBER: _ClassVar[int]
    EMITTED_IDS_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    GAMMA_FIELD_NUMBER: _ClassVar[int]
    TRACE_FIELD_NUMBER: _ClassVar[int]
    IGNORE_EOS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    prompt_ids: _containers.RepeatedScalarFieldContainer[int]
    emitted_ids: _containers.RepeatedScalarFieldContainer[int]
    max_tokens: int
    stop_token_ids: _containers.RepeatedScalarFieldContainer[int]
    logprobs: int
    sampling: _steps_pb2.Sampling
    gamma: int
    trace: bool
    ignore_eos: bool
    def __init__(self, request_id: _Optional[str] = ..., prompt_ids: _Optional[_Iterable[int]] = ..., emitted_ids: _Optional[_Iterable[int]] = ..., max_tokens: _Optional[int] = ..., stop_token_ids: _Optional[_Iterable[int]] = ..., logprobs: _Optional[int] = ..., sampling: _Optional[_Union[_steps_pb2.Sampling, _Mapping]] = ..., gamma: _Optional[int] = ..., trace: _Optional[bool] = ..., ignore_eos: _Optional[bool] = ...) -> None: ...

class SubmitEvent(_message.Message):
    __slots__ = ("token_ids", "spans", "statistics", "logprobs")
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    SPANS_FIELD_NUMBER: _ClassVar[int]
    STATISTICS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    spans: _containers.RepeatedCompositeFieldContainer[_steps_pb2.Span]
    statistics: Statistics
    logprobs: _containers.RepeatedCompositeFieldContainer[_steps_pb2.TokenLogprobs]
    def __init__(self, token_ids: _Optional[_Iterable[int]] = ..., spans: _Optional[_Iterable[_Union[_steps_pb2.Span, _Mapping]]] = ..., statistics: _Optional[_Union[Statistics, _Mapping]] = ..., logprobs: _Optional[_Iterable[_Union[_steps_pb2.TokenLogprobs, _Mapping]]] = ...) -> None: ...

class FinishRequest(_message.Message):
    __slots__ = ("request_id",)
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    def __init__(self, request_id: _Optional[str] = ...) -> None: ...

class FinishReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
