from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DeviceDescription(_message.Message):
    __slots__ = ("name", "version", "torch_device", "emulated", "model", "store_fingerprint", "slots", "slot_bytes", "kv_budget_bytes", "kv_bytes_per_token", "context_length", "eos_token_ids", "drafts", "resident", "ready", "resident_bytes", "kv_reserved_bytes", "stale_plans", "vocab_size", "staging_slots", "cancelled_transfers")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    TORCH_DEVICE_FIELD_NUMBER: _ClassVar[int]
    EMULATED_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    STORE_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    SLOT_BYTES_FIELD_NUMBER: _ClassVar[int]
    KV_BUDGET_BYTES_FIELD_NUMBER: _ClassVar[int]
    KV_BYTES_PER_TOKEN_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    EOS_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    DRAFTS_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    KV_RESERVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    STALE_PLANS_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    STAGING_SLOTS_FIELD_NUMBER: _ClassVar[int]
    CANCELLED_TRANSFERS_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    torch_device: str
    emulated: bool
    model: ModelShape
    store_fingerprint: str
    slots: int
    slot_bytes: int
    kv_budget_bytes: int
    kv_bytes_per_token: int
    context_length: int
    eos_token_ids: _containers.RepeatedScalarFieldContainer[int]
    drafts: _containers.RepeatedScalarFieldContainer[str]
    resident: _containers.RepeatedCompositeFieldContainer[ExpertRef]
    ready: bool
    resident_bytes: int
    kv_reserved_bytes: int
    stale_plans: int
    vocab_size: int
    staging_slots: int
    cancelled_transfers: int
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., torch_device: _Optional[str] = ..., emulated: _Optional[bool] = ..., model: _Optional[_Union[ModelShape, _Mapping]] = ..., store_fingerprint: _Optional[str] = ..., slots: _Optional[int] = ..., slot_bytes: _Optional[int] = ..., kv_budget_bytes: _Optional[int] = ..., kv_bytes_per_token: _Optional[int] = ..., context_length: _Optional[int] = ..., eos_token_ids: _Optional[_Iterable[int]] = ..., drafts: _Optional[_Iterable[str]] = ..., resident: _Optional[_Iterable[_Union[ExpertRef, _Mapping]]] = ..., ready: _Optional[bool] = ..., resident_bytes: _Optional[int] = ..., kv_reserved_bytes: _Optional[int] = ..., stale_plans: _Optional[int] = ..., vocab_size: _Optional[int] = ..., staging_slots: _Optional[int] = ..., cancelled_transfers: _Optional[int] = ...) -> None: ...

class ModelShape(_message.Message):
    __slots__ = ("layer_ids", "n_experts", "top_k", "hidden_size", "intermediate_size", "expert_bytes")
    LAYER_IDS_FIELD_NUMBER: _ClassVar[int]
    N_EXPERTS_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_SIZE_FIELD_NUMBER: _ClassVar[int]
    INTERMEDIATE_SIZE_FIELD_NUMBER: _ClassVar[int]
    EXPERT_BYTES_FIELD_NUMBER: _ClassVar[int]
    layer_ids: _containers.RepeatedScalarFieldContainer[int]
    n_experts: int
    top_k: int
    hidden_size: int
    intermediate_size: int
    expert_bytes: int
    def __init__(self, layer_ids: _Optional[_Iterable[int]] = ..., n_experts: _Optional[int] = ..., top_k: _Optional[int] = ..., hidden_size: _Optional[int] = ..., intermediate_size: _Optional[int] = ..., expert_bytes: _Optional[int] = ...) -> None: ...

class ExpertRef(_message.Message):
    __slots__ = ("layer", "expert")
    LAYER_FIELD_NUMBER: _ClassVar[int]
    EXPERT_FIELD_NUMBER: _ClassVar[int]
    layer: int
    expert: int
    def __init__(self, layer: _Optional[int] = ..., expert: _Optional[int] = ...) -> None: ...

class Sampling(_message.Message):
    __slots__ = ("temperature", "top_p", "top_k", "seed", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias", "verification")
    class Verification(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        COUPLED: _ClassVar[Sampling.Verification]
        REJECTION: _ClassVar[Sampling.Verification]
    COUPLED: Sampling.Verification
    REJECTION: Sampling.Verification
    class LogitBiasEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: float
        def __init__(self, key: _Optional[int] = ..., value: _Optional[float] = ...) -> None: ...
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_PENALTY_FIELD_NUMBER: _ClassVar[int]
    FREQUENCY_PENALTY_FIELD_NUMBER: _ClassVar[int]
    LOGIT_BIAS_FIELD_NUMBER: _ClassVar[int]
    VERIFICATION_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    top_p: float
    top_k: int
    seed: int
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: _containers.ScalarMap[int, float]
    verification: Sampling.Verification
    def __init__(self, temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., top_k: _Optional[int] = ..., seed: _Optional[int] = ..., min_p: _Optional[float] = ..., repetition_penalty: _Optional[float] = ..., presence_penalty: _Optional[float] = ..., frequency_penalty: _Optional[float] = ..., logit_bias: _Optional[_Mapping[int, float]] = ..., verification: _Optional[_Union[Sampling.Verification, str]] = ...) -> None: ...

class TokenLogprobs(_message.Message):
    __slots__ = ("token", "logprob", "top")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    TOP_FIELD_NUMBER: _ClassVar[int]
    token: int
    logprob: float
    top: _containers.RepeatedCompositeFieldContainer[TokenLogprob]
    def __init__(self, token: _Optional[int] = ..., logprob: _Optional[float] = ..., top: _Optional[_Iterable[_Union[TokenLogprob, _Mapping]]] = ...) -> None: ...

class TokenLogprob(_message.Message):
    __slots__ = ("token", "logprob")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    token: int
    logprob: float
    def __init__(self, token: _Optional[int] = ..., logprob: _Optional[float] = ...) -> None: ...

class OpenRequest(_message.Message):
    __slots__ = ("request_id", "token_ids", "reserve_tokens", "sampling", "scheduler", "prompt_tokens", "logprobs")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    RESERVE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    SCHEDULER_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    reserve_tokens: int
    sampling: Sampling
    scheduler: str
    prompt_tokens: int
    logprobs: int
    def __init__(self, request_id: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ..., reserve_tokens: _Optional[int] = ..., sampling: _Optional[_Union[Sampling, _Mapping]] = ..., scheduler: _Optional[str] = ..., prompt_tokens: _Optional[int] = ..., logprobs: _Optional[int] = ...) -> None: ...

class OpenReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StepRequest(_message.Message):
    __slots__ = ("request_id", "drafts", "prefill_chunk", "trace")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    DRAFTS_FIELD_NUMBER: _ClassVar[int]
    PREFILL_CHUNK_FIELD_NUMBER: _ClassVar[int]
    TRACE_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    drafts: _containers.RepeatedCompositeFieldContainer[DraftChoice]
    prefill_chunk: int
    trace: bool
    def __init__(self, request_id: _Optional[str] = ..., drafts: _Optional[_Iterable[_Union[DraftChoice, _Mapping]]] = ..., prefill_chunk: _Optional[int] = ..., trace: _Optional[bool] = ...) -> None: ...

class DraftChoice(_message.Message):
    __slots__ = ("kind", "gamma", "least_match", "chances", "floors")
    KIND_FIELD_NUMBER: _ClassVar[int]
    GAMMA_FIELD_NUMBER: _ClassVar[int]
    LEAST_MATCH_FIELD_NUMBER: _ClassVar[int]
    CHANCES_FIELD_NUMBER: _ClassVar[int]
    FLOORS_FIELD_NUMBER: _ClassVar[int]
    kind: str
    gamma: int
    least_match: int
    chances: _containers.RepeatedScalarFieldContainer[float]
    floors: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, kind: _Optional[str] = ..., gamma: _Optional[int] = ..., least_match: _Optional[int] = ..., chances: _Optional[_Iterable[float]] = ..., floors: _Optional[_Iterable[float]] = ...) -> None: ...

class StepReply(_message.Message):
    __slots__ = ("emitted", "proposed", "accepted", "prefill", "window", "plan_epoch", "timings", "spans", "resident", "logprobs", "draft_kind", "predicted", "behind", "confidences", "ngram_match", "ngram_found", "ngram_stood")
    class BehindEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    EMITTED_FIELD_NUMBER: _ClassVar[int]
    PROPOSED_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    PREFILL_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    PLAN_EPOCH_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    SPANS_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    DRAFT_KIND_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_FIELD_NUMBER: _ClassVar[int]
    BEHIND_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCES_FIELD_NUMBER: _ClassVar[int]
    NGRAM_MATCH_FIELD_NUMBER: _ClassVar[int]
    NGRAM_FOUND_FIELD_NUMBER: _ClassVar[int]
    NGRAM_STOOD_FIELD_NUMBER: _ClassVar[int]
    emitted: _containers.RepeatedScalarFieldContainer[int]
    proposed: int
    accepted: int
    prefill: bool
    window: Window
    plan_epoch: int
    timings: Timings
    spans: _containers.RepeatedCompositeFieldContainer[Span]
    resident: _containers.RepeatedCompositeFieldContainer[ExpertRef]
    logprobs: _containers.RepeatedCompositeFieldContainer[TokenLogprobs]
    draft_kind: str
    predicted: Window
    behind: _containers.ScalarMap[str, int]
    confidences: bytes
    ngram_match: int
    ngram_found: int
    ngram_stood: int
    def __init__(self, emitted: _Optional[_Iterable[int]] = ..., proposed: _Optional[int] = ..., accepted: _Optional[int] = ..., prefill: _Optional[bool] = ..., window: _Optional[_Union[Window, _Mapping]] = ..., plan_epoch: _Optional[int] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ..., spans: _Optional[_Iterable[_Union[Span, _Mapping]]] = ..., resident: _Optional[_Iterable[_Union[ExpertRef, _Mapping]]] = ..., logprobs: _Optional[_Iterable[_Union[TokenLogprobs, _Mapping]]] = ..., draft_kind: _Optional[str] = ..., predicted: _Optional[_Union[Window, _Mapping]] = ..., behind: _Optional[_Mapping[str, int]] = ..., confidences: _Optional[bytes] = ..., ngram_match: _Optional[int] = ..., ngram_found: _Optional[int] = ..., ngram_stood: _Optional[int] = ...) -> None: ...

class Window(_message.Message):
    __slots__ = ("tokens", "layers", "token_ids", "experts")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    EXPERTS_FIELD_NUMBER: _ClassVar[int]
    tokens: int
    layers: _containers.RepeatedCompositeFieldContainer[LayerCounts]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    experts: bytes
    def __init__(self, tokens: _Optional[int] = ..., layers: _Optional[_Iterable[_Union[LayerCounts, _Mapping]]] = ..., token_ids: _Optional[_Iterable[int]] = ..., experts: _Optional[bytes] = ...) -> None: ...

class LayerCounts(_message.Message):
    __slots__ = ("layer", "counts", "used", "hits")
    LAYER_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    USED_FIELD_NUMBER: _ClassVar[int]
    HITS_FIELD_NUMBER: _ClassVar[int]
    layer: int
    counts: _containers.RepeatedScalarFieldContainer[int]
    used: int
    hits: int
    def __init__(self, layer: _Optional[int] = ..., counts: _Optional[_Iterable[int]] = ..., used: _Optional[int] = ..., hits: _Optional[int] = ...) -> None: ...

class Timings(_message.Message):
    __slots__ = ("draft_s", "verify_s", "local_s", "wait_s", "expert_calls", "fallback_experts", "samples", "transfer_s", "transfer_hidden_s", "bytes_moved", "transfers", "streamed_experts", "awaited_experts", "copy_wait_s", "lane_calls", "cancelled_transfers")
    DRAFT_S_FIELD_NUMBER: _ClassVar[int]
    VERIFY_S_FIELD_NUMBER: _ClassVar[int]
    LOCAL_S_FIELD_NUMBER: _ClassVar[int]
    WAIT_S_FIELD_NUMBER: _ClassVar[int]
    EXPERT_CALLS_FIELD_NUMBER: _ClassVar[int]
    FALLBACK_EXPERTS_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_S_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_HIDDEN_S_FIELD_NUMBER: _ClassVar[int]
    BYTES_MOVED_FIELD_NUMBER: _ClassVar[int]
    TRANSFERS_FIELD_NUMBER: _ClassVar[int]
    STREAMED_EXPERTS_FIELD_NUMBER: _ClassVar[int]
    AWAITED_EXPERTS_FIELD_NUMBER: _ClassVar[int]
    COPY_WAIT_S_FIELD_NUMBER: _ClassVar[int]
    LANE_CALLS_FIELD_NUMBER: _ClassVar[int]
    CANCELLED_TRANSFERS_FIELD_NUMBER: _ClassVar[int]
    draft_s: float
    verify_s: float
    local_s: float
    wait_s: float
    expert_calls: int
    fallback_experts: int
    samples: _containers.RepeatedCompositeFieldContainer[CostSample]
    transfer_s: float
    transfer_hidden_s: float
    bytes_moved: int
    transfers: int
    streamed_experts: int
    awaited_experts: int
    copy_wait_s: float
    lane_calls: int
    cancelled_transfers: int
    def __init__(self, draft_s: _Optional[float] = ..., verify_s: _Optional[float] = ..., local_s: _Optional[float] = ..., wait_s: _Optional[float] = ..., expert_calls: _Optional[int] = ..., fallback_experts: _Optional[int] = ..., samples: _Optional[_Iterable[_Union[CostSample, _Mapping]]] = ..., transfer_s: _Optional[float] = ..., transfer_hidden_s: _Optional[float] = ..., bytes_moved: _Optional[int] = ..., transfers: _Optional[int] = ..., streamed_experts: _Optional[int] = ..., awaited_experts: _Optional[int] = ..., copy_wait_s: _Optional[float] = ..., lane_calls: _Optional[int] = ..., cancelled_transfers: _Optional[int] = ...) -> None: ...

class CostSample(_message.Message):
    __slots__ = ("actor", "experts", "pairs", "seconds", "waited_s", "called_s")
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    EXPERTS_FIELD_NUMBER: _ClassVar[int]
    PAIRS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    WAITED_S_FIELD_NUMBER: _ClassVar[int]
    CALLED_S_FIELD_NUMBER: _ClassVar[int]
    actor: str
    experts: int
    pairs: int
    seconds: float
    waited_s: float
    called_s: float
    def __init__(self, actor: _Optional[str] = ..., experts: _Optional[int] = ..., pairs: _Optional[int] = ..., seconds: _Optional[float] = ..., waited_s: _Optional[float] = ..., called_s: _Optional[float] = ...) -> None: ...

class Span(_message.Message):
    __slots__ = ("row", "name", "start_ns", "end_ns", "args")
    class ArgsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ROW_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    START_NS_FIELD_NUMBER: _ClassVar[int]
    END_NS_FIELD_NUMBER: _ClassVar[int]
    ARGS_FIELD_NUMBER: _ClassVar[int]
    row: str
    name: str
    start_ns: int
    end_ns: int
    args: _containers.ScalarMap[str, str]
    def __init__(self, row: _Optional[str] = ..., name: _Optional[str] = ..., start_ns: _Optional[int] = ..., end_ns: _Optional[int] = ..., args: _Optional[_Mapping[str, str]] = ...) -> None: ...

class CloseRequest(_message.Message):
    __slots__ = ("request_id",)
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    def __init__(self, request_id: _Optional[str] = ...) -> None: ...

class CloseReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Plan(_message.Message):
    __slots__ = ("epoch", "layers", "link_budget_bytes", "solver_status", "transfer_cost")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    LINK_BUDGET_BYTES_FIELD_NUMBER: _ClassVar[int]
    SOLVER_STATUS_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_COST_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    layers: _containers.RepeatedCompositeFieldContainer[LayerPlan]
    link_budget_bytes: int
    solver_status: str
    transfer_cost: int
    def __init__(self, epoch: _Optional[int] = ..., layers: _Optional[_Iterable[_Union[LayerPlan, _Mapping]]] = ..., link_budget_bytes: _Optional[int] = ..., solver_status: _Optional[str] = ..., transfer_cost: _Optional[int] = ...) -> None: ...

class LayerPlan(_message.Message):
    __slots__ = ("layer", "threshold", "utilities")
    LAYER_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    UTILITIES_FIELD_NUMBER: _ClassVar[int]
    layer: int
    threshold: int
    utilities: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, layer: _Optional[int] = ..., threshold: _Optional[int] = ..., utilities: _Optional[_Iterable[int]] = ...) -> None: ...

class PlanReply(_message.Message):
    __slots__ = ("accepted", "epoch_held")
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    EPOCH_HELD_FIELD_NUMBER: _ClassVar[int]
    accepted: bool
    epoch_held: int
    def __init__(self, accepted: _Optional[bool] = ..., epoch_held: _Optional[int] = ...) -> None: ...

class FillRequest(_message.Message):
    __slots__ = ("expert", "plan_epoch", "utility")
    EXPERT_FIELD_NUMBER: _ClassVar[int]
    PLAN_EPOCH_FIELD_NUMBER: _ClassVar[int]
    UTILITY_FIELD_NUMBER: _ClassVar[int]
    expert: ExpertRef
    plan_epoch: int
    utility: int
    def __init__(self, expert: _Optional[_Union[ExpertRef, _Mapping]] = ..., plan_epoch: _Optional[int] = ..., utility: _Optional[int] = ...) -> None: ...

class FillReply(_message.Message):
    __slots__ = ("outcome", "evicted", "seconds", "bytes")
    class Outcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        OUTCOME_UNSPECIFIED: _ClassVar[FillReply.Outcome]
        FILLED: _ClassVar[FillReply.Outcome]
        ALREADY_RESIDENT: _ClassVar[FillReply.Outcome]
        NO_VICTIM: _ClassVar[FillReply.Outcome]
        STALE: _ClassVar[FillReply.Outcome]
        NOT_IN_ARENA: _ClassVar[FillReply.Outcome]
        CANCELLED: _ClassVar[FillReply.Outcome]
    OUTCOME_UNSPECIFIED: FillReply.Outcome
    FILLED: FillReply.Outcome
    ALREADY_RESIDENT: FillReply.Outcome
    NO_VICTIM: FillReply.Outcome
    STALE: FillReply.Outcome
    NOT_IN_ARENA: FillReply.Outcome
    CANCELLED: FillReply.Outcome
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    EVICTED_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    outcome: FillReply.Outcome
    evicted: _containers.RepeatedCompositeFieldContainer[ExpertRef]
    seconds: float
    bytes: int
    def __init__(self, outcome: _Optional[_Union[FillReply.Outcome, str]] = ..., evicted: _Optional[_Iterable[_Union[ExpertRef, _Mapping]]] = ..., seconds: _Optional[float] = ..., bytes: _Optional[int] = ...) -> None: ...

class PrefetcherDescription(_message.Message):
    __slots__ = ("name", "version", "store_fingerprint", "arena", "arena_bytes", "loaded_bytes", "ready", "disk_bytes_read")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STORE_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    ARENA_FIELD_NUMBER: _ClassVar[int]
    ARENA_BYTES_FIELD_NUMBER: _ClassVar[int]
    LOADED_BYTES_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    DISK_BYTES_READ_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    store_fingerprint: str
    arena: ArenaLocation
    arena_bytes: int
    loaded_bytes: int
    ready: bool
    disk_bytes_read: int
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., store_fingerprint: _Optional[str] = ..., arena: _Optional[_Union[ArenaLocation, _Mapping]] = ..., arena_bytes: _Optional[int] = ..., loaded_bytes: _Optional[int] = ..., ready: _Optional[bool] = ..., disk_bytes_read: _Optional[int] = ...) -> None: ...

class ArenaLocation(_message.Message):
    __slots__ = ("host_id", "pid", "fd", "bytes")
    HOST_ID_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    FD_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    host_id: str
    pid: int
    fd: int
    bytes: int
    def __init__(self, host_id: _Optional[str] = ..., pid: _Optional[int] = ..., fd: _Optional[int] = ..., bytes: _Optional[int] = ...) -> None: ...

class FetchRequest(_message.Message):
    __slots__ = ("layer", "expert_ids", "hold_s")
    LAYER_FIELD_NUMBER: _ClassVar[int]
    EXPERT_IDS_FIELD_NUMBER: _ClassVar[int]
    HOLD_S_FIELD_NUMBER: _ClassVar[int]
    layer: int
    expert_ids: _containers.RepeatedScalarFieldContainer[int]
    hold_s: float
    def __init__(self, layer: _Optional[int] = ..., expert_ids: _Optional[_Iterable[int]] = ..., hold_s: _Optional[float] = ...) -> None: ...

class FetchReply(_message.Message):
    __slots__ = ("lease", "granted", "waited_s")
    LEASE_FIELD_NUMBER: _ClassVar[int]
    GRANTED_FIELD_NUMBER: _ClassVar[int]
    WAITED_S_FIELD_NUMBER: _ClassVar[int]
    lease: int
    granted: _containers.RepeatedScalarFieldContainer[int]
    waited_s: float
    def __init__(self, lease: _Optional[int] = ..., granted: _Optional[_Iterable[int]] = ..., waited_s: _Optional[float] = ...) -> None: ...

class ReleaseRequest(_message.Message):
    __slots__ = ("lease",)
    LEASE_FIELD_NUMBER: _ClassVar[int]
    lease: int
    def __init__(self, lease: _Optional[int] = ...) -> None: ...

class ReleaseReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
