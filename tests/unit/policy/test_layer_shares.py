from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moespac.actors.policy.cost import WorkerCost
from moespac.actors.policy.layer_shares import SILENT, Here, Shares, hopeful, share_layer, time_left
from moespac.actors.policy.likely import LikelyExperts
from moespac.actors.policy.reactive import makespan, split_misses

seconds = st.floats(0.01, 10)
devices = st.builds(Here, seconds, seconds, seconds, seconds, seconds)
workers = st.lists(st.builds(WorkerCost, st.just("w"), seconds, seconds, seconds), min_size=1, max_size=3)
loads = st.dictionaries(st.integers(0, 63), st.integers(1, 9), max_size=30)
some = st.dictionaries(st.integers(0, 63), st.floats(0, 20), max_size=4)


def true_seconds(pairs, workers, here, arriving, shares, streamed, awaited):
    """The same machine, told step by step."""
    there = [(arriving[e], pairs[e]) for e in awaited]
    there += [(here.link_free_s + (at + 1) * here.transfer_s, pairs[e]) for at, e in enumerate(streamed)]
    now = here.free_s
    for at, n in sorted(there):
        now = max(now, at) + here.expert_s + here.pair_s * n
    return max(now, makespan(pairs, workers, shares))


@given(loads, workers, devices, some, st.sets(st.integers(0, 63)))
@settings(max_examples=200, deadline=None)
def test_every_expert_has_one_place_that_it_may_have(pairs, workers, here, arriving, uncopyable):
    found = share_layer(pairs, workers, here, arriving, uncopyable)
    places = [e for share in found.workers for e in share] + [*found.streamed, *found.awaited]
    assert sorted(places) == sorted(pairs)
    assert len(found.workers) == len(workers) and all(list(share) == sorted(share) for share in found.workers)
    assert not set(found.streamed) & (set(arriving) | uncopyable), "no copy of what comes anyway or is not at hand"
    assert set(found.awaited) <= set(arriving)
    assert [pairs[e] for e in found.streamed] == sorted((pairs[e] for e in found.streamed), reverse=True)
    told = true_seconds(pairs, workers, here, arriving, found.workers, found.streamed, found.awaited)
    assert found.seconds == pytest.approx(told)
    alone = makespan(pairs, workers, split_misses(pairs, workers))
    assert found.seconds <= max(alone, here.free_s) + 1e-9, "a link is never to a layer's disadvantage"


@given(loads, workers, devices, some)
@settings(max_examples=50, deadline=None)
def test_order_of_the_mappings_does_not_matter(pairs, workers, here, arriving):
    backwards = dict(reversed(pairs.items())), workers, here, dict(reversed(arriving.items()))
    assert share_layer(pairs, workers, here, arriving) == share_layer(*backwards)


@given(
    st.dictionaries(st.integers(0, 9), st.integers(1, 9), min_size=1, max_size=5),
    st.lists(st.builds(WorkerCost, st.just("w"), *[seconds] * 3), min_size=1, max_size=2),
    devices,
    st.dictionaries(st.integers(0, 9), st.floats(0, 20), max_size=2),
)
@settings(max_examples=60, deadline=None)
def test_close_to_the_best_of_all(pairs, workers, here, arriving):
    arriving = {e: left for e, left in arriving.items() if e in pairs}
    best = float("inf")
    for places in product(range(len(workers) + 1), repeat=len(pairs)):
        shares = [[e for e, at in zip(pairs, places, strict=True) if at == w] for w in range(len(workers))]
        mine = [e for e, at in zip(pairs, places, strict=True) if at == len(workers)]
        streamed = sorted((e for e in mine if e not in arriving), key=lambda e: -pairs[e])
        awaited = [e for e in mine if e in arriving]
        best = min(best, true_seconds(pairs, workers, here, arriving, shares, streamed, awaited))
    # As far from it as the split of workers alone may be: a single expert, on the best that can compute it.
    slack = max(
        min(
            here.transfer_s + here.expert_s + here.pair_s * n,
            *(w.expert_s + w.pair_s * n for w in workers),
        )
        for n in pairs.values()
    )
    assert share_layer(pairs, workers, here, arriving).seconds <= best + slack + 1e-9


@pytest.mark.parametrize("transfer_s", [0.5, 2.0])
def test_both_sides_of_a_large_layer_finish_together(transfer_s):
    """Fiddler's crossover for a whole layer: whichever of link and device is slower, and the workers, end as one."""
    pairs = {e: 4 + e % 3 for e in range(128)}
    here = Here(free_s=3.0, expert_s=0.5, pair_s=0.1, transfer_s=transfer_s)
    processor = WorkerCost("cpu-0", 1.0, 1.0, 0.2)
    found = share_layer(pairs, [processor], here)
    assert found.streamed and found.workers[0]
    theirs = makespan(pairs, [processor], found.workers)
    copies = [((at + 1) * transfer_s, pairs[e]) for at, e in enumerate(found.streamed)]
    assert here.done_s(copies) == pytest.approx(theirs, rel=0.05)
    # Heavy experts are cheaper where a pair costs less.
    assert np.mean([pairs[e] for e in found.streamed]) >= np.mean([pairs[e] for e in found.workers[0]])


def test_a_slow_link_is_left_alone_and_a_fast_one_takes_all():
    pairs, processor = dict.fromkeys(range(8), 1), WorkerCost("cpu-0", 0.1, 1.0, 0.1)
    assert share_layer(pairs, [processor], Here(0.0, 0.1, 0.0, transfer_s=20.0)).streamed == ()
    assert len(share_layer(pairs, [processor], Here(0.0, 0.001, 0.0, transfer_s=0.001)).streamed) == 8
    assert share_layer(pairs, [processor], Here(0.0, 0.001, 0.0)).streamed == (), "no link: no copies"


def test_what_is_on_its_way_is_waited_for_while_that_is_sooner():
    pairs, processor = {3: 2, 5: 2, 7: 1}, WorkerCost("cpu-0", 1.0, 1.0, 0.0)
    here = Here(0.0, 0.1, 0.0)
    assert share_layer(pairs, [processor], here, {5: 2.0}).awaited == (5,)
    assert share_layer(pairs, [processor], here, {5: 5.0}).awaited == ()
    # Another layer's expert is none of this layer's.
    assert share_layer(pairs, [processor], here, {6: 0.0}).awaited == ()
    # Waited for, but not copied a second time, also where copies are cheap.
    fast = Here(0.0, 0.1, 0.0, link_free_s=0.5, transfer_s=0.1)
    assert share_layer(pairs, [processor], fast, {5: 0.5}) == Shares(((),), (3, 7), (5,), pytest.approx(0.8))


def test_without_workers_all_is_computed_here():
    here = Here(1.0, 0.5, 0.0, transfer_s=2.0)
    assert share_layer({1: 1, 2: 5, 4: 1}, [], here, {4: 9.0}, uncopyable={2}) == Shares((), (2, 1), (4,), 9.5)
    assert share_layer({}, [], here) == Shares((), (), (), 1.0)
    with pytest.raises(ValueError, match="nobody"):
        share_layer({1: 1}, [], Here(0.0, 0.1, 0.0))


def test_a_late_copy_is_expected_to_be_as_late_again():
    assert time_left(2.0, 0.5) == 1.5 and time_left(2.0, 2.0) == 0.0 and time_left(2.0, 7.0) == 5.0


@pytest.mark.parametrize(("dearer", "samples"), [(2.0, 1000), (9.0, 1000), (50.0, 1)])
def test_who_is_too_dear_is_tried_again_after_a_while(dearer, samples):
    """One unlucky sample is not for good, and trying costs a small share of the time."""
    pairs, other = dict.fromkeys(range(8), 1), WorkerCost("other", 0.0, 1.0, 0.0)
    silent = 0
    while (
        share_layer(
            pairs, [other, hopeful(WorkerCost("w", 8.0 * dearer, 0.0, 0.0), samples, silent)], Here(0, 1, 0)
        ).workers[1]
        == ()
    ):
        silent += 1
    assert silent >= (dearer - 1) * min(SILENT, 8 * samples)
    assert silent <= 2 * dearer * min(SILENT, 8 * samples)


def test_a_chunk_wants_nearly_all_and_a_window_what_it_wanted_before():
    likely = LikelyExperts(2, 16, 2)
    assert likely.of(0, 256) == list(range(16)) and likely.of(0, 4) == []
    for _ in range(3):
        likely.learn(0, np.array([512, 128, 0, *[29] * 13]), 512)
    assert likely.of(0, 4) == [0], "3 is wanted by one token in 17"
    assert likely.of(0, 512)[:2] == [0, 1] and 2 in likely.of(0, 512)
    assert likely.of(1, 4) == []
