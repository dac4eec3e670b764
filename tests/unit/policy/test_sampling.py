"""Coupled sampling: its distribution, its determinism, and agreement with transformers' warpers."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from moespac.actors.core import Sampling
from moespac.actors.policy.sampling import choose_token, draw_token, gumbel, independent_noise, warp


def transformers_log_probabilities(logits, sampling):
    scores = torch.from_numpy(logits).double()[None]
    scores = TemperatureLogitsWarper(sampling.temperature)(None, scores)
    if sampling.top_k:
        scores = TopKLogitsWarper(sampling.top_k)(None, scores)
    if sampling.top_p < 1.0:
        scores = TopPLogitsWarper(sampling.top_p)(None, scores)
    if sampling.min_p:
        scores = MinPLogitsWarper(sampling.min_p)(None, scores)
    return scores.log_softmax(-1)[0].numpy()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
@pytest.mark.parametrize("top_k", [0, 1, 5, 1000])
@pytest.mark.parametrize(("top_p", "min_p"), [(1.0, 0.0), (0.9, 0.03), (0.5, 0.3), (0.01, 0.9), (1.0, 0.1), (0.9, 0.0)])
def test_warping_is_transformers(tied, temperature, top_k, top_p, min_p):
    rng = np.random.default_rng(3)
    sampling = Sampling(temperature, top_p, top_k, min_p=min_p)
    for _ in range(10):
        # Tied: whole logits, few values, so that equal ones meet at every cut.
        logits = (rng.integers(-3, 3, 40) if tied else rng.normal(0, 2, 40)).astype(np.float32)
        ours, theirs = warp(logits, sampling), transformers_log_probabilities(logits, sampling)
        if tied:
            # Which of equal logits at the cut are kept is left open there; how many is not.
            ours, theirs = np.sort(ours), np.sort(theirs)
        np.testing.assert_allclose(ours, theirs, atol=1e-12)


@pytest.mark.parametrize("top_p", [0.999, 0.95, 0.6])
def test_top_p_of_a_large_peaked_vocabulary_is_transformers(top_p):
    logits = np.random.default_rng(8).normal(0, 4, 20_000).astype(np.float32)
    sampling = Sampling(1.0, top_p)
    expected = transformers_log_probabilities(logits, sampling)
    assert np.isfinite(expected).sum() > 3
    np.testing.assert_allclose(warp(logits, sampling), expected, atol=1e-12)


def test_top_k_keeps_ties_and_top_p_keeps_the_lowest_index():
    def kept(logits, **limits):
        return np.flatnonzero(np.isfinite(warp(np.array(logits), Sampling(1.0, **limits)))).tolist()

    assert kept([1.0, 2.0, 2.0, 2.0], top_k=2) == [1, 2, 3]
    assert kept([1.0, 2.0, 2.0, 2.0], top_p=1e-9) == [1]
    assert kept([0.0] * 5, top_p=0.5) == [0, 1, 2]
    assert kept([0.0] * 7, top_p=1e-300) == [0]
    assert kept([1.0, 2.0, 2.0, -9.0], min_p=1.0) == [1, 2]


def test_excluded_logits_stay_excluded_and_tiny_temperatures_do_not_overflow():
    logp = warp(np.array([-np.inf, 3e4, 2e4, -1e4], dtype=np.float32), Sampling(1e-305))
    assert logp.tolist() == [-np.inf, 0.0, -np.inf, -np.inf]
    assert choose_token(np.array([0.0, 9.0, -np.inf]), Sampling(1e-300), 5) == 1


def test_input_is_left_alone():
    logits = np.array([1.0, 2.0, 3.0])
    choose_token(logits, Sampling(0.5, 0.5, 2), 0)
    assert logits.tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_greedy_takes_the_first_of_equals_like_torch(dtype):
    for seed in range(50):
        logits = np.random.default_rng(seed).integers(0, 4, 100).astype(dtype)
        assert choose_token(logits, Sampling(seed=seed), seed) == int(torch.argmax(torch.from_numpy(logits)))
        assert choose_token(logits, Sampling(), 0) == int(np.flatnonzero(logits == logits.max())[0])


@pytest.mark.parametrize(
    "sampling",
    [Sampling(1.0, seed=11), Sampling(0.7, seed=12), Sampling(1.3, 0.8, seed=13), Sampling(1.0, 0.95, 4, 14)],
)
def test_frequencies_match_probabilities(sampling):
    logits = np.random.default_rng(0).normal(0, 1, 12).astype(np.float32)
    expected = np.exp(warp(logits, sampling)) * 6000
    drawn = np.bincount([choose_token(logits, sampling, at) for at in range(6000)], minlength=12)
    kept = expected > 0
    assert not drawn[~kept].any()
    chi_square = ((drawn - expected)[kept] ** 2 / expected[kept]).sum()
    # 0.999 quantiles of chi-square by degrees of freedom.
    quantile = {2: 13.8, 3: 16.3, 4: 18.5, 5: 20.5, 6: 22.5, 7: 24.3, 8: 26.1, 9: 27.9, 10: 29.6, 11: 31.3}
    assert chi_square < quantile[kept.sum() - 1]


def test_the_choice_is_log_probability_plus_noise():
    logits = np.random.default_rng(1).normal(0, 2, 300).astype(np.float32)
    for position in range(50):
        sampling = Sampling(0.8, 0.9, 50, seed=2**64 - 1)
        noisy = warp(logits, sampling) + gumbel(sampling.seed, position, 300)
        assert choose_token(logits, sampling, position) == int(np.argmax(noisy))


@given(
    arrays(np.float32, st.integers(1, 40), elements=st.floats(-50, 50, width=32)),
    st.sampled_from([Sampling(), Sampling(1.0, seed=3), Sampling(0.5, 0.8, 7, 4), Sampling(1.5, min_p=0.1, seed=5)]),
    st.sampled_from([None, 0, 9]),
    st.integers(0, 1000),
)
def test_a_drawn_token_is_the_chosen_one_and_says_how_sure_it_is(logits, sampling, window, position):
    token, confidence = draw_token(logits, sampling, position, window)
    assert token == choose_token(logits, sampling, position, window)
    assert 0.0 < confidence <= 1.0
    if sampling.greedy:
        scores = logits.astype(np.float64)
    else:
        scores = warp(logits, sampling)
        scores += gumbel(sampling.seed, position, len(logits)) if window is None else 0.0
    softmax = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
    assert confidence == pytest.approx(softmax[token], rel=1e-5)


def test_a_token_that_leads_by_much_under_noise_stands_more_often():
    rng, sampling = np.random.default_rng(6), Sampling(1.0, seed=2)
    sure, stands = [], []
    for at in range(600):
        draft = rng.normal(0, 1, 200)
        token, confidence = draw_token(draft, sampling, at)
        sure.append(confidence)
        stands.append(choose_token(draft + rng.normal(0, 0.5, 200), sampling, at) == token)
    most = np.array(sure) > np.median(sure)
    assert np.mean(np.array(stands)[most]) > np.mean(np.array(stands)[~most]) + 0.2


def test_noise_is_shared_by_vocabularies_of_different_sizes():
    assert (gumbel(5, 9, 100) == gumbel(5, 9, 4096)[:100]).all()


def test_noise_differs_between_seeds_and_positions():
    rows = np.stack([gumbel(seed, position, 64) for seed in (0, 1, 2**63) for position in (0, 1, 2**40)])
    assert len(np.unique(rows.round(9))) == rows.size


def test_noise_is_frozen():
    # Philox4x64-10 (Salmon et al. 2011) under key (0, 0): what was said once must be said again by any release.
    np.testing.assert_allclose(
        gumbel(0, 0, 3), [-1.49545161157695, -0.3511371183614868, -0.7859067841514997], rtol=1e-12
    )


def test_the_second_stream_is_uniform_and_independent_of_the_first():
    pairs = [(independent_noise(7, at, 500), gumbel(7, at, 500)) for at in range(400)]
    uniform = np.sort([number for (number, _), _ in pairs])
    assert np.abs(uniform - (np.arange(400) + 0.5) / 400).max() < 1.95 / 20  # Kolmogorov–Smirnov, 0.1 %
    ours, theirs = (
        np.exp(-np.exp(-np.concatenate(rows))) for rows in zip(*((b, c) for (_, b), c in pairs), strict=True)
    )
    assert abs(np.corrcoef(ours, theirs)[0, 1]) < 3.3 / np.sqrt(ours.size)
    assert not np.isin(ours, theirs).any()


def test_noise_is_gumbel():
    noise = np.sort(np.concatenate([gumbel(7, position, 1000) for position in range(20)]))
    assert np.isfinite(noise).all()
    distance = np.abs(np.exp(-np.exp(-noise)) - (np.arange(noise.size) + 0.5) / noise.size).max()
    assert distance < 1.95 / np.sqrt(noise.size)  # Kolmogorov–Smirnov, 0.1 %


def test_good_draft_often_agrees():
    rng = np.random.default_rng(4)
    target = rng.normal(0, 2, 500)
    draft = target + rng.normal(0, 0.2, 500)
    sampling = Sampling(1.0, seed=3)
    agreed = np.mean([choose_token(target, sampling, at) == choose_token(draft, sampling, at) for at in range(300)])
    assert agreed > 0.7


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0)])
@pytest.mark.parametrize("logits", [[1.0, np.nan], [np.inf, 1.0], [-np.inf, -np.inf], [], [[1.0, 2.0]]])
def test_broken_logits_are_refused(logits, sampling):
    with pytest.raises(ValueError, match="logits"):
        choose_token(np.array(logits), sampling, 0)


@pytest.mark.parametrize(
    ("sampling", "field"),
    [
        (Sampling(-1.0), "temperature"),
        (Sampling(float("nan")), "temperature"),
        (Sampling(float("inf")), "temperature"),
        (Sampling(1.0, top_p=0.0), "top_p"),
        (Sampling(1.0, top_p=1.1), "top_p"),
        (Sampling(1.0, top_k=-1), "top_k"),
        (Sampling(1.0, min_p=-0.1), "min_p"),
        (Sampling(1.0, min_p=float("nan")), "min_p"),
        (Sampling(1.0, seed=-1), "seed"),
        (Sampling(1.0, seed=2**64), "seed"),
    ],
)
def test_invalid_sampling_is_refused(sampling, field):
    with pytest.raises(ValueError, match=field):
        choose_token(np.zeros(4), sampling, 0)
