"""What drafts that end themselves come to, against drawing them one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moespac.actors.core import DraftChoice
from moespac.actors.policy.chain import EDGES, PLACES, Chain
from moespac.actors.policy.chain_forecast import floors_of, forecast

SURE_OF = (*EDGES, 1.0, None)
"""A confidence of each place."""


def drawn(chances: np.ndarray, shares: np.ndarray, floors: np.ndarray, times: int) -> tuple[float, np.ndarray]:
    """As `forecast`, of so many chains."""
    rng, tokens, lengths = np.random.default_rng(0), 0.0, np.zeros(len(floors) + 1)
    choice = DraftChoice("model", len(floors), chances=tuple(chances), floors=tuple(floors))
    for places in rng.choice(PLACES, (times, len(floors)), p=shares):
        chain, stands = Chain(choice, 99), 1.0
        while chain.wants_more():
            place = places[len(chain.places)]
            chain.add(None if SURE_OF[place] is None else SURE_OF[place] - 1e-9)
            stands *= chances[chain.places[-1]]
            tokens += stands
        lengths[len(chain.places)] += 1
    return 1.0 + tokens / times, lengths / times


@pytest.mark.parametrize("floor", [0.0, 0.2, 0.5, 0.8])
def test_it_agrees_with_chains_drawn_one_by_one(floor):
    chances = np.array([0.1, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.85, 0.9, 0.95, 0.99, 0.7])
    shares = np.array([0.1, 0.05, 0.05, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.0])
    floors = np.array([0.0, *[floor] * 9])
    tokens, lengths = forecast(chances, shares, floors)
    expected, counted = drawn(chances, shares, floors, 4000)
    assert tokens == pytest.approx(expected, rel=0.03)
    assert np.arange(11) @ lengths == pytest.approx(np.arange(11) @ counted, rel=0.06, abs=0.1)


@settings(max_examples=50)
@given(st.lists(st.floats(0.01, 0.99), min_size=2, max_size=12), st.lists(st.floats(0, 1), min_size=1, max_size=16))
def test_bounds(chances, floors):
    chances, floors = np.array(chances), np.array([0.0, *floors])
    shares = np.full(len(chances), 1 / len(chances))
    tokens, lengths = forecast(chances, shares, floors)
    whole, _ = forecast(chances, shares, np.zeros(len(floors)))
    assert lengths.sum() == pytest.approx(1.0) and (lengths >= 0).all() and lengths[0] == 0.0
    assert 1.0 + chances.mean() <= tokens + 0.04 and tokens <= whole + 1e-9
    assert whole == pytest.approx(np.sum(chances.mean() ** np.arange(len(floors) + 1)), rel=0.02, abs=0.05)


@given(st.floats(0.05, 0.95), st.floats(0.0, 1.0), st.integers(1, 16))
def test_floors_of_constant_costs_are_what_the_next_token_costs(chance, cost, count):
    floors = floors_of(np.full(count, cost), chance)
    assert floors[0] == 0.0
    assert floors[1:] == pytest.approx(np.full(count - 1, cost / chance))


def test_a_dear_token_is_drafted_where_cheap_ones_follow():
    floors = floors_of(np.array([0.1, 0.9, 0.1, 0.1, 0.1]), 0.9)
    assert floors[1] == pytest.approx(1.2 / (0.9 + 0.81 + 0.729 + 0.6561))
    assert floors[4] == pytest.approx(0.1 / 0.9)


def test_no_draft_is_shorter_for_a_lower_rate():
    costs, (chances, shares) = np.full(16, 0.3), (np.array([0.2, 0.6, 0.95]), np.array([0.2, 0.3, 0.5]))
    drafted = []
    for rate in (0.5, 1.0, 1.5, 2.0):
        _, lengths = forecast(chances, shares, floors_of(rate * costs, float(chances @ shares)))
        drafted.append(float(np.arange(17) @ lengths))
    assert drafted == sorted(drafted, reverse=True) and drafted[0] > 2 * drafted[-1]
