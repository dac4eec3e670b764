"""Acceptance by place, over all requests and in one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moespac.actors.policy.acceptance_rates import (
    ALIKE,
    BOUNDS,
    AcceptanceRates,
    Alikeness,
    RequestRates,
    Tried,
    expected_tokens,
)

CHAINS = st.lists(st.tuples(st.integers(0, 16), st.booleans()), max_size=40)


def simulate(rates: np.ndarray, gamma: int, rng: np.random.Generator) -> Tried:
    stands = rng.random(gamma) < rates[:gamma]
    accepted = int(np.argmin(stands)) if not stands.all() else gamma
    return chain(min(gamma, accepted + 1), accepted, len(rates))


def chain(tried: int, accepted: int, longest: int) -> Tried:
    """Of positions from the first on."""
    return Tried(range(tried), accepted, longest)


def test_it_converges_to_each_positions_rate():
    truth, rng, learned = np.array([0.9, 0.8, 0.5, 0.3]), np.random.default_rng(0), AcceptanceRates(np.full(4, 0.6))
    seen = np.zeros(4)
    for step in range(3000):
        learned.observe(simulate(truth, 4, rng))
        if step >= 1000:
            seen += learned.rates() / 2000
    assert np.abs(seen - truth).max() < 0.06


def test_places_never_tried_take_the_mean_where_places_are_alike():
    alike, unlike = AcceptanceRates(np.full(16, 0.6), shared=4.0), AcceptanceRates(np.full(16, 0.6))
    for _ in range(200):
        alike.observe(chain(2, 2, 16))
        unlike.observe(chain(2, 2, 16))
    assert alike.rates()[8] > 0.9 and unlike.rates()[8] == 0.6


def test_of_a_chain_the_place_that_fell_is_told_from_those_that_stood():
    learned = AcceptanceRates(np.full(4, 0.5))
    for _ in range(100):
        learned.observe(Tried([3, 1, 3, 0], 3, 4))
    rates = learned.rates()
    assert rates[3] > 0.95 and rates[1] > 0.9 and rates[0] < 0.05 and rates[2] == 0.5


@given(CHAINS, st.floats(0.05, 0.95))
def test_rates_stay_within_bounds(chains, prior):
    learned, request = AcceptanceRates(np.full(17, prior)), RequestRates(17)
    for accepted, failed in chains:
        request.observe(chain(accepted + failed, accepted, 17))
        learned.observe(chain(accepted + failed, accepted, 17))
    for rates in (learned.rates(), request.corrected(learned.rates())):
        assert (rates >= BOUNDS[0]).all() and (rates <= BOUNDS[1]).all()


def test_a_new_request_is_as_all_others_are():
    rates = np.array([0.2, 0.5, 0.9])
    assert np.allclose(RequestRates(3).corrected(rates), rates)


@pytest.mark.parametrize(("accepted", "above"), [(3, True), (0, False)])
def test_a_request_departs_from_the_others(accepted, above):
    rates, request = np.array([0.6, 0.6, 0.6]), RequestRates(3)
    for _ in range(20):
        request.observe(chain(min(3, accepted + 1), accepted, 3))
    corrected = request.corrected(rates)
    assert (corrected > 0.8).all() if above else (corrected < 0.2).all()


@pytest.mark.parametrize(("truth", "expected"), [((0.7,), ALIKE[3:]), ((0.2, 0.95), ALIKE[:2])])
def test_how_alike_requests_are_is_learned_from_them(truth, expected):
    rng, rates, alike = np.random.default_rng(1), np.full(8, np.mean(truth)), Alikeness()
    for number in range(60):
        request = RequestRates(8)
        for _ in range(20):
            seen = simulate(np.full(8, truth[number % len(truth)]), 4, rng)
            alike.observe(request, rates, seen)
            request.observe(seen)
    assert alike.tokens in expected


def test_a_chain_fails_once_at_most():
    with pytest.raises(ValueError, match="1 accepted of 3 tried"):
        chain(3, 1, 4)


def test_expected_tokens_of_a_constant_rate():
    alpha = 0.7
    expected = [(1 - alpha ** (gamma + 1)) / (1 - alpha) for gamma in range(17)]
    assert np.allclose(expected_tokens(np.full(16, alpha)), expected)
