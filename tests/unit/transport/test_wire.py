"""Expert calls as messages: what goes in comes out, what is wrong is named, what is large is cut."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moespac.actors.core import ModelShape
from moespac.actors.transport.wire import (
    MAX_CALL_BYTES,
    MalformedCall,
    WrongStore,
    cut,
    decode_call,
    decode_rows,
    encode_call,
    encode_rows,
    pairs_per_call,
)
from moespac.protos.v1.experts_pb2 import ExpertCall, ExpertRows

HIDDEN = 6
SHAPE = ModelShape((1, 2), 8, 2, HIDDEN, 4, 3 * HIDDEN * 4 * 4)


def some_pairs(sizes: dict[int, int], tokens: int, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            expert,
            torch.randperm(tokens, generator=generator)[:size].sort().values,
            torch.rand(size, generator=generator),
        )
        for expert, size in sizes.items()
    ]


def good_call() -> ExpertCall:
    hidden = torch.randn(5, HIDDEN, generator=torch.Generator().manual_seed(1))
    return encode_call("abc", 7, ["r1", "r2"], 2, hidden, some_pairs({0: 3, 4: 1, 7: 5}, 5)).message()


def test_a_call_survives_the_wire() -> None:
    hidden = torch.randn(9, HIDDEN, generator=torch.Generator().manual_seed(1))
    pairs = some_pairs({1: 2, 3: 1, 6: 4}, 9)
    message = ExpertCall.FromString(encode_call("abc", 7, ["r"], 1, hidden, pairs).message().SerializeToString())
    call = decode_call(message, "abc", SHAPE)
    assert (call.layer, call.experts) == (1, (1, 3, 6))
    assert (message.plan_epoch, list(message.request_ids)) == (7, ["r"])
    for span, (_, rows, weights) in zip(call.spans, pairs, strict=True):
        assert torch.equal(call.hidden[call.token_rows[span]], hidden[rows])
        assert torch.equal(call.router_weights[span], weights)


def test_only_needed_rows_travel() -> None:
    hidden = torch.randn(100, HIDDEN, generator=torch.Generator().manual_seed(1))
    rows, weights = torch.tensor([3, 97]), torch.ones(2)
    message = encode_call("abc", 0, [], 1, hidden, [(0, rows, weights), (5, rows[1:], weights[1:])]).message()
    assert message.rows == 2
    assert len(message.hidden) == 2 * HIDDEN * 4
    assert list(message.token_rows) == [0, 1, 1]


def test_strided_and_transposed_tensors_are_sent_by_value() -> None:
    hidden = torch.randn(HIDDEN, 4, generator=torch.Generator().manual_seed(1)).T
    weights = torch.rand(8, generator=torch.Generator().manual_seed(2))[::2]
    call = decode_call(encode_call("abc", 0, [], 1, hidden, [(2, torch.arange(4), weights)]).message(), "abc", SHAPE)
    assert torch.equal(call.hidden, hidden)
    assert torch.equal(call.router_weights, weights)


MALFORMED = {
    "hidden_size": ({"hidden_size": 7}, "hidden_size: 7: the model's is 6"),
    "layer": ({"layer": 0}, r"layer: 0: layers with routed experts are \[1, 2\]"),
    "no experts": ({"expert_ids": []}, "expert_ids: .*at least one"),
    "descending": ({"expert_ids": [4, 0, 7]}, "expert_ids: .*ascending and distinct"),
    "twice": ({"expert_ids": [0, 4, 4]}, "expert_ids: .*ascending and distinct"),
    "no such expert": ({"expert_ids": [0, 4, 8]}, "expert_ids: 8: a layer has experts 0 to 7"),
    "counts missing": ({"pair_counts": [3, 1]}, "pair_counts: 2 counts: send one for each of 3"),
    "empty expert": ({"pair_counts": [3, 0, 6]}, "pair_counts: .*leave out"),
    "counts do not add up": ({"pair_counts": [3, 1, 4]}, "token_rows: 9 rows: pair_counts add up to 8"),
    "row out of range": ({"token_rows": [0, 1, 2, 0, 0, 1, 2, 3, 5]}, "token_rows: 5: the call has 5 rows"),
    "no rows": ({"rows": 0}, "token_rows: 4: the call has 0 rows"),
    "hidden short": ({"hidden": b"\0" * 119}, r"hidden: 119 bytes: float32 of shape \[5, 6\] takes 120"),
    "more rows than data": ({"rows": 2**32 - 1}, "hidden: 120 bytes"),
    "weights long": ({"router_weights": b"\0" * 40}, "router_weights: 40 bytes"),
}


@pytest.mark.parametrize("changes, message", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_call_is_refused_by_name(changes: dict, message: str) -> None:
    call = good_call()
    decode_call(call, "abc", SHAPE)
    for field, value in changes.items():
        call.ClearField(field)
        if isinstance(value, list):
            getattr(call, field).extend(value)
        else:
            setattr(call, field, value)
    with pytest.raises(MalformedCall, match=message):
        decode_call(call, "abc", SHAPE)


def test_an_uncut_call_is_refused() -> None:
    most = pairs_per_call(HIDDEN)
    rows = torch.zeros(most + 1, dtype=torch.int64)
    hidden = torch.zeros(1, HIDDEN)
    fits = encode_call("abc", 0, [], 1, hidden, [(0, rows[:most], torch.ones(most))]).message()
    assert len(decode_call(fits, "abc", SHAPE).token_rows) == most
    large = encode_call("abc", 0, [], 1, hidden, [(0, rows, torch.ones(most + 1))]).message()
    with pytest.raises(MalformedCall, match="cut it"):
        decode_call(large, "abc", SHAPE)


def test_another_store_is_refused() -> None:
    with pytest.raises(WrongStore, match="the caller expects abc, served here is xyz: point every actor"):
        decode_call(good_call(), "xyz", SHAPE)


def test_rows_survive_the_wire_and_a_short_reply_is_noticed() -> None:
    rows = torch.randn(3, HIDDEN, generator=torch.Generator().manual_seed(1))
    reply = ExpertRows.FromString(encode_rows(rows, 10, 20, 0.5, "w").SerializeToString())
    assert torch.equal(decode_rows(reply, 3, HIDDEN), rows)
    assert (reply.started_ns, reply.finished_ns, reply.weights_wait_ns, reply.actor) == (10, 20, 5 * 10**8, "w")
    with pytest.raises(MalformedCall, match="rows: 72 bytes"):
        decode_rows(reply, 4, HIDDEN)


@settings(deadline=None, max_examples=60)
@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=8), most=st.integers(1, 50), seed=st.integers(0, 9))
def test_cutting_keeps_every_pair_in_order_and_whole_experts_whole(sizes, most, seed) -> None:
    pairs = some_pairs(dict(enumerate(sizes)), 40, seed)
    parts = list(cut(pairs, most))
    assert all(0 < sum(len(rows) for _, rows, _ in part) <= most for part in parts)
    for expert, rows, weights in pairs:
        pieces = [(r, w) for part in parts for e, r, w in part if e == expert]
        assert torch.equal(torch.cat([r for r, _ in pieces]), rows)
        assert torch.equal(torch.cat([w for _, w in pieces]), weights)
        assert len(pieces) == -(-len(rows) // most)
        assert all(len(r) for r, _ in pieces)


@pytest.mark.parametrize("hidden_size", [64, 2048, 7168])
def test_the_largest_part_and_its_reply_fit_the_message_size(hidden_size: int) -> None:
    most = pairs_per_call(hidden_size)
    hidden = torch.zeros(most, hidden_size)
    ids = ["0123456789abcdef" * 2] * 64
    # As unfavourable as can be: every pair with a row of its own.
    call = encode_call("f" * 64, 2**63, ids, 60, hidden, [(255, torch.arange(most), torch.ones(most))]).message()
    assert MAX_CALL_BYTES * 0.9 < call.ByteSize() <= MAX_CALL_BYTES
    assert encode_rows(hidden, 2**63, 2**63, 1e3, "worker").ByteSize() <= MAX_CALL_BYTES


def test_a_message_size_below_one_row_is_refused() -> None:
    with pytest.raises(ValueError, match="max_bytes"):
        pairs_per_call(2048, 8192)
