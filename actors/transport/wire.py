"""Expert calls as messages: tensors in and out without needless copies, and what a server checks first."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np
import torch

from ...kernels.buffers import tensor_view
from ...protos.v1.experts_pb2 import ExpertCall, ExpertRows
from ..core import ModelShape

MAX_CALL_BYTES = 8 * 1024 * 1024
"""Neither an expert call nor its reply is larger; larger ones are cut by `cut`."""
# Bytes of a pair beside its row: router weight 4, token row at most 3, its expert's id and count at most 8.
_PAIR_OVERHEAD = 16
# Fingerprint, ids of the requests, field tags.
_CALL_OVERHEAD = 4096
_F32 = np.dtype("<f4")

Buffer = bytes | memoryview
ExpertPairs = tuple[int, torch.Tensor, torch.Tensor]
"""One expert's work: (expert, token rows int64 [n], router weights float32 [n]), one entry a pair."""


class MalformedCall(ValueError):
    """An expert call or reply that contradicts itself or the model."""

    def __init__(self, field: str, value: object, remedy: str):
        super().__init__(f"{field}: {value}: {remedy}")
        self.field = field


class WrongStore(ValueError):
    """The caller expects other weights than are served here."""

    def __init__(self, theirs: str, ours: str):
        super().__init__(
            f"store_fingerprint: the caller expects {theirs or '(none)'}, served here is {ours}: "
            f"point every actor of the deployment at the same expert store"
        )


class EncodedCall(NamedTuple):
    """An expert call before it is sent, by whichever way."""

    head: ExpertCall
    """All of the message but its floats."""
    hidden: torch.Tensor
    """float32 [rows, H]: the token rows that are needed, of any layout."""
    router_weights: torch.Tensor
    """float32 [pairs]."""

    def message(self) -> ExpertCall:
        """The whole message."""
        self.head.hidden, self.head.router_weights = _to_bytes(self.hidden), _to_bytes(self.router_weights)
        return self.head


@dataclass(frozen=True)
class DecodedCall:
    """A checked expert call. Tensors are views of the message: do not write to them."""

    layer: int
    experts: tuple[int, ...]
    spans: tuple[slice, ...]
    """Each expert's pairs, aligned with `experts`."""
    token_rows: torch.Tensor
    """int64 [pairs]."""
    hidden: torch.Tensor
    """float32 [T, H]."""
    router_weights: torch.Tensor
    """float32 [pairs]."""


def pairs_per_call(hidden_size: int, max_bytes: int = MAX_CALL_BYTES) -> int:
    """Most (token, expert) pairs of a call whose request and reply both stay below `max_bytes`."""
    # A pair adds at most one row to the request (its token's) and exactly one to the reply.
    pairs = (max_bytes - _CALL_OVERHEAD) // (4 * hidden_size + _PAIR_OVERHEAD)
    if pairs < 1:
        raise ValueError(f"max_bytes: {max_bytes} holds no row of {hidden_size} float32: choose a larger size")
    return pairs


def cut(pairs: Sequence[ExpertPairs], most: int) -> Iterator[list[ExpertPairs]]:
    """Parts of at most `most` pairs, in order; an expert is cut only where it alone exceeds a part.

    The bits of torch's matrix products may depend on how many rows are multiplied at once.
    """
    part: list[ExpertPairs] = []
    room = most
    for expert, rows, weights in pairs:
        if len(rows) > room and part:
            yield part
            part, room = [], most
        while len(rows) > most:
            yield [(expert, rows[:most], weights[:most])]
            rows, weights = rows[most:], weights[most:]
        part.append((expert, rows, weights))
        room -= len(rows)
    if part:
        yield part


def encode_call(
    fingerprint: str,
    epoch: int,
    request_ids: Sequence[str],
    layer: int,
    hidden: torch.Tensor,
    pairs: Sequence[ExpertPairs],
) -> EncodedCall:
    """The call for `pairs` (experts ascending), with the rows of `hidden` (float32 [T, H]) they need."""
    token_rows = torch.cat([rows for _, rows, _ in pairs]).tolist()
    used = sorted(set(token_rows))
    if len(used) < len(hidden):
        hidden = hidden[used]
        position = {row: index for index, row in enumerate(used)}
        token_rows = [position[row] for row in token_rows]
    head = ExpertCall(
        store_fingerprint=fingerprint,
        plan_epoch=epoch,
        request_ids=request_ids,
        layer=layer,
        expert_ids=[expert for expert, _, _ in pairs],
        pair_counts=[rows.numel() for _, rows, _ in pairs],
        token_rows=token_rows,
        rows=len(used),
        hidden_size=hidden.shape[1],
    )
    return EncodedCall(head, hidden, torch.cat([weights for _, _, weights in pairs]))


def decode_call(
    call: ExpertCall, fingerprint: str, shape: ModelShape, floats: tuple[Buffer, Buffer] | None = None
) -> DecodedCall:
    """Checks everything a computation relies on. Raises WrongStore and MalformedCall.

    `floats`: hidden states and router weights where they do not travel in the message.
    """
    if call.store_fingerprint != fingerprint:
        raise WrongStore(call.store_fingerprint, fingerprint)
    if call.hidden_size != shape.hidden_size:
        raise MalformedCall("hidden_size", call.hidden_size, f"the model's is {shape.hidden_size}")
    if call.layer not in shape.layer_ids:
        raise MalformedCall("layer", call.layer, f"layers with routed experts are {list(shape.layer_ids)}")
    experts, counts = tuple(call.expert_ids), tuple(call.pair_counts)
    if not experts:
        raise MalformedCall("expert_ids", "[]", "name at least one expert")
    if any(a >= b for a, b in pairwise(experts)):
        raise MalformedCall("expert_ids", list(experts), "send them ascending and distinct")
    if experts[-1] >= shape.n_experts:
        raise MalformedCall("expert_ids", experts[-1], f"a layer has experts 0 to {shape.n_experts - 1}")
    if len(counts) != len(experts):
        raise MalformedCall("pair_counts", f"{len(counts)} counts", f"send one for each of {len(experts)} ids")
    if min(counts) == 0:
        raise MalformedCall("pair_counts", list(counts), "leave out experts without tokens")
    pairs = sum(counts)
    if pairs != len(call.token_rows):
        raise MalformedCall("token_rows", f"{len(call.token_rows)} rows", f"pair_counts add up to {pairs}")
    if pairs > pairs_per_call(shape.hidden_size):
        raise MalformedCall(
            "pair_counts",
            f"{pairs} pairs",
            f"a call of {MAX_CALL_BYTES} bytes holds {pairs_per_call(shape.hidden_size)}: cut it",
        )
    token_rows = list(call.token_rows)
    if max(token_rows) >= call.rows:
        raise MalformedCall("token_rows", max(token_rows), f"the call has {call.rows} rows, counted from 0")
    starts = list(accumulate(counts, initial=0))
    hidden, router_weights = (call.hidden, call.router_weights) if floats is None else floats
    return DecodedCall(
        layer=call.layer,
        experts=experts,
        spans=tuple(slice(a, b) for a, b in pairwise(starts)),
        token_rows=torch.from_numpy(np.array(token_rows, dtype=np.int64)),
        hidden=_floats("hidden", hidden, (call.rows, shape.hidden_size)),
        router_weights=_floats("router_weights", router_weights, (pairs,)),
    )


def encode_rows(rows: torch.Tensor | None, started_ns: int, finished_ns: int, wait_s: float, actor: str) -> ExpertRows:
    """The reply; `rows` float32 [pairs, H], None where they do not travel in the message.

    Times are nanoseconds of the wall clock since the epoch.
    """
    return ExpertRows(
        rows=b"" if rows is None else _to_bytes(rows),
        started_ns=started_ns,
        finished_ns=finished_ns,
        weights_wait_ns=round(wait_s * 1e9),
        actor=actor,
    )


def decode_rows(reply: ExpertRows, pairs: int, hidden_size: int) -> torch.Tensor:
    """float32 [pairs, H], a view of the message: do not write to it. Raises MalformedCall."""
    return _floats("rows", reply.rows, (pairs, hidden_size))


def _to_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().numpy().astype(_F32, copy=False).tobytes()


def _floats(field: str, data: Buffer, shape: tuple[int, ...]) -> torch.Tensor:
    wanted = math.prod(shape) * _F32.itemsize
    if len(data) != wanted:
        raise MalformedCall(field, f"{len(data)} bytes", f"float32 of shape {list(shape)} takes {wanted}")
    return tensor_view(np.frombuffer(data, dtype=_F32).reshape(shape))
