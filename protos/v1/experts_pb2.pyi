from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class ExpertCall(_message.Message):
    __slots__ = ("store_fingerprint", "plan_epoch", "request_ids", "layer", "expert_ids", "pair_counts", "token_rows", "rows", "hidden_size", "hidden", "router_weights")
    STORE_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    PLAN_EPOCH_FIELD_NUMBER: _ClassVar[int]
    REQUEST_IDS_FIELD_NUMBER: _ClassVar[int]
    LAYER_FIELD_NUMBER: _ClassVar[int]
    EXPERT_IDS_FIELD_NUMBER: _ClassVar[int]
    PAIR_COUNTS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_ROWS_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_SIZE_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_FIELD_NUMBER: _ClassVar[int]
    ROUTER_WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    store_fingerprint: str
    plan_epoch: int
    request_ids: _containers.RepeatedScalarFieldContainer[str]
    layer: int
    expert_ids: _containers.RepeatedScalarFieldContainer[int]
    pair_counts: _containers.RepeatedScalarFieldContainer[int]
    token_rows: _containers.RepeatedScalarFieldContainer[int]
    rows: int
    hidden_size: int
    hidden: bytes
    router_weights: bytes
    def __init__(self, store_fingerprint: _Optional[str] = ..., plan_epoch: _Optional[int] = ..., request_ids: _Optional[_Iterable[str]] = ..., layer: _Optional[int] = ..., expert_ids: _Optional[_Iterable[int]] = ..., pair_counts: _Optional[_Iterable[int]] = ..., token_rows: _Optional[_Iterable[int]] = ..., rows: _Optional[int] = ..., hidden_size: _Optional[int] = ..., hidden: _Optional[bytes] = ..., router_weights: _Optional[bytes] = ...) -> None: ...

class ExpertRows(_message.Message):
    __slots__ = ("rows", "started_ns", "finished_ns", "weights_wait_ns", "actor")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    STARTED_NS_FIELD_NUMBER: _ClassVar[int]
    FINISHED_NS_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_WAIT_NS_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    rows: bytes
    started_ns: int
    finished_ns: int
    weights_wait_ns: int
    actor: str
    def __init__(self, rows: _Optional[bytes] = ..., started_ns: _Optional[int] = ..., finished_ns: _Optional[int] = ..., weights_wait_ns: _Optional[int] = ..., actor: _Optional[str] = ...) -> None: ...

class LaneRequest(_message.Message):
    __slots__ = ("host_id",)
    HOST_ID_FIELD_NUMBER: _ClassVar[int]
    host_id: str
    def __init__(self, host_id: _Optional[str] = ...) -> None: ...

class LaneOffer(_message.Message):
    __slots__ = ("address", "refusal")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    address: str
    refusal: str
    def __init__(self, address: _Optional[str] = ..., refusal: _Optional[str] = ...) -> None: ...
