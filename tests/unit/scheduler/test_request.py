"""What of a step's tokens the client gets, and what the statistics say of it."""

import pytest

from moespac.actors.core import Sampling
from moespac.actors.scheduler.request import End, Request
from moespac.actors.scheduler.tally import LinkTotals, Tally
from moespac.protos.v1 import generation_pb2 as pb
from moespac.protos.v1 import steps_pb2

EOS = 0


async def make(max_tokens: int = 8, stop_tokens: tuple[int, ...] = (EOS,), emitted: tuple[int, ...] = ()) -> Request:
    return Request(
        id="r",
        prompt_ids=(5, 6, 7),
        max_tokens=max_tokens,
        sampling=Sampling(),
        gamma=4,
        most_drafted=4,
        trace=False,
        stop_tokens=frozenset(stop_tokens),
        logprobs=None,
        tally=Tally(0.0, LinkTotals()),
        emitted=list(emitted),
    )


def request_with(**options) -> Request:
    import asyncio

    return asyncio.run(make(**options))


def test_tokens_beyond_max_tokens_are_dropped():
    request = request_with(max_tokens=3)
    assert request.take([11, 12]) == ([11, 12], None)
    assert request.take([13, 14, 15]) == ([13], End(pb.Statistics.LENGTH))
    assert request.emitted == [11, 12, 13]


def test_the_end_of_text_token_ends_and_is_not_text():
    request = request_with()
    assert request.take([11, 0, 12]) == ([11], End(pb.Statistics.STOP, EOS))
    assert request.emitted == [11]


def test_the_first_stop_token_of_a_step_counts():
    request = request_with(stop_tokens=(12, 13))
    assert request.take([11, 0]) == ([11, 0], None)
    assert request.take([14, 13, 12, 15]) == ([14], End(pb.Statistics.STOP, 13))


def test_a_stop_token_in_the_place_of_the_last_token_is_a_stop():
    assert request_with(max_tokens=1).take([0]) == ([], End(pb.Statistics.STOP, EOS))


def test_tokens_before_a_restart_count_towards_max_tokens():
    request = request_with(max_tokens=4, emitted=(1, 2, 3))
    assert request.remaining == 1
    assert request.take([9, 9]) == ([9], End(pb.Statistics.LENGTH))


def test_room_is_reserved_for_rejected_drafts_too():
    assert request_with(max_tokens=8).reserve_tokens == 3 + 8 + 4


def test_statistics():
    link = LinkTotals()
    tally = Tally(arrived_s=10.0, link_at_start=link.copy())
    tally.add_step(steps_pb2.StepReply(prefill=True, timings=steps_pb2.Timings(expert_calls=3, streamed_experts=9)))
    tally.add_tokens(1, 10.5)
    window = steps_pb2.Window(tokens=5, layers=[steps_pb2.LayerCounts(layer=0, used=4, hits=3)])
    for _ in range(2):
        timings = steps_pb2.Timings(
            expert_calls=1,
            bytes_moved=100,
            transfer_s=0.2,
            transfer_hidden_s=0.1,
            streamed_experts=2,
            awaited_experts=1,
            cancelled_transfers=2,
        )
        tally.add_step(steps_pb2.StepReply(proposed=4, accepted=3, window=window, timings=timings))
        link.add(timings)
    tally.add_tokens(4, 11.5)
    tally.add_tokens(4, 12.5)
    tally.plans += [pb.PlanInfo(solver="thresholds", status="OPTIMAL", gap=0.25, seconds=0.002)]
    statistics = tally.statistics(pb.Statistics.LENGTH, 3, 13.0, link, emulated=True)
    assert (statistics.proposed, statistics.accepted, statistics.steps) == (8, 6, 2)
    assert (statistics.uses, statistics.hits) == (8, 6), "the prompt's pass is not part of the hit rate"
    assert (statistics.expert_calls, statistics.streamed_experts, statistics.awaited_experts) == (5, 13, 2)
    assert statistics.ttft_s == pytest.approx(0.5)
    assert statistics.tpot_s == pytest.approx(2.0 / 8)
    assert statistics.tokens_per_second == pytest.approx(9 / 3.0)
    assert statistics.bytes_moved == 200 and statistics.transfer_hidden_s == pytest.approx(0.2)
    assert statistics.cancelled_transfers == 4
    assert list(statistics.solver_statuses) == ["OPTIMAL"] and list(statistics.solvers) == ["thresholds"]
    assert list(statistics.plan_ms) == [2.0] and list(statistics.plan_gaps) == [0.25]


def test_transfers_before_a_request_are_not_its_own():
    link = LinkTotals()
    link.add(steps_pb2.Timings(bytes_moved=500, cancelled_transfers=3))
    tally = Tally(0.0, link.copy())
    link.add(steps_pb2.Timings(bytes_moved=70, cancelled_transfers=1))
    statistics = tally.statistics(pb.Statistics.LENGTH, 1, 1.0, link, False)
    assert (statistics.bytes_moved, statistics.cancelled_transfers) == (70, 1)
