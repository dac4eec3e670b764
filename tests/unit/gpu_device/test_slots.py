"""Slots: within budget, shown only when complete, never overwritten while read."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_device import CPU

from moespac.actors.core import ExpertKey, ModelShape, Plan
from moespac.actors.gpu_device.link import EmulatedLink, MemoryLink
from moespac.actors.gpu_device.slots import BudgetTooSmall, ExpertSlots, Filled, Outcome
from moespac.actors.gpu_device.staging import buffers_of
from moespac.actors.prefetcher.arena import Arena, ArenaReader
from moespac.actors.prefetcher.source import ExpertSource
from moespac.configs import LinkConfig

SHAPE = ModelShape(layer_ids=(0, 1), n_experts=4, top_k=2, hidden_size=8, intermediate_size=4, expert_bytes=1000)
SLOT = 1024


def _plan(epoch: int, utilities, thresholds=(1, 1)) -> Plan:
    return Plan(epoch, np.asarray(thresholds), np.asarray(utilities), 2**20, "OPTIMAL")


class Host:
    """A real arena with every expert in it, each byte telling whose it is."""

    def __init__(self) -> None:
        self.arena = Arena.create(SHAPE, 2**20)
        self.reader = ArenaReader.attach(self.arena.location, SHAPE)
        for block, key in enumerate(SHAPE.keys()):
            self.write(key, block, 10 * key.layer + key.expert)

    def write(self, key: ExpertKey, block: int, value: int) -> None:
        self.arena.invalidate(key)
        self.arena.write_slot(block)[: SHAPE.expert_bytes] = bytes([value]) * SHAPE.expert_bytes
        self.arena.publish(key, block)

    def source(self) -> ExpertSource:
        def no_fetch(layer: int, experts: list[int], _hold_s: float, _timeout_s: float):
            raise AssertionError(f"nothing is to be fetched, asked for {experts} of layer {layer}")

        return ExpertSource(lambda: self.reader, no_fetch)


@pytest.fixture
def host():
    host = Host()
    yield host
    host.reader.close()
    host.arena.close()


def _slots(n: int, link=None) -> ExpertSlots:
    return ExpertSlots(SHAPE, n * SLOT, CPU, link or MemoryLink())


def _content(slots: ExpertSlots, key: ExpertKey) -> set[int]:
    with slots.pinned(key.layer, [key.expert]) as resident:
        return set(resident[key.expert][: SHAPE.expert_bytes].tolist())


def test_slots_are_what_the_budget_holds():
    assert ExpertSlots(SHAPE, 5 * SLOT - 1, CPU, MemoryLink()).slots == 4
    assert ExpertSlots(SHAPE, 0, CPU, MemoryLink()).slots == 0
    assert ExpertSlots(SHAPE, 2**50, CPU, MemoryLink()).slots == 8, "more than one for every expert are of no use"


def test_staging_takes_its_buffers_from_the_budget():
    assert [buffers_of(slots) for slots in (0, 31, 32, 50, 64, 10_000)] == [0, 0, 2, 3, 4, 4]
    slots = ExpertSlots(SHAPE, 5 * SLOT, CPU, MemoryLink(), buffers=2)
    assert (slots.slots, len(slots.buffers), slots.memory.nbytes) == (3, 2, 5 * SLOT)
    assert slots.buffers.data_ptr() == slots.memory[3].data_ptr()


def test_a_budget_below_one_expert_names_both_numbers():
    with pytest.raises(BudgetTooSmall, match=r"1,023 bytes.*1,024 bytes"):
        ExpertSlots(SHAPE, SLOT - 1, CPU, MemoryLink())


def test_fill_copies_the_expert_and_says_so(host):
    slots, key = _slots(2), ExpertKey(1, 3)
    filled = slots.fill(host.source(), key, utility=1, epoch=0)
    assert filled.outcome is Outcome.FILLED and filled.bytes == 1000 and filled.seconds > 0
    assert slots.residents() == [key] and _content(slots, key) == {13}
    assert slots.fill(host.source(), key, 1, 0).outcome is Outcome.ALREADY_RESIDENT
    assert [t.bytes for t in slots.transfers.take()] == [1000]
    slots.check_integrity()


def test_the_least_useful_leaves_and_only_for_more_useful_ones(host):
    slots = _slots(2)
    for expert, utility in ((0, 3), (1, 1)):
        slots.fill(host.source(), ExpertKey(0, expert), utility, 0)
    assert slots.fill(host.source(), ExpertKey(0, 2), 1, 0).outcome is Outcome.NO_VICTIM
    filled = slots.fill(host.source(), ExpertKey(0, 2), 2, 0)
    assert filled.outcome is Outcome.FILLED and filled.evicted == (ExpertKey(0, 1),)
    assert sorted(slots.residents()) == [ExpertKey(0, 0), ExpertKey(0, 2)]


def test_no_slots_no_victim(host):
    assert _slots(0).fill(host.source(), ExpertKey(0, 0), 5, 0).outcome is Outcome.NO_VICTIM


def test_plans_older_than_the_one_held_are_ignored_and_counted(host):
    slots = _slots(2)
    assert slots.set_plan(_plan(5, [[1, 2, 3, 4]] * 2))
    assert not slots.set_plan(_plan(4, [[0] * 4] * 2))
    assert slots.epoch == 5 and slots.stale_plans == 1
    assert slots.set_plan(_plan(5, [[4, 3, 2, 1]] * 2))  # the same again: a scheduler that repeats itself
    assert slots.fill(host.source(), ExpertKey(0, 0), 9, epoch=4).outcome is Outcome.STALE
    assert slots.fill(host.source(), ExpertKey(0, 0), 9, epoch=5).outcome is Outcome.FILLED


def test_a_plan_changes_what_residents_are_worth(host):
    slots = _slots(2)
    slots.fill(host.source(), ExpertKey(0, 0), 5, 0)
    slots.fill(host.source(), ExpertKey(0, 1), 1, 0)
    slots.set_plan(_plan(1, [[0, 5, 3, 0]] * 2))
    assert slots.fill(host.source(), ExpertKey(0, 2), 3, 1).evicted == (ExpertKey(0, 0),)


def test_an_exchange_must_gain_what_the_plan_says_a_transfer_costs(host):
    slots = _slots(1)
    slots.fill(host.source(), ExpertKey(0, 0), 0, 0)
    slots.set_plan(replace(_plan(1, [[3, 5, 6, 0]] * 2), transfer_cost=2))
    assert slots.fill(host.source(), ExpertKey(0, 1), 5, 1).outcome is Outcome.NO_VICTIM
    assert slots.fill(host.source(), ExpertKey(0, 2), 6, 1).outcome is Outcome.FILLED


def test_a_cold_resident_leaves_for_a_hot_expert_of_lower_utility(host):
    slots, cold, hot = _slots(1), ExpertKey(0, 0), ExpertKey(1, 0)
    slots.fill(host.source(), cold, 0, 0)
    slots.set_plan(_plan(1, [[2, 0, 0, 0], [1, 0, 0, 0]], thresholds=(3, 1)))
    assert slots.fill(host.source(), hot, 1, 1).evicted == (cold,)
    # Nor does it come back in its place.
    assert slots.fill(host.source(), cold, 2, 1).outcome is Outcome.NO_VICTIM


def test_no_hot_expert_ever_leaves_for_a_cold_one(host):
    """Every expert asks for a slot again and again, under plans whose layers have different thresholds."""
    draw, slots = np.random.default_rng(3), _slots(3)
    evictions = 0
    for epoch in range(1, 60):
        plan = _plan(epoch, draw.integers(0, 6, (2, 4)), thresholds=draw.integers(0, 6, 2))
        slots.set_plan(plan)
        hot = {ExpertKey(layer, e) for layer, e in np.argwhere(plan.hot()).tolist()}
        for layer, expert in draw.permutation([tuple(key) for key in SHAPE.keys()] * 2).tolist():  # noqa: SIM118
            key, before = ExpertKey(layer, expert), set(slots.residents())
            filled = slots.fill(host.source(), key, int(plan.utilities[layer, expert]), epoch)
            evictions += len(filled.evicted)
            assert key in hot or not hot & set(filled.evicted)
            if key in hot and filled.outcome is Outcome.NO_VICTIM:
                assert before <= hot
        assert len(hot & set(slots.residents())) == min(3, len(hot))
    assert evictions > 50


def test_an_expert_that_left_the_arena_is_not_shown(host):
    slots, key = _slots(1), ExpertKey(0, 1)
    host.arena.invalidate(key)
    filled = slots.fill(host.source(), key, 1, 0)
    assert (filled.outcome, filled.bytes) == (Outcome.NOT_IN_ARENA, 0)
    assert slots.residents() == []
    slots.check_integrity()


def test_a_block_overwritten_while_it_is_copied_is_not_shown(host):
    key = ExpertKey(0, 1)

    class Overtaken(MemoryLink):
        def move(self, block, slot, read_last, wanted):
            moved = super().move(block, slot, read_last, wanted)
            host.write(key, 1, 99)
            return moved

    slots = _slots(1, Overtaken())
    filled = slots.fill(host.source(), key, 1, 0)
    assert (filled.outcome, filled.bytes) == (Outcome.NOT_IN_ARENA, 1000)
    assert slots.residents() == [] and slots.transfers.take() == []
    slots.check_integrity()


def test_a_failing_link_frees_the_slot(host):
    class Broken(MemoryLink):
        def move(self, block, slot, read_last, wanted):
            raise RuntimeError("no route")

    slots = _slots(1, Broken())
    with pytest.raises(RuntimeError, match="no route"):
        slots.fill(host.source(), ExpertKey(0, 0), 1, 0)
    slots.check_integrity()
    assert slots.residents() == []


class Stopped(MemoryLink):
    """Copies `eighths` of an expert, then waits for `go`."""

    def __init__(self, eighths: int) -> None:
        self.eighths, self.reached, self.go = eighths, threading.Event(), threading.Event()

    def move(self, block, slot, read_last, wanted):
        def look(moved: int) -> bool:
            goes_on = wanted(moved)
            if moved == block.nbytes * self.eighths // 8:
                self.reached.set()
                assert self.go.wait(20)
                goes_on = wanted(moved)
            return goes_on

        return super().move(block, slot, read_last, look)


def _overtaken(host, slots: ExpertSlots, link: Stopped, key: ExpertKey, plan: Plan) -> Filled:
    """A fill of `key` during which `plan` comes."""
    filled = []
    thread = threading.Thread(target=lambda: filled.append(slots.fill(host.source(), key, 1, 0)))
    thread.start()
    assert link.reached.wait(20)
    slots.set_plan(plan)
    slots.check_integrity()
    link.go.set()
    thread.join()
    return filled[0]


HOT = _plan(1, [[0, 3, 0, 0], [0, 0, 0, 0]])
"""Layer 0's expert 1 and nothing else."""


def test_a_transfer_that_a_newer_plan_makes_cold_is_cancelled(host):
    link, cold, hot = Stopped(eighths=3), ExpertKey(0, 0), ExpertKey(0, 1)
    slots = _slots(1, link)
    filled = _overtaken(host, slots, link, cold, HOT)
    assert (filled.outcome, filled.bytes) == (Outcome.CANCELLED, 375)
    assert slots.residents() == [] and slots.cancelled == 1
    assert [(t.bytes, t.cancelled) for t in slots.transfers.take()] == [(375, True)]
    slots.check_integrity()
    # Its slot is free, and nothing of it is left there.
    assert slots.fill(host.source(), hot, 3, 1).evicted == ()
    assert slots.residents() == [hot] and _content(slots, hot) == {1} and slots.cancelled == 1


@pytest.mark.parametrize(
    "why,plan",
    [
        ("it is the plan's most wanted", _plan(1, [[3, 3, 0, 0], [0, 0, 0, 0]])),
        ("nothing else may use the link", replace(HOT, link_budget_bytes=SHAPE.expert_bytes - 1)),
        ("the plan is the one it was begun for", replace(HOT, epoch=0)),
    ],
)
def test_a_transfer_goes_on_where(host, why, plan):
    link, key = Stopped(eighths=3), ExpertKey(0, 0)
    slots = _slots(1, link)
    if plan.epoch == 0:
        slots.set_plan(plan)
    assert _overtaken(host, slots, link, key, plan).outcome is Outcome.FILLED, why
    assert _content(slots, key) == {0} and slots.cancelled == 0


@pytest.mark.parametrize("eighths,outcome", [(1, Outcome.CANCELLED), (7, Outcome.FILLED)])
def test_a_transfer_of_some_use_is_cancelled_early_and_finished_late(host, eighths, outcome):
    """Cold, but used more than the resident that leaves next."""
    link, resident = Stopped(eighths=9), ExpertKey(1, 0)
    slots = _slots(2, link)
    slots.fill(host.source(), resident, 1, 0)
    link.eighths = eighths
    plan = _plan(1, [[1, 5, 0, 0], [0, 0, 0, 0]], thresholds=(5, 5))
    assert _overtaken(host, slots, link, ExpertKey(0, 0), plan).outcome is outcome


def test_a_transfer_cancelled_as_it_ends_has_been_made(host):
    class Late(Stopped):
        def move(self, block, slot, read_last, wanted):
            moved = MemoryLink.move(self, block, slot, read_last, wanted)
            self.reached.set()
            assert self.go.wait(20)
            return moved

    link, key = Late(eighths=8), ExpertKey(0, 0)
    slots = _slots(1, link)
    assert _overtaken(host, slots, link, key, HOT).outcome is Outcome.FILLED
    assert _content(slots, key) == {0} and slots.cancelled == 0


def test_a_slow_link_is_free_soon_after_a_cancelled_transfer(host):
    link = EmulatedLink(
        LinkConfig(bandwidth=SHAPE.expert_bytes / 4, latency=0.0)
    )  # 4 s an expert, half a second a piece
    slots, filled = _slots(1, link), []
    started = time.monotonic()
    thread = threading.Thread(target=lambda: filled.append(slots.fill(host.source(), ExpertKey(0, 0), 1, 0)))
    thread.start()
    while not slots._flights:
        time.sleep(0.001)
    slots.set_plan(HOT)
    thread.join()
    one = np.zeros(1, dtype=np.uint8)
    link.move(one, torch.zeros(1, dtype=torch.uint8), None, lambda moved: True)
    assert time.monotonic() - started < 3.5
    assert filled[0].outcome is Outcome.CANCELLED and filled[0].bytes < SHAPE.expert_bytes / 2
    slots.check_integrity()


def test_a_pinned_slot_is_not_given_away(host):
    slots = _slots(1)
    slots.fill(host.source(), ExpertKey(0, 0), 1, 0)
    with slots.pinned(0, [0, 1]) as resident:
        assert list(resident) == [0]
        assert slots.fill(host.source(), ExpertKey(0, 1), 9, 0).outcome is Outcome.NO_VICTIM
    assert slots.fill(host.source(), ExpertKey(0, 1), 9, 0).outcome is Outcome.FILLED


def test_readers_never_see_a_slot_change_while_fills_go_on(host):
    """Threads fill two slots with all eight experts, by turns worth most, while the layers read."""
    slots, source = _slots(2), host.source()
    stop, torn, seen = threading.Event(), [], set()

    def fill(first: int) -> None:
        utility = first
        while not stop.is_set():
            for key in SHAPE.keys()[first:] + SHAPE.keys()[:first]:
                utility += 1
                slots.fill(source, key, utility, 0)

    threads = [threading.Thread(target=fill, args=(i,)) for i in (0, 3)]
    for thread in threads:
        thread.start()
    try:
        rounds, give_up = 0, time.monotonic() + 20
        while rounds < 1500 or (len(seen) <= 2 and time.monotonic() < give_up):
            rounds += 1
            for layer in SHAPE.layer_ids:
                with slots.pinned(layer, range(4)) as resident:
                    for expert, block in resident.items():
                        first = block[: SHAPE.expert_bytes].clone()
                        second = block[: SHAPE.expert_bytes].clone()
                        seen.add((layer, expert))
                        if set(first.tolist()) != {10 * layer + expert} or not torch.equal(first, second):
                            torn.append((layer, expert))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not torn and len(seen) > 2
    slots.check_integrity()


def test_what_a_layer_waits_for_is_not_broken_off(host):
    link, key = Stopped(2), ExpertKey(0, 1)
    slots = _slots(1, link)
    filled: list[Filled] = []
    thread = threading.Thread(target=lambda: filled.append(slots.fill(host.source(), key, 3, 1)))
    thread.start()
    assert link.reached.wait(20)
    slots.count_on([key])
    utilities = np.zeros((2, 4), dtype=int)
    utilities[1] = 9
    assert slots.set_plan(Plan(2, np.ones(2, dtype=int), utilities, 10**6, "GREEDY"))
    link.go.set()
    thread.join()
    assert [each.outcome for each in filled] == [Outcome.FILLED] and slots.cancelled == 0
