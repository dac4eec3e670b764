"""What a device's passes teach its cost model."""

from __future__ import annotations

import pytest

from moespac.actors.core import CostSample
from moespac.actors.gpu_device.link import TransferLog
from moespac.actors.gpu_device.measured_costs import MeasuredCosts
from moespac.actors.policy.cost import LINK, CostModel

EXPERT_BYTES = 9_437_184


def took(experts: int, pairs: int) -> CostSample:
    """A worker whose pairs cost next to nothing, unlike what is assumed of it."""
    return CostSample("cpu-0", experts, pairs, 1e-3 + 0.7e-3 * experts + 5e-6 * pairs)


def test_decoding_after_a_prompt_is_soon_understood():
    costs = MeasuredCosts(CostModel(EXPERT_BYTES, "gpu-0"), TransferLog())
    for _ in range(200):
        costs.note(took(100, 1600))
    one = took(8, 10)
    assert costs.model.predict("cpu-0", 8, 10) < 0.7 * one.seconds, "prompts alone do not tell experts from pairs"
    for _ in range(24):
        costs.note(one)
    assert costs.model.predict("cpu-0", 8, 10) == pytest.approx(one.seconds, rel=0.3)
    assert costs.model.predict("cpu-0", 100, 1600) == pytest.approx(took(100, 1600).seconds, rel=0.2)


def test_the_link_is_learned_from_all_that_crosses_it():
    log = TransferLog()
    costs = MeasuredCosts(CostModel(EXPERT_BYTES, "gpu-0"), log)
    for at in range(20):
        log.add("slot or buffer", at * 10**7, at * 10**7 + 3 * 10**6, EXPERT_BYTES)
    costs.next_layer()
    assert costs.model.predict(LINK, 1, 0) == pytest.approx(3e-3, rel=0.05)


def test_who_is_not_heard_of_is_thought_cheaper_by_and_by():
    costs = MeasuredCosts(CostModel(EXPERT_BYTES, "gpu-0"), TransferLog())
    for _ in range(100):
        costs.note(took(8, 10))
    (fresh,) = costs.worker_costs(["cpu-0"])
    for _ in range(256):
        costs.next_layer()
    (later,) = costs.worker_costs(["cpu-0"])
    assert later.expert_s == pytest.approx(fresh.expert_s / 2)
    costs.note(took(8, 10))
    assert costs.worker_costs(["cpu-0"])[0].expert_s == pytest.approx(fresh.expert_s, rel=0.05)


def test_a_call_that_waits_long_says_nothing_of_computing():
    costs = MeasuredCosts(CostModel(EXPERT_BYTES, "gpu-0"), TransferLog())
    for _ in range(40):
        costs.note_call(CostSample("cpu-0", 1, 1, 11e-3, called_s=10e-3))
    assert costs.call_s("cpu-0", 1, 1) == pytest.approx(11e-3, rel=0.1)
    assert costs.call_s("cpu-0", 10, 10) < 30e-3, "ten experts in one call wait once"
    (worker,) = costs.worker_costs(["cpu-0"])
    assert worker.call_s + 10 * (worker.expert_s + worker.pair_s) == pytest.approx(costs.call_s("cpu-0", 10, 10))
