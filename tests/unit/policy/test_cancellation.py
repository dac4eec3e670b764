"""When a copy under way is finished although a newer plan is held, and when not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moespac.actors.core import ExpertKey, ModelShape, Plan
from moespac.actors.policy.cancellation import waiting, worth_finishing

remainders = st.integers(0, 16).map(lambda sixteenths: sixteenths / 16)
utilities = st.integers(0, 6)
lines = st.lists(utilities, max_size=8).map(lambda line: sorted(line, reverse=True))
places = st.integers(0, 8)


def lost(line, horizon, first=0.0):
    """Utility times time away, of copies made one after the other from `first` on."""
    return sum(utility * min(first + place, horizon) for place, utility in enumerate(line, start=1))


@given(remainders, utilities, lines, places)
def test_it_is_the_cheaper_of_two_timelines(remaining, utility, line, outlasts):
    horizon = remaining + len(line) + 1
    finished = utility * remaining + lost(line, horizon, first=remaining)
    back_in_line = lost(sorted([*line, utility], reverse=True), horizon)
    assert worth_finishing(remaining, utility, True, line, outlasts) == (finished <= back_in_line)
    # Not wanted: with the expert until the copy that takes its slot begins, and without it.
    horizon = remaining + len(line)
    stays = min(remaining + outlasts, horizon) - remaining
    finished = utility * (horizon - stays) + lost(line, horizon, first=remaining)
    without = utility * horizon + lost(line, horizon)
    assert worth_finishing(remaining, utility, False, line, outlasts) == (finished <= without)


@given(remainders, utilities, st.booleans(), places)
def test_an_idle_link_finishes_what_it_has_begun(remaining, utility, wanted, outlasts):
    assert worth_finishing(remaining, utility, wanted, [], outlasts)


@given(remainders, remainders, utilities, st.booleans(), lines, places)
def test_who_has_less_to_go_is_not_cancelled_first(more, less, utility, wanted, line, outlasts):
    less, more = sorted((less, more))
    if worth_finishing(more, utility, wanted, line, outlasts):
        assert worth_finishing(less, utility, wanted, line, outlasts)


@given(remainders, lines.filter(bool), places)
def test_the_most_wanted_is_always_finished(remaining, line, outlasts):
    assert worth_finishing(remaining, line[0], True, line, outlasts)


@given(remainders.filter(bool), utilities, lines.filter(any))
def test_what_the_next_copy_would_evict_is_not_finished(remaining, utility, line):
    assert not worth_finishing(remaining, utility, False, line, outlasts=0)


def test_a_cold_expert_is_cancelled_early_and_finished_late():
    assert not worth_finishing(0.9, 1, False, [3, 3, 2], outlasts=2)
    assert worth_finishing(0.1, 1, False, [3, 3, 2], outlasts=2)


SHAPE = ModelShape((2, 5), n_experts=3, top_k=1, hidden_size=8, intermediate_size=8, expert_bytes=100)


@pytest.mark.parametrize("budget,expected", [(10_000, [4, 3, 1]), (299, [4, 3]), (99, [])])
def test_hot_experts_that_are_not_there_wait_within_the_budget(budget, expected):
    plan = Plan(1, np.array([1, 3]), np.array([[1, 0, 5], [4, 2, 3]]), budget, "OPTIMAL")
    assert waiting(plan, SHAPE, {ExpertKey(2, 2)}) == expected
