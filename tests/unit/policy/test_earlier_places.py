"""Places in earlier texts that are found again, by their tokens or by their routing."""

import numpy as np
import pytest

from moespac.actors.policy.repeated_tokens import RepeatedTokens
from moespac.actors.policy.routing_history import RoutingHistory
from moespac.actors.policy.similar_routing import NOWHERE, SimilarRouting

WIDTH = 12
RNG = np.random.default_rng(0)
ROWS, OTHERS = (RNG.random((2, 40, WIDTH)) < 0.4).astype(np.float32)
NONE = np.full(WIDTH, 0.1)


def test_the_history_gives_back_the_rows_it_holds():
    history = RoutingHistory(WIDTH, capacity=7)
    for part in (ROWS[:3], ROWS[3:9], ROWS[9:10]):
        history.add(part)
    assert history.held == range(3, 10)
    np.testing.assert_array_equal(history.rows(np.array(history.held)), ROWS[3:10])
    smaller = RoutingHistory(WIDTH, capacity=2)
    smaller.restore(history.state())
    np.testing.assert_array_equal(smaller.rows(np.array([0, 1])), ROWS[8:10])


def test_the_longest_agreement_counts():
    places = RepeatedTokens(WIDTH, capacity=100)
    places.remember((None, None), [1, 2, 3], ROWS[:3])
    places.remember((None, None), [9, 2, 3], ROWS[3:6])
    places.remember((None, None), [8, 8, 3], ROWS[6:9])
    assert not places.features((None, None), [7]).any()
    np.testing.assert_array_equal(places.features((1, 2), [3])[2], ROWS[2])
    np.testing.assert_array_equal(places.features((5, 2), [3])[1], (ROWS[2] + ROWS[5]) / 2)
    np.testing.assert_allclose(places.features((5, 5), [3])[0], (ROWS[2] + ROWS[5] + ROWS[8]) / 3)


def test_tokens_of_a_draft_agree_with_each_other():
    places = RepeatedTokens(WIDTH, capacity=100)
    places.remember((None, None), [1, 2, 3], ROWS[:3])
    found = places.features((None, None), [1, 2, 3])
    np.testing.assert_array_equal(found, ROWS[:3])


def test_forgotten_places_are_not_found_and_leave_nothing():
    places = RepeatedTokens(WIDTH, capacity=5)
    for start in range(0, 30, 3):
        places.remember((None, None), [start, start + 1, start + 2], ROWS[start : start + 3])
    assert len(places) == 5 and len(places._latest) <= 3 * 5
    assert not places.features((None, None), [21]).any()
    np.testing.assert_array_equal(places.features((None, 27), [28])[1], ROWS[28])
    places.remember((None, None), list(range(100, 140)), ROWS)
    np.testing.assert_array_equal(places.features((137, 138), [139])[2], ROWS[39])


def test_repeated_tokens_restored_find_the_same():
    saved, restored = RepeatedTokens(WIDTH, 20), RepeatedTokens(WIDTH, 20)
    saved.remember((None, 4), [5, 6, 5, 6, 7, 5, 6] * 4, ROWS[:28])
    restored.restore(saved.state())
    np.testing.assert_array_equal(restored.features((7, 5), [6, 7]), saved.features((7, 5), [6, 7]))


def told(places: SimilarRouting, rows: np.ndarray, place: int = NOWHERE) -> int:
    """Remembers `rows` in windows of four tokens."""
    for start in range(0, len(rows), 4):
        earlier = rows[start - 1] if start else np.zeros(WIDTH)
        place = places.remember(place, rows[start : start + 4], rows[start : start + 4], earlier)
    return place


def test_a_text_that_comes_again_is_recognised_by_its_routing():
    places = SimilarRouting(WIDTH, capacity=200)
    told(places, ROWS)
    place = told(places, ROWS[:12])
    use = places.features(place, 2, NONE)[0]
    wanted = ROWS[12:14].any(axis=0)
    assert use[wanted].min() > use[~wanted].max()


def test_texts_between_do_not_change_what_followed():
    plain, mixed = SimilarRouting(WIDTH, 400), SimilarRouting(WIDTH, 400)
    place, one, two = told(plain, ROWS), NOWHERE, NOWHERE
    for start in range(0, 40, 4):
        earlier = ROWS[start - 1] if start else np.zeros(WIDTH)
        one = mixed.remember(one, ROWS[start : start + 4], ROWS[start : start + 4], earlier)
        two = mixed.remember(two, OTHERS[start : start + 4], OTHERS[start : start + 4], NONE)
    followers = [mixed._next[number] for number in range(400) if number in mixed._history.held]
    assert mixed._next[3] == 8 and mixed._next[7] == 12 and followers.count(NOWHERE) == 2
    assert place == 39 and (one, two) == (75, 79)


def test_unknown_places_say_nothing():
    places = SimilarRouting(WIDTH, capacity=50)
    assert not places.features(NOWHERE, 3, NONE).any()
    last = told(places, ROWS)
    assert places.features(last, 3, NONE).any()
    told(places, np.concatenate([ROWS, ROWS]))
    assert not places.features(last, 3, NONE).any()


@pytest.mark.parametrize("capacity", [60, 25])
def test_similar_routing_restored_goes_on_alike(capacity):
    saved, restored = SimilarRouting(WIDTH, 60), SimilarRouting(WIDTH, capacity)
    told(saved, np.concatenate([OTHERS, ROWS]))
    restored.restore(saved.state())
    places = [told(each, ROWS[:12]) for each in (saved, restored)]  # no two places alike: ties go by where they lie
    assert np.isfinite(restored.features(places[1], 3, NONE)).all()
    if capacity == 60:
        np.testing.assert_allclose(restored.features(places[1], 3, NONE), saved.features(places[0], 3, NONE), rtol=1e-5)


def test_states_of_another_width_are_refused():
    for kind, remember in ((RepeatedTokens, lambda p: p.remember((None,), [1, 2], ROWS[:2])), (SimilarRouting, told)):
        places = kind(WIDTH, 60)
        remember(places, ROWS) if kind is SimilarRouting else remember(places)
        with pytest.raises(ValueError, match="shape"):
            kind(30, 60).restore(places.state())
