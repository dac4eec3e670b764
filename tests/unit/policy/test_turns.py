import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from moespac.actors.policy.turns import Admitted, Queued, RefusalReason, Refused, Turns


def test_admission_queue_and_refusal():
    turns = Turns(max_running=2, max_waiting=1, kv_budget_bytes=100)
    assert turns.next() is None
    assert turns.submit("a", 60) == Admitted()
    assert turns.submit("b", 50) == Queued(ahead=0)
    refused = turns.submit("c", 10)
    # c would fit beside a, but not in front of b.
    assert isinstance(refused, Refused) and refused.reason is RefusalReason.QUEUE_FULL
    assert turns.remove("a") == ("b",)
    assert turns.submit("d", 50) == Admitted()
    assert (turns.running, turns.reserved_bytes) == (("b", "d"), 100)


def test_what_never_fits_is_refused_at_once_and_says_so():
    refused = Turns(4, 4, 100).submit("a", 101)
    assert isinstance(refused, Refused) and refused.reason is RefusalReason.NEVER_FITS
    assert "101 bytes" in refused.message and "max_tokens" in refused.message


def test_one_end_can_admit_several():
    turns = Turns(4, 4, 100)
    turns.submit("big", 100)
    for name in "abc":
        turns.submit(name, 40)
    assert turns.remove("big") == ("a", "b")
    assert turns.waiting == ("c",)


def test_a_waiting_request_that_leaves_makes_way():
    turns = Turns(4, 4, 100)
    turns.submit("running", 60)
    turns.submit("big", 90)
    turns.submit("small", 40)
    assert turns.remove("big") == ("small",)
    assert turns.remove("big") == ()


def test_double_submission_and_bad_limits_are_refused():
    turns = Turns(1, 1, 10)
    turns.submit("a", 1)
    with pytest.raises(ValueError, match="already submitted"):
        turns.submit("a", 1)
    with pytest.raises(ValueError, match="kv_bytes"):
        turns.submit("b", -1)
    for limits, name in (((0, 1, 1), "max_running"), ((1, -1, 1), "max_waiting"), ((1, 1, -1), "kv_budget")):
        with pytest.raises(ValueError, match=name):
            Turns(*limits)


class TurnsMachine(RuleBasedStateMachine):
    """Any order of arrivals, turns and departures."""

    def __init__(self):
        super().__init__()
        self.turns = Turns(max_running=4, max_waiting=3, kv_budget_bytes=100)
        self.sizes, self.arrivals, self.count = {}, [], 0
        # For each request that has run: who else was running then and has not run since.
        self.owed: dict[str, set[str]] = {}

    @rule(size=st.integers(0, 130))
    def submit(self, size):
        name = f"r{self.count}"
        self.count += 1
        result = self.turns.submit(name, size)
        if isinstance(result, Refused):
            assert (result.reason is RefusalReason.NEVER_FITS) == (size > 100)
            if size <= 100:
                assert len(self.turns.waiting) == 3
        else:
            self.sizes[name] = size
            self.arrivals.append(name)
            assert (name in self.turns.running) == isinstance(result, Admitted)

    @rule()
    def run(self):
        name = self.turns.next()
        assert (name is None) == (not self.turns.running)
        if name is not None:
            assert not self.owed.get(name), f"{name} runs again before {self.owed[name]}"
            for others in self.owed.values():
                others.discard(name)
            self.owed[name] = set(self.turns.running) - {name}

    @precondition(lambda self: self.arrivals)
    @rule(data=st.data())
    def remove(self, data):
        name = data.draw(st.sampled_from(self.arrivals))
        before = self.turns.running
        admitted = self.turns.remove(name)
        assert set(self.turns.running) == (set(before) - {name}) | set(admitted)
        self.arrivals.remove(name)
        self.owed.pop(name, None)
        for others in self.owed.values():
            others.discard(name)

    @invariant()
    def budgets_hold_and_nobody_is_lost_or_overtaken(self):
        running, waiting = self.turns.running, self.turns.waiting
        assert self.turns.reserved_bytes == sum(self.sizes[name] for name in running) <= 100
        assert len(running) <= 4 and len(waiting) <= 3
        assert sorted(running + waiting) == sorted(self.arrivals)
        assert list(waiting) == self.arrivals[len(self.arrivals) - len(waiting) :]
        if waiting:
            fits = len(running) < 4 and self.turns.reserved_bytes + self.sizes[waiting[0]] <= 100
            assert not fits, "room, yet a request waits"


TestTurns = TurnsMachine.TestCase
TestTurns.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
