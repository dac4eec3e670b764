"""A verification window against decoding token by token: same transforms, same tokens before each position."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moespac.actors.core import Proposal, Sampling
from moespac.actors.policy.sampler import Sampler
from moespac.actors.policy.verification import step_distributions, verify

VOCAB = 8
PENALISED = {"repetition_penalty": 1.6, "presence_penalty": 0.7, "frequency_penalty": 0.4, "logit_bias": ((2, 1.5),)}


def model(tokens) -> np.ndarray:
    """Logits that depend on all of `tokens`."""
    return np.random.default_rng([len(tokens), *map(int, tokens)]).normal(0, 1.5, VOCAB)


def decode(sampler: Sampler, tokens: list[int], n: int) -> list[int]:
    whole = list(tokens)
    for _ in range(n):
        whole.append(sampler.choose(model(whole), whole))
    return whole[len(tokens) :]


samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.6, 1.0, 1.5]),
    top_p=st.sampled_from([1.0, 0.8]),
    min_p=st.sampled_from([0.0, 0.1]),
    seed=st.integers(0, 2**64 - 1),
    repetition_penalty=st.sampled_from([1.0, 1.6]),
    presence_penalty=st.sampled_from([0.0, 0.7]),
    frequency_penalty=st.sampled_from([0.0, 0.4]),
    logit_bias=st.sampled_from([(), ((2, 1.5),)]),
)


@given(samplings, st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=6), st.integers(0, 4), st.data())
def test_a_window_emits_what_decoding_would(sampling, tokens, gamma, data):
    sampler = Sampler(sampling, data.draw(st.integers(0, len(tokens))))
    expected = decode(sampler, tokens, gamma + 1)
    right = data.draw(st.integers(0, gamma))
    draft = [*expected[:right], *data.draw(st.lists(st.integers(0, VOCAB - 1), min_size=gamma, max_size=gamma))][:gamma]
    rows = np.stack([model([*tokens, *draft[:i]]) for i in range(gamma + 1)])
    done = verify(sampler, tokens, Proposal(tuple(draft)), rows)
    assert list(done.emitted) == expected[: done.accepted + 1] and done.accepted >= right


def test_penalties_see_the_drafts_before_a_position():
    """With the prompt's penalties alone the second token would be another one."""
    sampler, row = Sampler(Sampling(presence_penalty=5.0), 1), np.array([3.0, 2.0, 0.0])
    done = verify(sampler, [2], Proposal((0, 0)), np.stack([row] * 3))
    assert done.emitted == (0, 1)


def test_rejection_draws_p_and_q_under_the_same_transforms():
    sampler = Sampler(Sampling(1.0, seed=3, verification="rejection", **PENALISED), 2)
    whole = [1, 5, 2, 2]
    rows = np.stack([model(whole[: 2 + i]) for i in range(3)])
    p, q = step_distributions(sampler, whole, Proposal((2, 2), tuple(rows[:2])), rows)
    for of_target, of_draft in zip(p, q, strict=False):
        assert (of_target == of_draft).all()
    done = verify(sampler, whole[:2], Proposal((2, 2), tuple(rows[:2])), rows)
    assert done.accepted == 2  # p = q: everything stands
    _, q = step_distributions(sampler, whole, Proposal((2, 2)), rows)
    assert [int(np.argmax(of_draft)) for of_draft in q] == [2, 2] and {of_draft.sum() for of_draft in q} == {1.0}


@pytest.mark.parametrize("verification", ["coupled", "rejection"])
def test_greedy_and_windows_without_a_draft_do_not_depend_on_the_verification(verification):
    for seed in range(20):
        greedy = Sampler(Sampling(seed=seed, verification=verification), 1)
        rows = np.stack([model([seed, i]) for i in range(2)])
        assert verify(greedy, [1], Proposal((int(rows[0].argmax()),)), rows).accepted == 1
        drawn = Sampler(Sampling(1.0, seed=seed, verification=verification), 1)
        assert verify(drawn, [1], Proposal(), rows[:1]).emitted == (drawn.choose(rows[0], [1]),)


def test_drafts_for_rejection_sampling_have_noise_of_their_windows_own():
    """Else a draft that fell, and what it made resident, would tell of the noise that draws the next one."""
    flat, tokens = np.zeros(VOCAB), [[0] * n for n in range(40, 80)]

    def drawn(verification: str, window: int) -> list[int]:
        sampler = Sampler(Sampling(1.0, seed=1, verification=verification), 1).drafting(window)
        return [sampler.choose(flat, before) for before in tokens]

    shared = [Sampler(Sampling(1.0, seed=1), 1).choose(flat, before) for before in tokens]
    assert drawn("coupled", 38) == drawn("coupled", 39) == shared
    windows = [drawn("rejection", 38), drawn("rejection", 39), shared]
    for i in range(3):
        agreed = sum(a == b for a, b in zip(windows[i], windows[i - 1], strict=True))
        assert agreed < 15  # 5 are expected
    greedy = Sampler(Sampling(verification="rejection"), 1)
    assert greedy.drafting(5) is greedy


def test_rows_must_fit_the_draft():
    with pytest.raises(ValueError, match="1 rows of logits; a draft of 1 needs 2"):
        verify(Sampler(Sampling(), 1), [1], Proposal((0,)), np.zeros((1, VOCAB)))
