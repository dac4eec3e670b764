"""What the scheduler has decided and done since its start, as it is told."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moespac.actors.core import DraftChoice
from moespac.actors.histogram import empty_histogram, observe
from moespac.actors.policy.drafting_facts import StepSeen
from moespac.actors.policy.governor import Decision
from moespac.actors.scheduler.draft_totals import DraftTotals
from moespac.actors.scheduler.plan_totals import PlanTotals
from moespac.actors.scheduler.totals import Totals
from moespac.protos.v1 import generation_pb2 as pb
from moespac.protos.v1 import steps_pb2


def seen(kind: str, asked: int, accepted: int, turn_s: float) -> StepSeen:
    return StepSeen(kind, asked, accepted, draft_s=0.0, turn_s=turn_s)


@given(st.lists(st.floats(0, 10)), st.lists(st.floats(0, 10), unique=True).map(sorted))
def test_an_observation_is_at_most_the_bound_of_its_bucket(values, bounds):
    histogram = empty_histogram(bounds)
    for value in values:
        observe(histogram, value)
    assert histogram.sum == pytest.approx(sum(values))
    below = 0
    for count, bound in zip(histogram.counts, [*bounds, float("inf")], strict=True):
        below += count
        assert below == sum(value <= bound for value in values)


def test_work_counts_prefill_apart_from_decoding():
    totals = Totals()
    layers = [steps_pb2.LayerCounts(layer=layer, used=4, hits=3) for layer in range(2)]
    timings = steps_pb2.Timings(
        draft_s=0.01, wait_s=0.02, expert_calls=2, fallback_experts=1, transfers=3, bytes_moved=300, transfer_s=0.5
    )
    window = steps_pb2.Window(tokens=64, layers=layers)
    totals.add_step(steps_pb2.StepReply(prefill=True, window=window, timings=timings), 0.5, 0)
    step = steps_pb2.StepReply(proposed=4, accepted=2, window=window, timings=timings)
    totals.add_step(step, 0.25, 3)
    totals.add_step(step, 0.25, 1)
    totals.add_restart()
    work = totals.message()
    assert (work.tokens, work.prefill_tokens, work.steps, work.accepted) == (4, 64, 2, 4)
    assert (work.decode_s, work.prefill_s) == (0.5, 0.5)
    assert (work.draft_s, work.expert_wait_s) == (pytest.approx(0.02), pytest.approx(0.06))
    assert (work.uses, work.hits) == (16, 12)
    assert (work.expert_calls, work.fallback_experts, work.transfers, work.bytes_moved) == (6, 3, 9, 900)
    assert (work.transfer_s, work.restarts) == (1.5, 1)


def test_choices_are_counted_by_draft_length_and_reason_and_held_to_their_promise():
    totals = DraftTotals(("model", "ngram"))
    model, ngram = (DraftChoice("model", 4),), (DraftChoice("ngram", 8),)
    totals.add_step(Decision(model, "best", 20.0, 10.0), seen("model", 4, 3, 0.25))
    totals.add_step(Decision(model, "best", 20.0, 10.0), seen("model", 4, 0, 0.25))
    totals.add_step(Decision(ngram, "explore", 20.0, 10.0), seen("ngram", 8, 1, 0.3))
    totals.add_step(Decision((), "best", 16.0, 16.0), seen("", 0, 0, 0.2))
    message = totals.message()
    assert [(s.kind, s.gamma, s.steps) for s in message.steps] == [("", 0, 1), ("model", 4, 2), ("ngram", 8, 1)]
    best, explore = message.decisions
    assert (best.reason, best.steps, best.tokens) == ("best", 3, 6)
    assert best.seconds == pytest.approx(0.7) and best.promised_tokens == pytest.approx(20 * 0.5 + 16 * 0.2)
    assert (explore.reason, explore.steps, explore.tokens) == ("explore", 1, 2)
    assert message.exploration_loss == pytest.approx((0.3 - 2 / 20) / 1.0)
    assert (message.predicted_rate, message.predicted_unassisted_rate) == (16.0, 16.0)
    assert [(d.kind, list(d.proposed), list(d.accepted)) for d in message.drafts] == [
        ("model", [2, 2, 2, 2], [1, 1, 1, 0]),
        ("ngram", [1] * 8, [1] + [0] * 7),
    ]
    assert list(message.kinds) == ["model", "ngram"]


def test_plans_are_counted_by_solver_and_status():
    totals = PlanTotals()
    assert not totals.message().HasField("last") and totals.message().duty == 0
    totals.add_step(0.4)
    totals.add_step(0.6)
    for epoch, status in enumerate(("OPTIMAL", "GREEDY", "OPTIMAL"), start=1):
        totals.add_plan(pb.PlanInfo(epoch=epoch, solver="thresholds", status=status, gap=0.01 * epoch, seconds=0.01))
    message = totals.message()
    assert [(p.solver, p.status, p.plans) for p in message.plans] == [
        ("thresholds", "GREEDY", 1),
        ("thresholds", "OPTIMAL", 2),
    ]
    assert (message.last.epoch, message.last.gap) == (3, 0.03)
    assert message.duty == pytest.approx(0.03) and sum(message.plan_s.counts) == 3
