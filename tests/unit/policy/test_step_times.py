"""Step times learned from steps: windows against each other, drafts, and what is not known of them."""

from __future__ import annotations

import numpy as np
import pytest

from moespac.actors.policy.robust_filter import RobustFilter
from moespac.actors.policy.step_times import GROWTH, DraftTimes, WindowTimes

WINDOWS = np.arange(1, 18)


def true_seconds(tokens) -> np.ndarray:
    """A pass, experts whose union grows, and arithmetic."""
    return 3e-3 + 4e-3 * np.asarray(tokens) ** 0.6 + 3e-4 * np.asarray(tokens)


def learned(steps: int, choices, seed: int = 0, noise: float = 0.15, seconds=true_seconds, load=lambda step: 1.0):
    rng, times = np.random.default_rng(seed), WindowTimes(17)
    for step in range(steps):
        tokens = int(rng.choice(choices))
        times.observe(tokens, float(seconds(tokens)) * load(step) * rng.lognormal(0.0, noise))
    return times


def test_windows_never_seen_lie_between_their_neighbours():
    times = learned(150, [1, 3, 6, 9])
    truth = true_seconds(WINDOWS)
    assert times.seconds == pytest.approx(truth[0], rel=0.2)
    assert np.abs(times.factors()[:9] / (truth / truth[0])[:9] - 1).max() < 0.12


def test_a_window_that_departs_from_the_line_is_found_out():
    """Kernels change at sizes of their own: a window of 9 takes half as long again as others promise."""

    def seconds(tokens):
        return true_seconds(tokens) * (1.5 if tokens == 9 else 1.0)

    factors = learned(400, [1, 2, 3, 4, 9], seconds=seconds).factors()
    assert factors[8] == pytest.approx(seconds(9) / seconds(1), rel=0.15)
    assert factors[2] == pytest.approx(seconds(3) / seconds(1), rel=0.15)


def test_load_that_comes_and_goes_changes_no_factor():
    """Long windows happen to be verified while others use the machine."""
    rng, times = np.random.default_rng(5), WindowTimes(17)
    for step in range(600):
        tokens = int(rng.choice([1, 2, 5]))
        busy = 2.0 if step // 100 % 2 else 1.0
        times.observe(tokens, float(true_seconds(tokens)) * busy * rng.lognormal(0.0, 0.1))
    assert times.factors()[4] == pytest.approx(true_seconds(5) / true_seconds(1), rel=0.12)
    assert times.seconds == pytest.approx(2 * true_seconds(1), rel=0.15)


def test_caches_that_fill_at_first_are_not_taken_for_cheap_long_windows():
    """The first steps take three times as long, and the windows grow meanwhile."""
    times = WindowTimes(17)
    for step in range(40):
        times.observe(1 + step // 3, float(true_seconds(1 + step // 3)) * (1 + 2 * 0.9**step))
    assert times.factors()[9] > 0.5 * 10**GROWTH


def test_steps_that_were_held_up_are_outliers():
    held_up = learned(300, [1, 3, 5], seed=3, load=lambda step: 20.0 if step % 10 == 0 else 1.0)
    assert held_up.seconds == pytest.approx(true_seconds(1), rel=0.3)
    assert held_up.factors()[4] == pytest.approx(true_seconds(5) / true_seconds(1), rel=0.2)


def test_doubt_is_of_what_was_not_seen_beside_each_other():
    times = learned(200, [2, 3])
    assert times.doubts(3)[2] == 0.0
    assert times.doubts(3)[1] < 0.05 < times.doubts(3)[8] < times.doubts(3)[16]
    assert times.doubts(1)[8] > times.doubts(3)[8]
    before = times.doubts(2)[2]
    for _ in range(1000):
        times.observe(2, 1e-2)
    assert times.doubts(2)[2] > before, "what is not seen is forgotten"


def test_drafts_cost_per_token_and_per_token_behind():
    rng, times = np.random.default_rng(4), DraftTimes((0.1, 0.3, 0.01))
    for _ in range(60):
        gamma, behind = int(rng.integers(1, 9)), int(rng.choice([0, 1, 2, 300]))
        times.observe(gamma, behind, (0.05 + 0.2 * gamma + 0.004 * behind) * rng.lognormal(0, 0.05))
    assert times.times(16)[8] == pytest.approx(0.05 + 1.6, rel=0.1) and times.times(16)[0] == 0
    assert times.catch_up(1000) == pytest.approx(4.0, rel=0.2)


def test_a_draft_never_asked_is_as_assumed():
    unknown = DraftTimes((0.1, 0.3, 0.01))
    assert unknown.times(2) == pytest.approx([0.0, 0.4, 0.7])
    assert unknown.catch_up(100) == pytest.approx(1.0)


def test_a_filter_learns_its_noise_and_the_coefficients():
    rng = np.random.default_rng(6)
    sharp, dull = (RobustFilter(np.zeros(2), np.eye(2), 1e-3) for _ in range(2))
    for _ in range(300):
        features = np.array([1.0, rng.uniform(0, 3)])
        for one, noise in ((sharp, 0.05), (dull, 0.8)):
            one.forget()
            one.observe(features, float(features @ [0.5, 2.0]) + rng.normal(0, noise))
    assert sharp.mean == pytest.approx([0.5, 2.0], abs=0.05)
    assert dull.mean == pytest.approx([0.5, 2.0], abs=0.5)
    assert (dull.covariance.diagonal() > 4 * sharp.covariance.diagonal()).all()
