"""The cost model against actors whose true costs are known."""

import numpy as np
import pytest

from moespac.actors.core import CostSample
from moespac.actors.policy.cost import (
    DEVICE_PRIOR,
    LINK,
    LINK_PRIOR,
    RING,
    WORKER_PRIOR,
    CostModel,
    Costs,
)

EXPERT_BYTES = 9_437_184


def true_seconds(experts, pairs, call=400e-6, expert=700e-6, pair=60e-6):
    return call + expert * experts + pair * pairs


def feed(model, actor, n, seconds=true_seconds, noise=0.05, seed=0, outliers=0.0):
    rng = np.random.default_rng(seed)
    for _ in range(n):
        experts = int(rng.integers(1, 20))
        pairs = experts + int(rng.integers(0, 40))
        took = seconds(experts, pairs) * np.exp(noise * rng.normal())
        if rng.random() < outliers:
            took *= rng.choice([30.0, 100.0, 0.02])
        model.observe(CostSample(actor, experts, pairs, took))


def test_before_any_sample_the_stated_priors_hold():
    model = CostModel(EXPERT_BYTES, "gpu")
    for actor, prior in (("gpu", DEVICE_PRIOR), ("cpu0", WORKER_PRIOR), (LINK, LINK_PRIOR)):
        read = EXPERT_BYTES / prior.bytes_per_s
        assert model.predict(actor, 3, 5) == pytest.approx(prior.call_s + 3 * read + 5 * prior.pair_share * read)
        assert model.predict(actor, 0, 0) == 0.0
    assert model.error() == {}


def test_fit_recovers_the_coefficients():
    model = CostModel(EXPERT_BYTES, "gpu")
    feed(model, "cpu0", 250)
    (worker,) = model.worker_costs(["cpu0"])
    assert worker.name == "cpu0"
    assert worker.expert_s == pytest.approx(700e-6, rel=0.15)
    assert worker.pair_s == pytest.approx(60e-6, rel=0.3)
    for experts, pairs in ((1, 1), (8, 20), (19, 50)):
        assert model.predict("cpu0", experts, pairs) == pytest.approx(true_seconds(experts, pairs), rel=0.08)


def test_outliers_of_one_in_eight_change_little():
    model = CostModel(EXPERT_BYTES, "gpu")
    feed(model, "cpu0", 250, outliers=0.125)
    for experts, pairs in ((2, 4), (8, 20), (19, 50)):
        assert model.predict("cpu0", experts, pairs) == pytest.approx(true_seconds(experts, pairs), rel=0.12)


def test_one_sample_is_enough_to_get_the_scale_right():
    model = CostModel(EXPERT_BYTES, "gpu")
    model.observe(CostSample("cpu0", 4, 10, 0.5))
    assert model.predict("cpu0", 4, 10) == pytest.approx(0.5)


def test_samples_that_all_look_alike_still_predict():
    model = CostModel(EXPERT_BYTES, "gpu")
    for _ in range(50):
        model.observe(CostSample(LINK, 1, 0, 2e-3))
    assert model.predict(LINK, 1, 0) == pytest.approx(2e-3)


def test_an_actor_that_changes_is_followed():
    model = CostModel(EXPERT_BYTES, "gpu")
    feed(model, "cpu0", RING)
    feed(model, "cpu0", RING, seconds=lambda e, p: 3 * true_seconds(e, p), seed=1)
    assert model.predict("cpu0", 8, 20) == pytest.approx(3 * true_seconds(8, 20), rel=0.08)


@pytest.mark.parametrize("coefficients", [(1e-3, 0, 0), (0, 1e-3, 0), (0, 0, 1e-3)])
def test_coefficients_are_never_negative(coefficients):
    model = CostModel(EXPERT_BYTES, "gpu")
    feed(model, "cpu0", 200, seconds=lambda e, p: true_seconds(e, p, *coefficients), noise=0.3)
    (worker,) = model.worker_costs(["cpu0"])
    assert min(worker.call_s, worker.expert_s, worker.pair_s) >= 0.0
    assert model.predict("cpu0", 8, 20) == pytest.approx(true_seconds(8, 20, *coefficients), rel=0.25)


def test_error_says_how_far_predictions_were_off():
    model = CostModel(EXPERT_BYTES, "gpu")
    feed(model, "cpu0", RING, noise=0.0)
    feed(model, "cpu1", RING, noise=0.2)
    error = model.error()
    assert error["cpu0"] < 0.03 < 0.08 < error["cpu1"] < 0.25
    feed(model, "cpu0", 8, seconds=lambda e, p: 2 * true_seconds(e, p))
    assert model.error()["cpu0"] < 0.03, "the median shrugs at 8 of 256"


def test_workers_rates_add_up():
    model = CostModel(EXPERT_BYTES, "gpu")
    for name in ("cpu0", "cpu1"):
        feed(model, name, 200, noise=0.0)
    one, two = model.costs(["cpu0"], 1e-3), model.costs(["cpu0", "cpu1"], 1e-3)
    assert two.worker_call_s == pytest.approx(one.worker_call_s / 2)
    assert two.worker_pair_s == pytest.approx(one.worker_pair_s / 2)
    # The call's overhead is spread over the experts of a usual call, about 10.
    assert one.worker_call_s == pytest.approx(700e-6 + 400e-6 / 10, rel=0.1)
    assert one.window_s == 1e-3


def test_without_workers_a_miss_costs_a_transfer():
    costs = CostModel(EXPERT_BYTES, "gpu").costs([], 0.0)
    assert costs.worker_call_s == pytest.approx(costs.device_call_s + costs.transfer_s)
    assert costs.worker_pair_s == costs.device_pair_s


@pytest.mark.parametrize("sample", [(0, 1, 1.0), (1, -1, 1.0), (1, 1, -1.0), (1, 1, float("nan"))])
def test_impossible_samples_are_refused(sample):
    with pytest.raises(ValueError, match="impossible"):
        CostModel(EXPERT_BYTES, "gpu").observe(CostSample("cpu0", *sample))


def test_a_clock_too_coarse_for_a_call_is_survived():
    model = CostModel(EXPERT_BYTES, "gpu")
    for seconds in (0.0, 1e-3, 1e-3, 1e-3, 1e-3):
        model.observe(CostSample("gpu", 1, 1, seconds))
    assert model.predict("gpu", 1, 1) == pytest.approx(1e-3, rel=0.1)


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
def test_impossible_costs_are_refused(bad):
    with pytest.raises(ValueError, match="worker_pair_s"):
        Costs(0, 0, 0, bad, 0, 0)


def test_waiting_for_weights_is_the_mean_and_comes_on_top():
    model = CostModel(EXPERT_BYTES, "gpu")
    feed(model, "cpu0", 100, noise=0.0)
    without = model.worker_costs(["cpu0"])[0].expert_s
    model.observe(CostSample("cpu1", 4, 4, true_seconds(4, 4)))
    for at in range(100):
        model.observe(CostSample("cpu0", 5, 5, true_seconds(5, 5), 0.05 if at % 10 == 0 else 0.0))
    model.take_up([])
    assert model.predict("cpu0", 5, 5) == pytest.approx(true_seconds(5, 5), rel=0.05)
    experts = sum(sample.experts for sample in model.samples() if sample.actor == "cpu0")
    waiting = model.worker_costs(["cpu0"])[0].expert_s - without
    assert waiting == pytest.approx(10 * 0.05 / experts, rel=0.1)
    assert model.costs(["cpu0"], 0.0).worker_call_s > without + 0.9 * waiting


def test_a_fit_of_nothing_is_the_prior():
    model = CostModel(EXPERT_BYTES, "gpu")
    before = model.predict("cpu0", 4, 4)
    model.refit("cpu0")
    assert model.predict("cpu0", 4, 4) == before
