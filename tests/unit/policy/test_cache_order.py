"""Slots: who lies where, who leaves for whom."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from moespac.actors.core import ExpertKey
from moespac.actors.policy.cache_order import ExpertCache, Fill, IntegrityError, worth, worths
from moespac.actors.policy.transfer_order import TransferQueue

A, B, C, D = (ExpertKey(0, expert) for expert in range(4))


def cache_with(slots, **utilities):
    """Residents by name, filled in the order given."""
    cache = ExpertCache(slots)
    for name, utility in utilities.items():
        key = globals()[name]
        cache.begin_fill(key, utility)
        cache.commit(key)
    return cache


def test_life_of_a_slot():
    cache = ExpertCache(2)
    assert cache.begin_fill(A, 1) == Fill(slot=0, evicted=None)
    assert cache.is_filling(A) and cache.lookup(A) is None and cache.pin([A]) == {}
    cache.commit(A)
    assert cache.lookup(A) == 0 and not cache.is_filling(A)
    assert cache.begin_fill(B, 1).slot == 1
    cache.abort(B)
    assert (cache.lookup(B), cache.free_slots, cache.residents()) == (None, 1, [A])
    assert cache.evict(A) == 0
    assert cache.free_slots == 2


def test_a_victim_must_be_worth_less():
    cache = cache_with(2, A=2, B=3)
    assert cache.begin_fill(C, 2) is None
    assert cache.begin_fill(C, 3) == Fill(slot=0, evicted=A)
    cache.commit(C)
    assert cache.begin_fill(A, 3) is None


def test_forced_fill_takes_the_least_valuable_all_the_same():
    cache = cache_with(2, A=2, B=3)
    assert cache.begin_fill(C, 0, forced=True).evicted == A
    cache.pin([B])
    # C is being filled and B is pinned: not even force finds a slot.
    assert cache.begin_fill(D, 9, forced=True) is None


def test_pinned_and_protected_stay():
    cache = cache_with(3, A=0, B=1, C=2)
    assert cache.pin([A, D]) == {A: 0}
    cache.pin([A])
    assert cache.begin_fill(D, 5, protect={B}).evicted == C
    cache.abort(D)
    cache.begin_fill(C, 2)
    cache.unpin([A])
    with pytest.raises(ValueError, match="pinned"):
        cache.evict(A)
    cache.unpin([A])
    assert cache.begin_fill(D, 5).evicted == A


def test_least_recently_used_leaves_first_among_equals_and_the_higher_key_among_these():
    cache = cache_with(3, A=1, B=1, C=1)
    cache.touch([A, D])
    assert cache.residents() == [B, C, A]
    cache.touch([A, B, C])
    assert cache.residents() == [C, B, A]
    assert cache.begin_fill(D, 2).evicted == C


@pytest.mark.parametrize("as_callable", [False, True])
def test_a_plan_gives_new_utilities(as_callable):
    cache = cache_with(3, A=5, B=0, C=3)
    plan = {A: 1, B: 4}
    cache.set_plan((lambda key: plan.get(key, 0)) if as_callable else plan)
    assert cache.residents() == [C, A, B]


def test_a_fill_that_a_new_plan_does_not_want_is_demoted_and_leaves_first():
    cache = ExpertCache(2)
    for expert, utility in ((1, 2), (2, 5)):
        cache.begin_fill(ExpertKey(0, expert), utility)
    cache.commit(ExpertKey(0, 1))
    cache.set_plan({ExpertKey(0, 1): 2})
    cache.commit(ExpertKey(0, 2))
    assert cache.begin_fill(ExpertKey(0, 3), 1).evicted == ExpertKey(0, 2)


def test_eviction_is_the_reverse_of_prefetch():
    wanted = [(ExpertKey(layer, expert), (layer * 5 + expert * 3) % 4) for layer in range(3) for expert in range(4)]
    queue = TransferQueue(1)
    queue.replace(1, wanted, 100)
    prefetched = [transfer.key for transfer in iter(queue.pop, None)]
    cache = ExpertCache(12)
    for key, utility in wanted:
        cache.begin_fill(key, utility)
        cache.commit(key)
    cache.touch(key for key, _ in wanted)
    assert cache.residents() == prefetched[::-1]


def test_hot_is_worth_more_than_cold_whatever_the_utilities():
    ascending = [(0, 2**32 - 1), (2**32 - 2, 2**32 - 1), (0, 0), (1, 1), (2, 1), (2**32 - 1, 5)]
    expected = [worth(utility, threshold) for utility, threshold in ascending]
    assert expected == sorted(set(expected))
    assert worth(2, 3) < 0 <= worth(1, 1)
    utilities, thresholds = zip(*ascending, strict=True)
    assert worths(np.array(utilities)[:, None], np.array(thresholds))[:, 0].tolist() == expected


def test_misuse_is_refused():
    cache = cache_with(2, A=1)
    cache.begin_fill(B, 1)
    for call, says in (
        (lambda: cache.begin_fill(A, 1), "already resident"),
        (lambda: cache.begin_fill(B, 1), "already being filled"),
        (lambda: cache.commit(A), "not being filled"),
        (lambda: cache.abort(C), "not being filled"),
        (lambda: cache.evict(B), "being filled"),
        (lambda: cache.evict(C), "absent"),
        (lambda: cache.unpin([A]), "not pinned"),
        (lambda: ExpertCache(-1), "slots is -1"),
    ):
        with pytest.raises(ValueError, match=says):
            call()
    cache.check_integrity()


def test_no_slots_no_fills():
    cache = ExpertCache(0)
    assert cache.begin_fill(A, 9, forced=True) is None
    cache.check_integrity()


@given(st.lists(st.integers(0, 5), max_size=6), st.integers(0, 5))
def test_expendable_slots_are_those_taken_before_the_newcomers(utilities, utility):
    cache, newcomer = ExpertCache(7), ExpertKey(9, 9)
    for expert, other in enumerate(utilities):
        cache.begin_fill(ExpertKey(0, expert), other)
        cache.commit(ExpertKey(0, expert))
    cache.begin_fill(newcomer, utility)
    expected, fills = cache.expendable(utility), 0
    cache.commit(newcomer)
    while cache.begin_fill(ExpertKey(1, fills), 6).evicted != newcomer:
        fills += 1
    assert fills == expected


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda cache: cache._free.append(0), "slots"),
        (lambda cache: cache._slot.pop(A), "slots"),
        (lambda cache: cache._slot.update({A: 1, B: 0}), "said to be in slot 1"),
        (lambda cache: cache._pins.__setitem__(1, 1), "1 pins while filling"),
        (lambda cache: cache._pins.__setitem__(0, -1), "-1 pins"),
        (lambda cache: cache._evictable.__setitem__(0, False), "counts as not evictable"),
        (lambda cache: cache._last_use.__setitem__(0, 99), "last used at 99"),
    ],
)
def test_integrity_check_finds_damage(damage, says):
    cache = cache_with(2, A=1)
    cache.begin_fill(B, 1)
    cache.check_integrity()
    damage(cache)
    with pytest.raises(IntegrityError, match=says):
        cache.check_integrity()


class CacheMachine(RuleBasedStateMachine):
    """Any order of calls, against a model that knows only keys and states."""

    keys = st.builds(ExpertKey, st.integers(0, 2), st.integers(0, 3))

    def __init__(self):
        super().__init__()
        self.slots = 4
        self.cache = ExpertCache(self.slots)
        self.utility: dict[ExpertKey, int] = {}
        self.resident: dict[ExpertKey, int] = {}
        self.filling: dict[ExpertKey, int] = {}
        self.pins: list[ExpertKey] = []

    @rule(key=keys, utility=st.integers(0, 5), protect=st.frozensets(keys, max_size=3), forced=st.booleans())
    def begin_fill(self, key, utility, protect, forced):
        if key in self.resident or key in self.filling:
            with pytest.raises(ValueError, match="already"):
                self.cache.begin_fill(key, utility, protect, forced)
            return
        evictable = [k for k in self.resident if k not in self.pins and k not in protect]
        worst = min((self.utility[k] for k in evictable), default=None)
        full = len(self.resident) + len(self.filling) == self.slots
        fill = self.cache.begin_fill(key, utility, protect, forced)
        if full and (worst is None or (worst >= utility and not forced)):
            assert fill is None
            return
        assert (fill.evicted is not None) == full
        if full:
            assert fill.evicted in evictable and self.utility[fill.evicted] == worst
            assert self.resident.pop(fill.evicted) == fill.slot
        assert fill.slot not in self.resident.values() and fill.slot not in self.filling.values()
        self.filling[key], self.utility[key] = fill.slot, utility

    @precondition(lambda self: self.filling)
    @rule(data=st.data(), succeeds=st.booleans())
    def end_fill(self, data, succeeds):
        key = data.draw(st.sampled_from(sorted(self.filling)))
        slot = self.filling.pop(key)
        if succeeds:
            self.cache.commit(key)
            self.resident[key] = slot
        else:
            self.cache.abort(key)

    @rule(keys=st.lists(keys, max_size=4))
    def pin(self, keys):
        expected = {key: self.resident[key] for key in keys if key in self.resident}
        assert self.cache.pin(keys) == expected
        self.pins += expected

    @precondition(lambda self: self.pins)
    @rule(data=st.data())
    def unpin(self, data):
        key = data.draw(st.sampled_from(self.pins))
        self.cache.unpin([key])
        self.pins.remove(key)

    @rule(keys=st.lists(keys, max_size=4))
    def touch(self, keys):
        self.cache.touch(keys)

    @rule(plan=st.dictionaries(keys, st.integers(0, 5)))
    def set_plan(self, plan):
        self.cache.set_plan(plan)
        self.utility = {key: plan.get(key, 0) for key in self.utility}

    @rule(plan=st.lists(st.lists(st.integers(0, 5), min_size=4, max_size=4), min_size=3, max_size=3))
    def set_worths(self, plan):
        self.cache.set_worths((0, 1, 2), np.array(plan))
        self.utility = {key: plan[key.layer][key.expert] for key in self.utility}

    @rule(key=keys)
    def evict(self, key):
        if key in self.resident and key not in self.pins:
            assert self.cache.evict(key) == self.resident.pop(key)
        else:
            with pytest.raises(ValueError, match="cannot be evicted"):
                self.cache.evict(key)

    @invariant()
    def books_agree(self):
        self.cache.check_integrity()
        residents = self.cache.residents()
        assert sorted(residents) == sorted(self.resident)
        held = [ExpertKey(*place) for place in np.argwhere(self.cache.held((0, 1, 2), 4)).tolist()]
        assert held == sorted([*self.resident, *self.filling])
        assert [self.utility[key] for key in residents] == sorted(self.utility[key] for key in residents)
        assert all(self.cache.lookup(key) == slot for key, slot in self.resident.items())
        placed = {*self.resident, *self.filling}
        assert all((key in self.cache) == (key in placed) for key in {*placed, *self.utility, A, B})
        assert all(self.cache.is_filling(key) and self.cache.lookup(key) is None for key in self.filling)
        assert self.cache.free_slots == self.slots - len(self.resident) - len(self.filling)


TestCache = CacheMachine.TestCase
TestCache.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
