"""The parts that the learning estimators are made of."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moespac.actors.policy.calibration import OnlineLogistic, SteadyAndQuick
from moespac.actors.policy.demand import with_mass
from moespac.actors.policy.levels import TOP_LEVEL, to_levels
from moespac.actors.policy.recursive_ridge import RecursiveRidge
from moespac.actors.policy.routing_basis import RoutingBasis
from moespac.actors.policy.shares import DecayedShares
from moespac.actors.policy.text_position import REQUESTS_HELD, TEXT_PRIOR, TextPositions
from moespac.actors.policy.token_memory import TokenMemory


def test_recursive_ridge_equals_the_regression_on_all_samples():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 7)).astype(np.float32), rng.normal(size=(60, 3))
    recursive = RecursiveRidge(7, 3, ridge=2.0)
    for part in np.split(np.arange(60), [5, 6, 30]):
        recursive.observe(x[part], y[part] - recursive.predict(x[part]))
    batch = np.linalg.solve(x.T @ x + 2.0 * np.eye(7), x.T @ y)
    np.testing.assert_allclose(recursive.predict(np.eye(7, dtype=np.float32)), batch, atol=1e-5)


def test_forgetting_follows_a_change_and_never_widens_beyond_the_start():
    rng = np.random.default_rng(1)
    keeps, forgets = RecursiveRidge(3, 1, 1.0), RecursiveRidge(3, 1, 1.0, forget=0.95)
    for step in range(400):
        x = rng.normal(size=(2, 3)).astype(np.float32)
        x[:, 2] = 0.0
        y = x[:, :1] * (1.0 if step < 300 else -1.0)
        for ridge in (keeps, forgets):
            ridge.observe(x, y - ridge.predict(x))
    one = np.eye(3, dtype=np.float32)[:1]
    assert forgets.predict(one) < -0.9 < keeps.predict(one)
    assert np.diagonal(forgets.state()["covariance"]).max() <= 1.0 + 1e-9


def test_shares_of_a_block_are_those_of_its_tokens_one_by_one():
    rows = np.random.default_rng(2).random((6, 4)).astype(np.float32)
    block, single = (DecayedShares((1.0, 0.3, 0.02), np.full(4, 0.5)) for _ in range(2))
    block.add(rows)
    for row in rows:
        single.add(row[None])
    np.testing.assert_allclose(block.values, single.values, rtol=1e-5)
    np.testing.assert_allclose(block.values[0], rows[-1])


def test_a_capped_block_leaves_the_rest_to_what_was_known():
    shares = DecayedShares((0.3,), np.zeros(2))
    shares.add(np.ones((500, 2), np.float32), most=0.5)
    np.testing.assert_allclose(shares.values, 0.5, rtol=1e-5)


@given(st.integers(0, 2**32), st.integers(0, 40), st.integers(1, 8))
def test_counts_keep_proportions_below_the_bound(seed, tokens, top_k):
    weights = np.random.default_rng(seed).random((3, 8)) ** 6 + 1e-9
    counts = with_mass(weights, tokens, top_k)
    np.testing.assert_allclose(counts.sum(axis=1), tokens * top_k)
    assert (counts <= tokens * (1 + 1e-9)).all()
    for row, weight in zip(counts, weights, strict=True):
        free = row < tokens * (1 - 1e-9)
        if tokens and free.any():
            np.testing.assert_allclose(row[free] / weight[free], (row[free] / weight[free])[0])


def test_the_token_used_longest_ago_is_forgotten():
    memory = TokenMemory(2, capacity=2)
    for key in (1, 2, 1, 3):
        memory.add([key], np.full((1, 2), float(key)))
    means = memory.means([1, 2, 3], pseudo=1.0, towards=np.zeros(2))
    np.testing.assert_allclose(means[:, 0], [2 / 3, 0.0, 1.5])
    assert len(memory) == 2


def test_a_memory_restored_into_less_room_keeps_the_newest():
    memory, small = TokenMemory(1, 4), TokenMemory(1, 2)
    memory.add([5, 6, 7], np.array([[1.0], [2.0], [3.0]]))
    small.restore(memory.state())
    np.testing.assert_allclose(small.means([5, 6, 7], 0.5, np.zeros(1))[:, 0], [0.0, 2 / 1.5, 3 / 1.5])


def test_the_basis_holds_all_that_varies_in_its_directions():
    rng = np.random.default_rng(3)
    rows = (rng.normal(size=(40, 2)) @ rng.normal(size=(2, 9)) + 1.0).astype(np.float32)
    basis = RoutingBasis.of(rows, 5)
    assert basis.rank == 2
    rebuilt = basis.mean + basis.coordinates(rows, 2) @ basis.directions.T
    np.testing.assert_allclose(rebuilt, rows, atol=1e-4)


def test_calibration_learns_which_feature_to_trust():
    rng = np.random.default_rng(4)
    calibration = OnlineLogistic(np.array([0.0, 0.0, 1.0]))
    for _ in range(150):
        features = np.stack([np.ones(1000), rng.normal(size=1000), rng.normal(size=1000)], axis=1)
        calibration.observe(features, rng.random(1000) < 1 / (1 + np.exp(1.0 - 2.0 * features[:, 1])))
    np.testing.assert_allclose(calibration.state()["weights"], [-1.0, 2.0, 0.0], atol=0.1)


def test_a_new_kind_of_text_is_followed_at_once_and_a_known_one_steadily():
    rng = np.random.default_rng(5)
    start = np.array([0.0, 0.0])
    mixed, steady = SteadyAndQuick(start), OnlineLogistic(start)

    def windows(number, slope):
        for _ in range(number):
            features = np.stack([np.ones(200), rng.normal(size=200)], axis=1)
            yield features, rng.random(200) < 1 / (1 + np.exp(-slope * features[:, 1]))

    for features, happened in windows(300, 2.0):
        mixed.observe(features, happened)
        steady.observe(features, happened)
    probe = np.array([[1.0, 1.0]])
    np.testing.assert_allclose(mixed.probability(probe), steady.probability(probe), atol=0.02)
    for features, happened in windows(40, -2.0):
        mixed.observe(features, happened)
        steady.observe(features, happened)
    assert mixed.probability(probe)[0] < 0.25 < 0.5 < steady.probability(probe)[0]
    restored = SteadyAndQuick(start)
    restored.restore(mixed.state())
    np.testing.assert_array_equal(restored.probability(probe), mixed.probability(probe))


def test_levels_rise_with_worth():
    worth = np.linspace(0.0, 1.4, 200)
    levels = to_levels(worth, 1.4)
    assert levels[0] == 0 and levels[-1] == TOP_LEVEL and (np.diff(levels) >= 0).all()


def test_only_the_latest_requests_are_held():
    positions = TextPositions((1.0,), np.zeros((1, 2), np.float32), np.zeros((2, 2), np.float32))
    for number in range(REQUESTS_HELD + 1):
        positions.advance(str(number), np.full((1, 2), number, np.float32), [number])
    assert positions.of("1").last_token == 1
    assert positions.of("0").last_token is None
    np.testing.assert_array_equal(positions.of("0").shares.values, positions.of("").shares.values)


def test_the_mean_of_a_text_is_its_own_and_a_prompt_counts_at_most_as_asked():
    positions = TextPositions((1.0, 0.1), np.zeros((2, 2), np.float32), np.zeros((2, 2), np.float32))
    for tokens in (4, 26):
        positions.advance("one", np.ones((tokens, 2), np.float32), None)
    np.testing.assert_allclose(positions.of("one").mean, 30 / (30 + TEXT_PRIOR), rtol=1e-5)
    positions.advance("two", np.zeros((500, 2), np.float32), None, most=0.5)
    before = positions.of("one").shares.values[-1]
    np.testing.assert_allclose(positions.of("two").mean, 0.5 * before, rtol=1e-5)


def test_a_capacity_below_one_is_refused():
    with pytest.raises(ValueError, match="capacity is 0"):
        TokenMemory(2, 0)


def test_a_regression_that_rounding_has_spoilt_finds_how_sure_it_is_anew():
    """A covariance that is none any more: what was learned stays, further samples are learned, nothing is infinite."""
    rng, spoilt = np.random.default_rng(0), RecursiveRidge(6, 2, 1.0, 0.99)
    truth = rng.normal(size=(6, 2)).astype(np.float32)

    def learn(samples: int) -> None:
        for _ in range(samples):
            x = rng.normal(size=(3, 6)).astype(np.float32)
            spoilt.observe(x, x @ truth - spoilt.predict(x))

    learn(50)
    for diagonal in (-np.eye(6), np.full((6, 6), np.nan)):
        spoilt.restore(spoilt.state() | {"covariance": diagonal})
        learn(60)
        state = spoilt.state()
        assert np.linalg.eigvalsh(state["covariance"]).min() > 0
        assert np.abs(state["weights"] - truth).max() < 0.05


def test_a_regressions_covariance_stays_symmetric():
    """To the last bit: whatever is not symmetric grows with every sample, until nothing is left of the weights."""
    rng, regression = np.random.default_rng(0), RecursiveRidge(40, 2, 1000.0, 0.99)
    texts = (3 * rng.normal(size=(5, 40))).astype(np.float32)
    for _ in range(300):
        regression.observe(texts[rng.integers(0, 5, 9)], rng.normal(size=(9, 2)).astype(np.float32))
    covariance = regression.state()["covariance"]
    assert np.array_equal(covariance, covariance.T)
