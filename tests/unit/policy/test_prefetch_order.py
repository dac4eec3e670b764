"""What a slot is worth, and which transfers pay."""

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from moespac.actors.core import ExpertKey
from moespac.actors.policy.cache_order import ExpertCache
from moespac.actors.policy.prefetch_order import (
    LATER,
    MOST,
    UNIT,
    Outlook,
    as_utilities,
    exchanges,
    price,
    transfer_cost,
    value,
)

LAYERS, EXPERTS = 4, 5
SHAPE = (LAYERS, EXPERTS)
shares = arrays(np.float64, SHAPE, elements=st.integers(0, 16).map(lambda share: share / 16))
outlooks = st.builds(
    Outlook,
    coming=shares,
    lasting=shares,
    held=arrays(bool, SHAPE),
    idle_s=st.floats(0, 5),
    layer_s=st.floats(0, 3),
    transfer_s=st.floats(0.5, 2),
)


def even(**changes) -> Outlook:
    """All alike, none held; a layer takes as long as a transfer."""
    same = np.full(SHAPE, 0.5)
    return replace(Outlook(same, same, np.zeros(SHAPE, dtype=bool), 0.0, 1.0, 1.0), **changes)


def in_time(outlook: Outlook) -> np.ndarray:
    """Absent experts whose use in the coming window counts."""
    return (value(outlook) > LATER * outlook.lasting) & ~outlook.held


def test_what_cannot_arrive_before_its_layer_has_only_its_later_uses():
    assert in_time(even()).sum(axis=1).tolist() == [0, 1, 1, 1], "one transfer a layer, none before the first"
    assert in_time(even(layer_s=2.0)).sum() == 6 and not in_time(even(layer_s=2.0))[0].any()
    assert in_time(even(idle_s=2.0)).sum() == 5, "two while drafting"
    assert in_time(even(layer_s=0.1)).sum() == 0


def test_the_link_is_given_to_the_most_valuable():
    coming = np.full(SHAPE, 0.1)
    coming[2, 3] = coming[2, 4] = 0.9
    chosen = in_time(even(coming=coming))
    assert chosen[2, 3] and chosen[2, 4] and not chosen[1].any(), "both transfers until layer 2 are theirs"


@given(outlooks)
def test_those_in_time_can_all_be_moved_in_time(outlook):
    before = np.cumsum(in_time(outlook).sum(axis=1))
    assert (before <= outlook.until() + 1e-9).all()


@given(outlooks)
def test_no_expert_in_time_could_be_changed_for_a_better_one(outlook):
    chosen, both = in_time(outlook), outlook.coming + LATER * outlook.lasting
    others = ~chosen & ~outlook.held & (outlook.coming > 0)
    for layer, expert in np.argwhere(chosen):
        # Of its own layer and of later ones anybody could have its place on the link.
        later = both[layer:][others[layer:]]
        assert not len(later) or both[layer, expert] >= later.max() - 1e-9


@given(outlooks)
def test_residents_are_worth_all_their_uses_and_nobody_more(outlook):
    values, both = value(outlook), outlook.coming + LATER * outlook.lasting
    assert (values[outlook.held] == both[outlook.held]).all()
    assert (values <= both).all() and (values >= LATER * outlook.lasting).all()
    utilities = as_utilities(values)
    assert utilities.min() >= 0 and utilities.max() <= MOST


@given(outlooks, st.integers(1, 3))
def test_a_faster_link_never_makes_an_expert_worth_less_in_sum(outlook, times):
    faster = replace(outlook, transfer_s=outlook.transfer_s / times)
    assert in_time(faster).sum() >= in_time(outlook).sum()


def test_transfers_cost_nothing_while_no_worker_computes():
    assert transfer_cost(even(layer_s=0.0, idle_s=1.0)) == 0.1 * UNIT
    assert transfer_cost(even()) == 0.6 * UNIT
    assert transfer_cost(even(idle_s=4.0)) == 0.35 * UNIT


@given(
    utilities=arrays(np.int64, SHAPE, elements=st.integers(0, MOST)),
    held=arrays(bool, SHAPE),
    room=st.integers(0, 4),
    cost=st.integers(0, 900),
)
def test_as_many_transfers_pay_as_the_cache_lets_in(utilities, held, room, cost):
    slots = int(held.sum()) + room
    keys = [ExpertKey(int(layer), int(expert)) for layer, expert in np.argwhere(held)]
    cache = ExpertCache(slots)
    for key in keys:
        cache.begin_fill(key, int(utilities[key]))
        cache.commit(key)
    absent = sorted(map(tuple, np.argwhere(~held).tolist()), key=lambda place: (-utilities[place], place))
    moved = 0
    for place in absent:
        if cache.begin_fill(ExpertKey(*place), int(utilities[place]), cost=cost) is None:
            break
        moved += 1
    assert exchanges(utilities, held, slots, cost) == moved


@given(utilities=arrays(np.int64, SHAPE, elements=st.integers(0, MOST)), slots=st.integers(1, 30))
def test_the_price_of_a_slot_is_what_the_last_of_the_best_is_worth(utilities, slots):
    above = price(utilities, slots)
    assert (utilities > above).sum() < slots and (utilities >= above).sum() >= min(slots, utilities.size)
