"""Rejection sampling: the step's output distribution in closed form, and that the code follows the form."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rejection_check import TOLERANCE, distance, first_token

from moespac.actors.policy import rejection
from moespac.actors.policy.acceptance import Acceptance
from moespac.actors.policy.rejection import accept_by_rejection, acceptance_probabilities, point_mass, residual

V = 3


def distributions(size: int):
    # Whole numbers give exact zeros: tokens that top-k or top-p has excluded.
    weights = st.lists(st.integers(0, 6), min_size=size, max_size=size).filter(any)
    return weights.map(lambda w: np.array(w, dtype=np.float64) / sum(w))


@given(distributions(6), distributions(6))
def test_the_output_is_distributed_as_p(p, q):
    assert distance(first_token(p, q), p) < TOLERANCE


@given(distributions(6), st.integers(0, 5))
def test_a_proposal_that_was_not_drawn_is_a_point_mass(p, token):
    q = point_mass(token, 6)
    assert distance(first_token(p, q), p) < TOLERANCE
    assert acceptance_probabilities(p, q)[token] == p[token]


@pytest.mark.parametrize("factor", [0.98, 1.02])
def test_a_bias_of_two_per_cent_is_found(factor):
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.6, 0.2])
    assert distance(first_token(p, q, factor), p) > 1000 * TOLERANCE


def test_equal_distributions_accept_everything():
    p = np.array([0.25, 0.75, 0.0])
    accepted = acceptance_probabilities(p, p)
    assert accepted[:2].tolist() == [1.0, 1.0] and np.isnan(accepted[2])
    assert residual(p, p).tolist() == p.tolist()


def _window_law(p: dict, q: dict, gamma: int) -> dict[tuple[int, ...], float]:
    """Probability of every output of a step, the draft drawn from q and each verdict as the formula says."""
    law: dict[tuple[int, ...], float] = {}
    for draft in product(range(V), repeat=gamma):
        weight = float(np.prod([q[draft[:i]][x] for i, x in enumerate(draft)]))
        for i, token in enumerate(draft):
            if weight == 0:
                break
            before = draft[:i]
            stands = float(acceptance_probabilities(p[before], q[before])[token])
            for other, share in enumerate(residual(p[before], q[before])):
                law[(*before, other)] = law.get((*before, other), 0.0) + weight * (1 - stands) * share
            weight *= stands
        for last, share in enumerate(p[draft]):
            law[(*draft, last)] = law.get((*draft, last), 0.0) + weight * share
    return law


@given(st.data())
def test_every_token_of_a_window_follows_p(data):
    """The law of the first n tokens, whatever follows them, is the target's own product."""
    prefixes = [before for n in range(3) for before in product(range(V), repeat=n)]
    p = {before: data.draw(distributions(V)) for before in prefixes}
    q = {before: data.draw(distributions(V)) for before in prefixes if len(before) < 2}
    law = _window_law(p, q, 2)
    for before in prefixes:
        reached = sum(weight for out, weight in law.items() if len(out) > len(before) and out[: len(before)] == before)
        for token in range(V):
            chosen = sum(
                w for out, w in law.items() if len(out) > len(before) and out[: len(before) + 1] == (*before, token)
            )
            assert chosen == pytest.approx(reached * p[before][token], abs=TOLERANCE)


def test_verdicts_have_the_probabilities_of_the_formula():
    """The code's own draws against the closed form: acceptance, the replacement's law, the token behind the draft."""
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.6, 0.2])
    outcomes = [accept_by_rejection([1], [p, p[::-1]], [q], seed, 4) for seed in range(4000)]
    assert sum(done.accepted for done in outcomes) / 4000 == pytest.approx(0.5, abs=0.026)  # 3.3 standard errors
    assert {done.emitted for done in outcomes if not done.accepted} == {(0,)}
    behind = np.bincount([done.emitted[1] for done in outcomes if done.accepted], minlength=V)
    np.testing.assert_allclose(behind / behind.sum(), p[::-1], atol=0.037)


def test_it_is_a_function_of_its_arguments(monkeypatch):
    p, q = [np.full(V, 1 / 3)] * 3, [np.array([0.6, 0.2, 0.2])] * 2
    assert accept_by_rejection([0, 1], p, q, 5, 9) == accept_by_rejection([0, 1], p, q, 5, 9)
    monkeypatch.setattr(rejection, "independent_noise", lambda seed, position, vocab: (1e-9, np.arange(vocab)))
    assert accept_by_rejection([0, 1], p, q, 5, 9) == Acceptance((0, 1, 2), 2)


def test_misfits_are_refused():
    p, q = [np.full(V, 1 / 3)] * 2, [np.array([1.0, 0.0, 0.0])]
    with pytest.raises(ValueError, match="2 rows of p and 1 of q; a draft of 2"):
        accept_by_rejection([0, 1], p, q, 0, 0)
    with pytest.raises(ValueError, match="draft token 1 at 0 has no probability"):
        accept_by_rejection([1], p, q, 0, 0)
