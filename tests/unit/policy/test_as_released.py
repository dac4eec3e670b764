"""The released state machine against the consequences worked out from its constants."""

from math import comb

import numpy as np
import pytest

from moespac.actors.core import ModelShape, RoutingWindow
from moespac.actors.policy.as_released import AsReleased, transition


def chain(tokens: int, probability: float) -> np.ndarray:
    """Transition matrix [state, next state] of one expert used by each token with `probability`."""
    counts = np.arange(tokens + 1)
    ways = np.array([comb(tokens, count) for count in counts])
    weights = ways * probability**counts * (1 - probability) ** (tokens - counts)
    matrix = np.zeros((6, 6))
    for state in range(6):
        np.add.at(matrix[state], transition(np.full(tokens + 1, state), counts), weights)
    return matrix


def stationary(matrix: np.ndarray) -> np.ndarray:
    size = len(matrix)
    equations = np.vstack([matrix.T - np.eye(size), np.ones(size)])
    return np.linalg.lstsq(equations, np.append(np.zeros(size), 1.0), rcond=None)[0]


@pytest.mark.parametrize(
    ("activation", "published"),
    [(0.0625, 0.0), (0.1, 0.002), (0.15, 0.024), (0.2, 0.128), (0.25, 0.402), (0.3, 0.735), (0.4, 0.985)],
)
def test_nine_token_windows_detect_experts_used_by_a_quarter_of_the_tokens(activation, published):
    assert 1.0 - stationary(chain(9, activation))[0] == pytest.approx(published, abs=5e-4)


@pytest.mark.parametrize("tokens", range(1, 13))
def test_highest_reachable_score_is_window_minus_four(tokens):
    score = np.zeros(1, dtype=np.int64)
    for _ in range(20):
        score = transition(score, np.full(1, tokens))
    assert score[0] == min(5, max(0, tokens - 4))


def test_transition_boundaries():
    # (s, a) → s': promote at exactly +5, hold in between, demote at exactly −1, both ends clamped.
    table = {
        (0, 4): 0,
        (0, 5): 1,
        (1, 5): 1,
        (1, 6): 2,
        (4, 9): 5,
        (5, 10): 5,
        (3, 3): 3,
        (3, 2): 2,
        (5, 0): 4,
        (0, 0): 0,
    }
    states, counts = np.array(list(table)).T
    assert transition(states, counts).tolist() == list(table.values())


SHAPE = ModelShape((1, 4), n_experts=4, top_k=2, hidden_size=8, intermediate_size=8, expert_bytes=100)


def window(rows, prefill=False):
    return RoutingWindow(sum(rows[0]) // 2, np.array(rows), prefill)


def test_every_expert_of_every_layer_moves_with_every_window():
    estimator = AsReleased(SHAPE)
    estimator.observe(window([[9, 9, 0, 0], [9, 0, 5, 4]]))
    assert estimator.utilities().tolist() == [[1, 1, 0, 0], [1, 0, 1, 0]]
    estimator.observe(window([[9, 0, 9, 0], [0, 9, 0, 9]]))
    assert estimator.utilities().tolist() == [[2, 0, 1, 0], [0, 1, 0, 1]]
    assert estimator.top_level == 5


@pytest.mark.parametrize(("tokens", "prefill", "moves"), [(31, True, True), (32, True, False), (32, False, True)])
def test_only_long_prefill_windows_bypass_utilities(tokens, prefill, moves):
    estimator = AsReleased(SHAPE)
    estimator.observe(window([[tokens, tokens, 0, 0]] * 2, prefill))
    assert estimator.utilities().any() == moves


def test_utilities_are_a_copy():
    estimator = AsReleased(SHAPE)
    estimator.utilities()[:] = 7
    assert not estimator.utilities().any()
