"""What the estimators that learn from token ids know, keep and forget."""

import numpy as np
import pytest

from moespac.actors.core import ModelShape, RoutingWindow
from moespac.actors.policy import best, earlier_places, row_forecast, token_table
from moespac.actors.policy.estimator import make_estimator

SHAPE = ModelShape((0, 1, 2), n_experts=8, top_k=2, hidden_size=8, intermediate_size=8, expert_bytes=100)
VOCABULARY = 12
LEARNERS = ("best", "decayed", "token_table")
BY_TOKEN = ("best", "token_table")


@pytest.fixture(autouse=True)
def early_forecast(monkeypatch):
    monkeypatch.setattr(best, "FIRST_TOKENS", 64)


def choice(token: int) -> np.ndarray:
    """The experts that `token` always takes; [n_layers, top_k]."""
    return np.array([[(token + layer) % 8, (token + layer + 3) % 8] for layer in range(SHAPE.n_layers)])


def window(tokens: list[int], request: str = "a", **fields) -> RoutingWindow:
    ids = np.stack([choice(token) for token in tokens])
    counts = np.stack([np.bincount(ids[:, row].ravel(), minlength=8) for row in range(SHAPE.n_layers)])
    return RoutingWindow(len(tokens), counts, token_ids=np.array(tokens), ids=ids, request=request, **fields)


def taught(name: str, windows: int = 80, seed: int = 0):
    estimator, rng = make_estimator(name, SHAPE), np.random.default_rng(seed)
    for _ in range(windows):
        estimator.observe(window(rng.integers(0, VOCABULARY, 4).tolist()))
    return estimator


@pytest.mark.parametrize("name", BY_TOKEN)
def test_a_token_seen_often_brings_its_experts(name):
    worth = taught(name).worth(1, [5])
    for row, experts in enumerate(choice(5)):
        assert set(np.argsort(-worth[row])[:2]) == set(experts)


@pytest.mark.parametrize("name", LEARNERS)
def test_a_restored_estimator_goes_on_as_the_saved_one(name):
    saved, restored = taught(name), make_estimator(name, SHAPE)
    restored.restore({key: array.copy() for key, array in saved.state().items()})
    for tokens in ([1, 2, 3], [4, 5]):
        for estimator in (saved, restored):
            estimator.observe(window(tokens, request="new"))
    np.testing.assert_allclose(restored.worth(3, [7, 1], "new"), saved.worth(3, [7, 1], "new"), rtol=1e-5)


@pytest.mark.parametrize("name", LEARNERS)
def test_another_models_state_is_refused_and_changes_nothing(name):
    other = make_estimator(name, ModelShape((0, 1), 16, 2, 8, 8, 100))
    estimator = taught(name)
    before = estimator.worth(3, [1, 2, 3])
    with pytest.raises(ValueError, match=r"shape|shares"):
        estimator.restore(other.state())
    np.testing.assert_array_equal(estimator.worth(3, [1, 2, 3]), before)


@pytest.mark.parametrize("name", LEARNERS)
def test_experts_renamed_are_worth_the_same_under_their_new_names(name):
    renamed = np.random.default_rng(1).permutation(8)
    plain, other = make_estimator(name, SHAPE), make_estimator(name, SHAPE)
    rng = np.random.default_rng(2)
    for _ in range(40):
        seen = window(rng.integers(0, VOCABULARY, 4).tolist())
        plain.observe(seen)
        counts = np.empty_like(seen.counts)
        counts[:, renamed] = seen.counts
        other.observe(RoutingWindow(4, counts, token_ids=seen.token_ids, ids=renamed[seen.ids], request="a"))
    np.testing.assert_allclose(other.worth(4, [1, 2])[:, renamed], plain.worth(4, [1, 2]), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", LEARNERS)
def test_known_and_unknown_drafts_keep_the_mass(name):
    estimator = taught(name)
    for draft in (None, [], [3], [3, 400, 7], list(range(9))):
        expected = estimator.expected_counts(5, draft)
        np.testing.assert_allclose(expected.sum(axis=1), 5 * SHAPE.top_k)
        assert (expected >= 0).all() and (expected <= 5 + 1e-9).all()
    assert not estimator.expected_counts(0).any()


@pytest.mark.parametrize("name", LEARNERS)
def test_utilities_are_levels(name):
    utilities = taught(name).utilities()
    assert utilities.dtype == np.int64 and utilities.shape == (3, 8)
    assert utilities.min() >= 0 and utilities.max() <= make_estimator(name, SHAPE).top_level


@pytest.mark.parametrize("name", BY_TOKEN)
def test_memory_stays_bounded(name, monkeypatch):
    monkeypatch.setattr(row_forecast, "SINGLES_HELD", 8)
    monkeypatch.setattr(row_forecast, "PAIRS_HELD", 16)
    monkeypatch.setattr(earlier_places, "TOKENS_HELD", 100)
    monkeypatch.setattr(token_table, "TABLE_BYTES", 8 * 4 * 24)
    sizes = []
    for windows in (80, 240):
        estimator, rng = make_estimator(name, SHAPE), np.random.default_rng(0)
        for _ in range(windows):
            estimator.observe(window(rng.integers(0, 1000, 4).tolist()))
        sizes.append(sum(array.nbytes for array in estimator.state().values()))
    assert sizes[0] == sizes[1]


def test_counts_alone_are_enough_for_the_best():
    estimator = make_estimator("best", SHAPE)
    for _ in range(40):
        estimator.observe(RoutingWindow(4, np.array([[4, 4, 0, 0, 0, 0, 0, 0]] * 3)))
    assert set(np.argsort(-estimator.worth(4)[1])[:2]) == {0, 1}


def test_a_prompt_informs_without_washing_out_what_decoding_taught():
    estimator = taught("best")
    before = estimator.worth(1, [5])
    estimator.observe(window([9] * 200, request="b", prefill=True))
    after = estimator.worth(1, [5])
    for row, experts in enumerate(choice(5)):
        assert set(np.argsort(-after[row])[:2]) == set(experts)
    assert not np.allclose(before, after)


def test_rejected_tokens_teach_but_do_not_move_the_text():
    stays, moves = taught("best"), taught("best")
    stays.observe(window([1, 2, 3, 4], accepted=1))
    moves.observe(window([1, 2, 3, 4]))
    assert not np.allclose(stays.worth(2, [6, 7]), moves.worth(2, [6, 7]))
    position = stays._positions.of("a")
    assert position.last_token == 1


def test_requests_keep_their_own_place():
    estimator = taught("best")
    estimator.observe(window([1, 1, 1, 1], request="one"))
    estimator.observe(window([7, 7, 7, 7], request="two"))
    assert not np.allclose(estimator.worth(2, None, "one"), estimator.worth(2, None, "two"))
    np.testing.assert_array_equal(estimator.worth(2), estimator.worth(2, None, "two"))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"accepted": 9}, "accepted is 9"),
        ({"token_ids": np.array([1])}, "1 token ids for 2 tokens"),
        ({"ids": np.zeros((2, 3, 1), int)}, "ids have shape"),
        ({"ids": np.full((2, 3, 2), 8)}, "ids must lie in 0..7"),
        ({"ids": np.tile([[[0, 1]]], (2, 3, 1))}, "disagree"),
    ],
)
def test_windows_that_contradict_themselves_are_refused(fields, says):
    seen = window([4, 5])
    parts = {"token_ids": seen.token_ids, "ids": seen.ids, **fields}
    with pytest.raises(ValueError, match=says):
        make_estimator("best", SHAPE).observe(RoutingWindow(2, seen.counts, **parts))
