"""Step times learned from steps: the union of experts, the verification, the drafts."""

from __future__ import annotations

import numpy as np
import pytest

from moespac.actors.policy.step_times import DraftTimes, ExpertGrowth, VerifySample, VerifyTimes

WINDOWS = np.arange(1, 18)


def true_seconds(hits: float, misses: float, tokens: int) -> float:
    return 3e-3 + 20e-6 * hits + 200e-6 * misses + 300e-6 * tokens


def sample(tokens: int, rng: np.random.Generator, noise: float = 0.05) -> VerifySample:
    hits, misses = (round(first * tokens**0.6 * rng.uniform(0.9, 1.1)) for first in (40, 15))
    return VerifySample(tokens, hits, misses, true_seconds(hits, misses, tokens) * rng.lognormal(0.0, noise))


@pytest.mark.parametrize("growth", [0.4, 0.9])
def test_experts_grow_as_they_were_seen_to(growth):
    learned = ExpertGrowth()
    for tokens in (1, 3, 5, 9, 3, 1, 5):
        learned.observe(tokens, round(60 * tokens**growth))
    assert learned.experts(np.array([17]))[0] == pytest.approx(60 * 17**growth, rel=0.25)


def test_one_window_seen_grows_as_assumed():
    learned = ExpertGrowth()
    for _ in range(20):
        learned.observe(1, 64)
    assert learned.experts(np.array([9]))[0] == pytest.approx(65 * 9**0.6 - 1, rel=1e-6)


def test_verification_is_predicted_for_windows_never_seen():
    rng, learned = np.random.default_rng(1), VerifyTimes(17)
    for _ in range(60):
        learned.observe(sample(int(rng.choice([1, 3, 6])), rng))
    truth = np.array([true_seconds(40 * w**0.6, 15 * w**0.6, int(w)) for w in WINDOWS])
    assert np.abs((learned.seconds() * learned.pace) / truth - 1).max() < 0.15


def test_a_window_that_departs_from_the_formula_is_corrected():
    """Kernels change at sizes of their own: a window of 9 takes half as long again as its experts say."""
    rng, learned = np.random.default_rng(2), VerifyTimes(17)
    for step in range(240):
        one = sample(9 if step % 4 == 0 else int(rng.choice([1, 2, 3, 4])), rng)
        learned.observe(VerifySample(one.tokens, one.hits, one.misses, one.seconds * (1.5 if one.tokens == 9 else 1)))
    truth = 1.5 * true_seconds(40 * 9**0.6, 15 * 9**0.6, 9)
    assert (learned.seconds() * learned.pace)[8] == pytest.approx(truth, rel=0.15)


def test_steps_that_were_held_up_are_outliers():
    rng, learned = np.random.default_rng(3), VerifyTimes(17)
    for step in range(120):
        one = sample(int(rng.choice([1, 3, 5])), rng)
        learned.observe(VerifySample(one.tokens, one.hits, one.misses, one.seconds * (20 if step % 10 == 0 else 1)))
    truth = true_seconds(40 * 5**0.6, 15 * 5**0.6, 5)
    assert (learned.seconds() * learned.pace)[4] == pytest.approx(truth, rel=0.25)


def test_drafts_cost_per_token_and_per_token_behind():
    rng, learned = np.random.default_rng(4), DraftTimes((0.1, 0.3, 0.01))
    for _ in range(60):
        gamma, behind = int(rng.integers(1, 9)), int(rng.choice([0, 1, 2, 300]))
        learned.observe(gamma, behind, (5e-4 + 2e-3 * gamma + 4e-5 * behind) * rng.lognormal(0, 0.05))
    times = learned.seconds(16, pass_s=1.0)
    assert times[8] == pytest.approx(5e-4 + 16e-3, rel=0.1) and times[0] == 0
    assert learned.catch_up(1000, pass_s=1.0) == pytest.approx(4e-2, rel=0.2)


def test_a_draft_never_asked_is_assumed_in_proportion_to_a_pass():
    unknown = DraftTimes((0.1, 0.3, 0.01))
    assert unknown.seconds(2, pass_s=10e-3) == pytest.approx([0.0, 4e-3, 7e-3])
    assert unknown.catch_up(100, pass_s=10e-3) == pytest.approx(10e-3)
