"""Between governor and device: what is decided, observed and counted."""

from __future__ import annotations

from drafting_world import length

from moespac.actors.core import DraftChoice, Sampling
from moespac.actors.policy.chain import LONGEST
from moespac.actors.policy.drafting_facts import StepSeen
from moespac.actors.policy.governor import Decision, Governor
from moespac.actors.policy.ngram import Judgement
from moespac.actors.scheduler.drafting import Drafting, decision_span, most_tokens
from moespac.actors.scheduler.request import Request
from moespac.actors.scheduler.tally import LinkTotals, Tally
from moespac.protos.v1 import steps_pb2 as pb


def request(gamma: int | None = None, max_tokens: int = 100) -> Request:
    return Request(
        id="a",
        prompt_ids=(1, 2),
        max_tokens=max_tokens,
        sampling=Sampling(),
        gamma=gamma,
        most_drafted=LONGEST,
        trace=False,
        stop_tokens=frozenset(),
        logprobs=None,
        tally=Tally(0.0, LinkTotals()),
    )


def reply(kind: str = "model", proposed: int = 3, accepted: int = 2, **fields) -> pb.StepReply:
    layers = [pb.LayerCounts(layer=0, counts=[2, 0, 1, 1], used=3, hits=1)]
    return pb.StepReply(
        emitted=list(range(accepted + 1)),
        proposed=proposed,
        accepted=accepted,
        draft_kind=kind,
        window=pb.Window(tokens=proposed + 1, layers=layers),
        timings=pb.Timings(draft_s=0.002, verify_s=0.004),
        **fields,
    )


def test_room_is_kept_for_whatever_the_governor_may_choose():
    assert [most_tokens(gamma, ("ngram",)) for gamma in (None, 0, 5)] == [LONGEST, 0, 5]
    assert most_tokens(None, ()) == most_tokens(5, ()) == 0


def test_what_is_computed_is_timed_before_the_first_request():
    calibrations = Drafting(("model", "ngram", "self")).calibrations()
    assert {choice.kind for choices in calibrations for choice in choices} == {"model", "self"}
    assert () in calibrations, "steps without a draft are timed too"
    assert Drafting(("ngram",)).calibrations() == Drafting(()).calibrations() == []


def test_a_draft_that_stands_is_drafted_more_of_than_one_that_falls():
    drafted = []
    for accepted in (True, False):
        drafting, asked = Drafting(("model",)), request()
        for _ in range(60):
            decision = drafting.decide(asked)
            gamma = sum(map(length, decision.choices))
            kind = "model" if gamma else ""
            step = reply(kind, gamma, gamma if accepted else 0)
            step.timings.draft_s = 0.001 * gamma
            drafting.observe(asked, decision, step, 0.004 + 0.001 * gamma)
        drafted.append(gamma)
    assert drafted[0] > 4 and drafted[1] < 2


def test_the_governor_is_told_how_sure_drafts_were_and_what_ngrams_found(monkeypatch):
    told = []
    monkeypatch.setattr(Governor, "observe", lambda self, drafts, decision, seen: told.append(seen))
    found = {"ngram_match": 5, "ngram_found": 7, "ngram_stood": 1}
    for kinds in (("model", "ngram"), ("model",)):
        drafting, asked = Drafting(kinds), request()
        step = reply("model", 3, 2, confidences=bytes((9, 4, 1)), behind={"model": 1}, **found)
        drafting.observe(asked, drafting.decide(asked), step, 0.01)
    assert told[0] == StepSeen("model", 3, 2, 0.002, 0.01, {"model": 1}, (9, 4, 1), Judgement(5, 7, 1, 3))
    assert told[1].ngrams is None, "nobody looked"


def test_a_prefill_step_says_only_how_far_drafts_are_behind():
    drafting, asked = Drafting(("model",)), request()
    before = drafting.decide(asked)
    drafting.observe(asked, before, reply("", 0, 0, prefill=True, behind={"model": 7}), 9.0)
    assert asked.drafts.behind == {"model": 7} and not asked.drafts.rates


def test_a_decision_is_on_the_timeline():
    choices = (DraftChoice("ngram", 8), DraftChoice("model", 3))
    span = decision_span(Decision(choices, "explore", 12.34, 10.0), 5)
    assert (span.row, span.name, span.start_ns) == ("governor", "ngram 8 or model 3", 5) and span.end_ns > 5
    ending = (DraftChoice("ngram", 8, 4), DraftChoice("self", 16, chances=(0.5,), floors=(0.1,)))
    assert decision_span(Decision(ending, "best", 1.0, 1.0), 5).name == "ngram from 4 on 8 or self up to 16"
    assert dict(span.args) == {"reason": "explore", "tokens/s": "12.3", "tokens/s without drafts": "10.0"}
    assert decision_span(Decision((), "best", 1.0, 1.0), 5).name == "no draft"


def test_statistics_tell_drafts_by_kind_and_position():
    tally = Tally(0.0, LinkTotals())
    tally.add_step(reply("model", 3, 2))
    tally.add_step(reply("model", 1, 1))
    tally.add_step(reply("", 0, 0))
    foreseen = pb.Window(tokens=2, layers=[pb.LayerCounts(layer=0, counts=[1, 3, 0, 1])])
    tally.add_step(reply("self", 2, 0, predicted=foreseen))
    statistics = tally.statistics(1, 2, 1.0, LinkTotals(), False)
    counted = {d.kind: (d.steps, list(d.proposed), list(d.accepted)) for d in statistics.drafts}
    assert counted == {"model": (2, [2, 1, 1], [2, 1, 0]), "self": (1, [1, 1], [0, 0])}
    assert (statistics.demand, statistics.demand_predicted) == (3, 2)
    assert (statistics.steps, statistics.proposed, statistics.accepted) == (4, 6, 3)
