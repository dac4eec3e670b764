"""Links: an emulated one keeps its time, and what moved is related to what was computed."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import torch

from moespac.actors.gpu_device.link import EmulatedLink, MemoryLink, TransferLog
from moespac.actors.gpu_device.overlap_meter import OverlapMeter
from moespac.configs import LinkConfig

BLOCK = np.arange(100_000, dtype=np.uint32).view(np.uint8)


def test_bytes_arrive():
    for link in (MemoryLink(), EmulatedLink(LinkConfig(bandwidth=1e9, latency=0.0))):
        slot = torch.zeros(BLOCK.nbytes, dtype=torch.uint8)
        assert link.move(BLOCK, slot, None, lambda moved: True) == BLOCK.nbytes
        assert np.array_equal(slot.numpy(), BLOCK)


def test_an_emulated_link_is_no_faster_than_it_says():
    link = EmulatedLink(LinkConfig(bandwidth=10e6, latency=0.005))  # 40 ms a block

    def move() -> None:
        link.move(BLOCK, torch.zeros(BLOCK.nbytes, dtype=torch.uint8), None, lambda moved: True)

    threads = [threading.Thread(target=move) for _ in range(3)]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - started >= 3 * 0.04 + 0.005


@pytest.mark.parametrize("link", [MemoryLink(), EmulatedLink(LinkConfig(bandwidth=1e9, latency=0.0))])
def test_a_copy_that_is_not_wanted_any_more_ends_between_two_pieces(link):
    looks, slot = [], torch.zeros(BLOCK.nbytes, dtype=torch.uint8)

    def wanted(moved: int) -> bool:
        assert np.array_equal(slot[:moved].numpy(), BLOCK[:moved])
        looks.append(moved)
        return moved < BLOCK.nbytes / 2

    moved = link.move(BLOCK, slot, None, wanted)
    assert looks[0] == 0 and looks == sorted(looks) and moved == looks[-1] == BLOCK.nbytes / 2
    assert np.array_equal(slot[:moved].numpy(), BLOCK[:moved]) and not slot[moved:].any()


def test_a_copy_broken_off_has_used_the_link_for_what_moved():
    link = EmulatedLink(LinkConfig(bandwidth=BLOCK.nbytes / 4, latency=0.0))  # 4 s a block, half a second a piece
    started = time.monotonic()
    moved = link.move(BLOCK, torch.zeros(BLOCK.nbytes, dtype=torch.uint8), None, lambda moved: moved == 0)
    small = BLOCK[: BLOCK.nbytes // 100]
    link.move(small, torch.zeros(small.nbytes, dtype=torch.uint8), None, lambda moved: True)
    assert moved == BLOCK.nbytes / 8 and 0.54 <= time.monotonic() - started < 4


def test_service_time_leaves_out_the_wait_for_the_transfer_before():
    log = TransferLog()
    log.add("a", 1_000, 5_000, 8)
    assert log.add("b", 2_000, 6_000, 8).service_s == pytest.approx(1e-6)
    assert log.add("c", 9_000, 9_500, 8).service_s == pytest.approx(0.5e-6)
    assert [t.name for t in log.take()] == ["a", "b", "c"] and log.take() == []


def test_hidden_time_is_transfer_time_under_computation():
    log = TransferLog()
    meter = OverlapMeter(log)
    second = 10**9
    meter.computed(0, 2 * second)
    meter.computed(5 * second, 6 * second)
    log.add("a", 1 * second, 4 * second, 100)
    log.add("b", 3 * second, 7 * second, 100)
    report = meter.report()
    assert (report.busy_s, report.hidden_s, report.bytes) == pytest.approx((6.0, 2.0, 200))
    assert meter.report().busy_s == 0.0


def test_a_copy_asked_for_before_is_no_cancelled_one_and_its_time_is_known():
    log = TransferLog()
    moved = log.add("x", 3_000_000, 5_000_000, 100, asked_ns=2_000_000)
    assert not moved.cancelled and log.service_times() == [pytest.approx(3e-3)]
    log.add("y", 6_000_000, 7_000_000, 50, cancelled=True)
    assert log.service_times() == [], "half a copy says nothing of a whole one"
    assert log.add("z", 9_000_000, 8_000_000, 100).service_s == 0.0, "the clock was set back"
