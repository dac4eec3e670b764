"""What all estimators have in common."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moespac.actors.core import ModelShape, RoutingWindow
from moespac.actors.policy.demand import ALPHA
from moespac.actors.policy.estimator import ESTIMATORS, make_estimator

SHAPE = ModelShape((0, 1, 2), n_experts=8, top_k=2, hidden_size=8, intermediate_size=8, expert_bytes=100)

STATE_MACHINES = ("as_described", "as_released")


def random_window(rng: np.random.Generator, tokens: int) -> RoutingWindow:
    chosen = rng.random((SHAPE.n_layers, tokens, SHAPE.n_experts)).argsort(axis=2)[:, :, : SHAPE.top_k]
    counts = np.stack([np.bincount(layer.ravel(), minlength=SHAPE.n_experts) for layer in chosen])
    return RoutingWindow(tokens, counts)


@pytest.mark.parametrize("name", ESTIMATORS)
@given(st.lists(st.integers(1, 40), max_size=8), st.integers(0, 64), st.integers(0, 2**32))
def test_expected_counts_are_the_routing_of_a_window(name, lengths, tokens, seed):
    estimator = make_estimator(name, SHAPE)
    rng = np.random.default_rng(seed)
    for length in lengths:
        estimator.observe(random_window(rng, length))
    expected = estimator.expected_counts(tokens)
    assert expected.shape == (3, 8)
    np.testing.assert_allclose(expected.sum(axis=1), tokens * SHAPE.top_k)
    assert (expected >= 0).all() and (expected <= tokens * (1 + 1e-12)).all()


@pytest.mark.parametrize("name", STATE_MACHINES)
def test_expected_counts_follow_the_demand_by_tokens(name):
    row = [5, 5, 0, 0, 0, 0, 0, 0]
    whole, pieces = make_estimator(name, SHAPE), make_estimator(name, SHAPE)
    whole.observe(RoutingWindow(5, np.array([row] * 3)))
    for _ in range(5):
        pieces.observe(RoutingWindow(1, np.array([row] * 3) // 5))
    kept = (1 - ALPHA) ** 5
    np.testing.assert_allclose(whole.expected_counts(4)[0, [0, 7]], [4 * (1 - 0.75 * kept), kept])
    np.testing.assert_allclose(whole.expected_counts(4), pieces.expected_counts(4))


@pytest.mark.parametrize("name", STATE_MACHINES)
def test_a_bypassing_prompt_still_teaches_demand(name):
    estimator = make_estimator(name, SHAPE)
    estimator.observe(RoutingWindow(64, np.array([[64, 64, 0, 0, 0, 0, 0, 0]] * 3), prefill=True))
    assert not estimator.utilities().any()
    # From a quarter at first half the way to certainty: a prompt counts for half at most.
    assert estimator.expected_counts(1)[0, 0] == pytest.approx(0.625)
    for _ in range(20):
        estimator.observe(RoutingWindow(64, np.array([[64, 64, 0, 0, 0, 0, 0, 0]] * 3), prefill=True))
    assert estimator.expected_counts(1)[0, 0] == pytest.approx(0.625), "in however many chunks it comes"
    estimator.observe(RoutingWindow(64, np.array([[64, 64, 0, 0, 0, 0, 0, 0]] * 3), prefill=True, request="next"))
    assert estimator.expected_counts(1)[0, 0] == pytest.approx(0.8125)


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize(
    ("window", "says"),
    [
        (RoutingWindow(2, np.zeros((3, 7), int)), "shape"),
        (RoutingWindow(0, np.zeros((3, 8), int)), "tokens is 0"),
        (RoutingWindow(2, np.array([[4, 0, 0, 0, 0, 0, 0, 0]] * 3)), "0..2"),
        (RoutingWindow(2, np.array([[2, 1, 0, 0, 0, 0, 0, 0]] * 3)), "sum to"),
    ],
)
def test_impossible_windows_are_refused(name, window, says):
    with pytest.raises(ValueError, match=says):
        make_estimator(name, SHAPE).observe(window)


def test_unknown_name_lists_the_known():
    with pytest.raises(ValueError, match="best, as_described, as_released"):
        make_estimator("guess", SHAPE)
