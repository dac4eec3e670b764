"""Speculation is stopped when it does not pay, probed, and taken up again."""

import numpy as np
import pytest

from moespac.actors.policy.drift import drift
from moespac.actors.policy.prefetch_gate import ENOUGH, PATIENCE, PROBE_EVERY, PrefetchGate

NOBODY = np.zeros((1, 8))


def arrivals(gate: PrefetchGate, times: int, used: bool) -> None:
    """One expert after the other is transferred, used or not, and evicted."""
    for i in range(times):
        here = np.zeros((1, 8), dtype=bool)
        here[0, i % 8] = True
        gate.observe(NOBODY, here)
        gate.observe(here * 3 if used else NOBODY, here)
        gate.observe(NOBODY, ~here & False)


def started() -> PrefetchGate:
    gate = PrefetchGate(1, 8)
    gate.observe(NOBODY, NOBODY.astype(bool))
    return gate


def test_useful_transfers_keep_it_open():
    gate = started()
    arrivals(gate, 200, used=True)
    assert gate.open and gate.recall == pytest.approx(1.0)
    assert gate.allowance(40) == 40


def test_useless_transfers_close_it_but_not_at_once():
    gate = started()
    arrivals(gate, ENOUGH - 1, used=False)
    assert gate.open, "too few outcomes to tell"
    arrivals(gate, 1, used=False)
    assert not gate.open and gate.recall == 0.0
    assert [gate.allowance(40) for _ in range(2 * PROBE_EVERY)] == ([0] * (PROBE_EVERY - 1) + [4]) * 2
    assert [gate.allowance(3) for _ in range(PROBE_EVERY)][-1] == 1, "a probe moves one expert at least"


def test_successful_probes_open_it_again():
    gate = started()
    arrivals(gate, 300, used=False)
    assert not gate.open
    arrivals(gate, ENOUGH - 1, used=True)
    assert not gate.open, "a few lucky probes prove nothing"
    arrivals(gate, 300, used=True)
    assert gate.open and gate.allowance(40) == 40


def test_use_before_eviction_is_what_counts_and_patience_ends():
    gate = started()
    here = np.zeros((1, 8), dtype=bool)
    here[0, :2] = True
    gate.observe(NOBODY, here)
    assert gate.recall is None
    counts = NOBODY.copy()
    counts[0, 0] = 1
    gate.observe(counts, here)
    assert gate.recall == 1.0
    for _ in range(PATIENCE):
        gate.observe(counts, here)
    assert gate.recall == pytest.approx(0.5, abs=0.01), "one used often, the other never"


def test_those_already_there_were_not_transferred():
    gate = PrefetchGate(1, 8)
    gate.observe(NOBODY, ~NOBODY.astype(bool))
    gate.observe(NOBODY, NOBODY.astype(bool))
    assert gate.recall is None


def test_a_use_in_the_window_of_arrival_is_not_the_transfers_merit():
    gate = started()
    here = np.ones((1, 8), dtype=bool)
    gate.observe(here * 1, here)
    assert gate.recall is None


def test_drift_is_the_share_that_moved():
    a, b = np.array([[2.0, 2.0, 0.0], [1.0, 0.0, 0.0]]), np.array([[4.0, 0.0, 4.0], [3.0, 0.0, 0.0]])
    assert drift(a, a) == drift(a, 5 * a) == 0.0
    assert drift(a, b) == pytest.approx((0.5 + 0.0) / 2)
    assert drift(np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])) == 1.0
    assert drift(np.zeros((2, 3)), b) == 0.0
