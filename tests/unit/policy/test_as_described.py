"""The estimator whose boundaries follow the window."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moespac.actors.core import ModelShape, RoutingWindow
from moespac.actors.policy import as_released
from moespac.actors.policy.as_described import AsDescribed, promote_boundary, reachable_level, transition

SHAPE = ModelShape((0,), n_experts=4, top_k=2, hidden_size=8, intermediate_size=8, expert_bytes=100)


def window(*row, prefill=False):
    return RoutingWindow(sum(row) // 2, np.array([row]), prefill)


@pytest.mark.parametrize(
    ("tokens", "promote", "level"),
    [(1, 1, 0), (2, 2, 1), (3, 2, 2), (4, 3, 2), (5, 3, 3), (6, 4, 3), (7, 4, 4), (8, 5, 4), (9, 5, 5), (10, 6, 5),
     (13, 8, 6), (17, 10, 8), (31, 18, 14)],
)  # fmt: skip
def test_stated_boundaries(tokens, promote, level):
    assert (promote_boundary(tokens), reachable_level(tokens)) == (promote, level)


def test_boundaries_never_fall_as_the_window_grows():
    for tokens in range(1, 200):
        assert 5 * tokens <= 9 * promote_boundary(tokens) < 5 * tokens + 9
        assert promote_boundary(tokens) <= promote_boundary(tokens + 1)
        assert reachable_level(tokens) <= reachable_level(tokens + 1)


@pytest.mark.parametrize("tokens", range(1, 40))
def test_highest_reachable_utility_is_k(tokens):
    utility = np.zeros(1, dtype=np.int64)
    for _ in range(50):
        utility = transition(utility, np.full(1, tokens), tokens)
    assert utility[0] == reachable_level(tokens)


def test_nine_tokens_move_as_released():
    states, counts = (grid.ravel() for grid in np.meshgrid(np.arange(6), np.arange(10)))
    assert (transition(states, counts, 9) == as_released.transition(states, counts)).all()


@given(st.integers(1, 40), st.integers(0, 20), st.data())
def test_more_use_is_never_worth_less(tokens, state, data):
    fewer = data.draw(st.integers(0, tokens))
    more = data.draw(st.integers(fewer, tokens))
    after = transition(np.array([state, state]), np.array([fewer, more]), tokens)
    assert after[0] <= after[1]
    assert (np.abs(after - state) <= 1).all() and (after >= 0).all()


@given(st.integers(0, 20), st.integers(0, 1))
def test_one_token_windows_only_decay(state, count):
    assert transition(np.array([state]), np.array([count]), 1)[0] == (state - 1 if count < state else state)


def test_utilities_of_longer_windows_stay_until_they_decay():
    estimator = AsDescribed(SHAPE)
    for _ in range(8):
        estimator.observe(window(9, 9, 0, 0))
    assert (estimator.utilities().tolist(), estimator.top_level) == ([[5, 5, 0, 0]], 5)
    estimator.observe(window(5, 3, 2, 0))
    assert (estimator.utilities().tolist(), estimator.top_level) == ([[5, 4, 0, 0]], 5)
    for _ in range(4):
        estimator.observe(window(0, 2, 5, 3))
    assert (estimator.utilities().tolist(), estimator.top_level) == ([[1, 2, 3, 1]], 3)


@pytest.mark.parametrize(("tokens", "prefill", "moves"), [(31, True, True), (32, True, False), (32, False, True)])
def test_only_long_prefill_windows_bypass_utilities(tokens, prefill, moves):
    estimator = AsDescribed(SHAPE)
    estimator.observe(window(tokens, tokens, 0, 0, prefill=prefill))
    assert estimator.utilities().any() == moves
    assert estimator.top_level == (reachable_level(tokens) if moves else 0)
