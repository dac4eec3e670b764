"""The simulated clock: hand-computed runs, conservation, bounds, determinism."""

from dataclasses import replace

import numpy as np
import pytest
from simulated import hardware, random_ids, run, write_trace

from moespac.actors.policy.rivals.registry import POLICIES

LAYERS, EXPERTS, TOP_K, TOKENS = 4, 8, 2, 30


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Two sequences of a model with 4 layers of 8 experts."""
    file = tmp_path_factory.mktemp("traces") / "small.npz"
    return write_trace(file, random_ids(TOKENS, LAYERS, EXPERTS, TOP_K), EXPERTS, offsets=[0, 18, TOKENS])


@pytest.fixture
def two_layers(tmp_path):
    """Token 0: expert 0, then 1; token 1: expert 0 in both layers."""
    return write_trace(tmp_path / "two.npz", [[[0], [1]], [[0], [0]]], n_experts=2)


def test_fixed_layers_by_hand(two_layers):
    # Slots for the last layer: trunk 1 + call 0.5 + CPU 2, then trunk 1 + device 1; the same for both tokens.
    tally = run(two_layers, "llama.cpp")
    assert tally.seconds == pytest.approx(2 * 5.5e-3)
    assert (tally.uses, tally.hits, tally.on_cpu, tally.transfers) == (4, 2, 2, 0)


def test_loading_on_demand_by_hand(two_layers):
    # Token 0 misses twice: trunk 1 + link 4 + device 1 each. Token 1 hits in layer 0 (1 + 1) and misses in layer 1.
    tally = run(two_layers, "on-demand")
    assert tally.seconds == pytest.approx(20e-3)
    assert (tally.hits, tally.fetched, tally.useful) == (1, 3, 3)


def test_drafts_by_hand(two_layers):
    # One step: the draft stands or falls; either way 10 ms of drafting and two tokens verified together, on the CPU
    # in layer 0 and on the device in layer 1.
    certain = run(two_layers, "llama.cpp-sd", hardware(speculation__acceptance=1.0), gamma=1)
    assert certain.steps == 1 and certain.accepted == 1
    assert certain.seconds == pytest.approx((10 + 1 + 0.5 + 2 + 1 + 2) * 1e-3)
    never = run(two_layers, "llama.cpp-sd", hardware(speculation__acceptance=0.0), gamma=1)
    assert never.steps == 2 and never.accepted == 0 and never.tokens == 2


def test_the_link_slows_the_cpu_by_its_share_of_memory(two_layers):
    free, shared = (run(two_layers, "belady", hardware(link__host_contention=share)) for share in (0, 1))
    assert free.seconds < shared.seconds


def test_experts_that_do_not_fit_in_host_memory_are_read_from_disk(two_layers):
    # 10 ms a read; a layer's CPU work cannot end before them.
    tally = run(two_layers, "llama.cpp", hardware(disk__host_memory="0B"))
    assert tally.disk_reads == 2
    assert tally.seconds == pytest.approx(2 * (1 + 10 + 2 + 1 + 1) * 1e-3)


@pytest.mark.parametrize("policy", POLICIES)
def test_conservation_and_bounds(small, policy):
    machine = hardware()
    tally = run(small, policy, machine, ratio=0.4, gamma=3)
    assert tally.tokens == TOKENS and tally.accepted + tally.steps == TOKENS
    assert tally.transfer_bytes == tally.transfers * 10**6
    assert tally.hits + tally.late + tally.fetched <= tally.uses
    assert tally.useful + tally.wasted <= tally.transfers
    assert tally.fetched <= tally.transfers
    parts = tally.draft_s + tally.trunk_s + tally.device_s + tally.cpu_wait_s + tally.link_wait_s + tally.remote_s
    assert tally.seconds == pytest.approx(parts)
    bandwidth = 125e6 if POLICIES[policy].pageable else 250e6
    assert tally.link_s == pytest.approx(tally.transfer_bytes / bandwidth)
    # What is still on the link at the end may end after it: one transfer.
    assert tally.link_s <= tally.seconds + 10**6 / bandwidth
    trunk = tally.steps * LAYERS * 1e-3
    cpu = tally.on_cpu * 2e-3
    assert tally.seconds >= trunk + max(cpu, tally.hits * 1e-3 - cpu) - 1e-12


@pytest.mark.parametrize("policy", POLICIES)
def test_equal_runs_are_equal(small, policy):
    first, second = (replace(run(small, policy, ratio=0.4, gamma=3), planning_s=0.0) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("policy", ["on-demand", "moespac", "moe-spac-described", "clairvoyant", "hybrimoe"])
def test_no_slots_is_slow_but_works(small, policy):
    tally = run(small, policy, ratio=0.0, gamma=3)
    assert tally.tokens == TOKENS and tally.hits == 0


def test_all_resident_needs_nothing(small):
    tally = run(small, "ktransformers", ratio=1.0)
    assert tally.hits == tally.uses and tally.transfers == tally.on_cpu == 0


@pytest.mark.parametrize("ratio", [0.2, 0.4, 0.6])
@pytest.mark.parametrize("seed", range(3))
def test_belady_has_no_fewer_hits_than_least_recently_used(tmp_path, ratio, seed):
    trace = write_trace(tmp_path / "t.npz", random_ids(60, 3, EXPERTS, TOP_K, seed), EXPERTS)
    best = run(trace, "belady-demand", ratio=ratio).hits
    assert all(run(trace, policy, ratio=ratio).hits <= best for policy in ("on-demand", "accelerate", "moe-infinity"))
    assert best > 0


def test_more_slots_never_lose_belady_hits(small):
    hits = [run(small, "belady-demand", ratio=ratio).hits for ratio in np.linspace(0, 1, 6)]
    assert hits == sorted(hits)
