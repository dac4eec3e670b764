"""The prefetcher over gRPC: leases and plans."""

import grpc
import pytest
from feeding import EXPERT, STRIDE, plan

from moespac.actors.transport.messages import plan_to_proto
from moespac.protos.v1 import steps_pb2 as pb

CODE = grpc.StatusCode


def code_of(call, request):
    with pytest.raises(grpc.RpcError) as caught:
        call(request, timeout=5)
    return caught.value.code(), caught.value.details()


def test_before_it_serves_it_says_so(rig):
    assert code_of(rig().stub.Describe, pb.DescribeRequest()) == (
        CODE.UNAVAILABLE,
        "prefetcher is starting: try again",
    )


def test_describe_in_bytes(rig, store):
    described = rig(blocks=5).serve().stub.Describe(pb.DescribeRequest(), timeout=5)
    assert described.ready and described.name == "prefetcher"
    assert described.store_fingerprint == store.fingerprint
    assert described.loaded_bytes == described.disk_bytes_read == 5 * EXPERT
    assert 5 * STRIDE < described.arena_bytes == described.arena.bytes < 5 * STRIDE + 3 * 4096


def test_fetch_holds_until_release(rig):
    stub = rig(blocks=2).serve().stub
    first = stub.Fetch(pb.FetchRequest(layer=1, expert_ids=range(8), hold_s=60), timeout=5)
    assert len(first.granted) == 2
    with pytest.raises(grpc.RpcError) as caught:
        stub.Fetch(pb.FetchRequest(layer=2, expert_ids=[0], hold_s=60), timeout=0.3)
    assert caught.value.code() in (CODE.RESOURCE_EXHAUSTED, CODE.DEADLINE_EXCEEDED)
    stub.Release(pb.ReleaseRequest(lease=first.lease), timeout=5)
    stub.Release(pb.ReleaseRequest(lease=first.lease), timeout=5)
    assert list(stub.Fetch(pb.FetchRequest(layer=2, expert_ids=[0], hold_s=60), timeout=5).granted) == [0]


@pytest.mark.parametrize(
    "request_,message",
    [
        (pb.FetchRequest(layer=9, expert_ids=[0], hold_s=1), "no routed expert 0 in layer 9"),
        (pb.FetchRequest(layer=0, expert_ids=[8], hold_s=1), "no routed expert 8 in layer 0"),
        (pb.FetchRequest(layer=0, hold_s=1), "no experts named"),
        (pb.FetchRequest(layer=0, expert_ids=[0]), "hold_s is 0"),
        (pb.FetchRequest(layer=0, expert_ids=[0], hold_s=1e6), "at most 300 seconds"),
    ],
)
def test_fetch_refuses_nonsense(rig, request_, message):
    code, details = code_of(rig().serve().stub.Fetch, request_)
    assert code == CODE.INVALID_ARGUMENT and message in details


def test_older_plans_are_ignored(rig, store):
    stub = rig().serve().stub

    def tell(epoch):
        reply = stub.SetPlan(plan_to_proto(plan(store.shape, {}, epoch), store.shape), timeout=5)
        return reply.accepted, reply.epoch_held

    assert [tell(e) for e in (3, 2, 3, 4)] == [(True, 3), (False, 3), (False, 3), (True, 4)]
    assert code_of(stub.SetPlan, pb.Plan(epoch=9))[0] == CODE.INVALID_ARGUMENT
