"""Feeding a device: what is sent, in which order, within which budget, and what is tried again when."""

import threading
import time

import pytest
from feeding import EXPERT, plan, until
from grpc import StatusCode as CODE

from moespac.actors.core import ExpertKey
from moespac.actors.gpu_device.link import MemoryLink
from moespac.actors.prefetcher import transfers
from moespac.actors.prefetcher.loader import spread
from moespac.actors.transport.messages import plan_to_proto


@pytest.fixture(autouse=True)
def one_call_at_a_time(monkeypatch):
    """So that what a device notes down has an order."""
    monkeypatch.setattr(transfers, "FILLS", 1)


def test_the_next_call_is_under_way_while_one_waits_for_the_link(rig, store, payloads, monkeypatch):
    monkeypatch.setattr(transfers, "FILLS", 2)
    running, most = rig().serve(), 0

    class Counted(MemoryLink):
        copying = 0

        def move(self, block, slot, read_last, wanted):
            nonlocal most
            self.copying += 1
            most = max(most, self.copying)
            if running.device.asked < 6:
                done = len(running.device.fills)
                until(lambda: running.device.asked >= done + 2)
            self.copying -= 1
            return super().move(block, slot, read_last, wanted)

    device = running.with_device(slots=6, link=Counted())
    until(lambda: running.feeder.preloaded)
    assert most == 1, "copies take turns, or each would take as long as all"
    assert device.content() == {key: payloads[key] for key in spread(store.shape)[:6]}
    running.loader.check_integrity()


def test_a_device_lost_with_two_calls_under_way_is_filled_when_it_is_back(rig, store, payloads, monkeypatch):
    monkeypatch.setattr(transfers, "FILLS", 2)
    running = rig().serve()
    device, failures = running.with_device(slots=6, feed=False), iter((1, 1))

    def lose_two(context):
        if next(failures, None):
            context.abort(CODE.UNAVAILABLE, "gone")

    device.filled = lose_two
    running.feeder.start()
    until(lambda: len(device.slots.residents()) == 6)
    assert device.content() == {key: payloads[key] for key in device.slots.residents()}
    until(lambda: not running.feeder._sent)
    running.loader.check_integrity()


def test_slots_are_preloaded_evenly_over_the_layers(rig, store, payloads):
    running = rig().serve()
    device = running.with_device(slots=7)
    until(lambda: running.feeder.preloaded)
    expected = set(spread(store.shape)[:7])
    assert device.content() == {key: payloads[key] for key in expected}
    assert running.feeder.bytes_sent == 7 * EXPERT
    assert {epoch for _, epoch, _ in device.fills} == {0}


def test_preloading_through_an_arena_smaller_than_the_slots(rig, payloads):
    running = rig(blocks=2).serve()
    device = running.with_device(slots=9)
    until(lambda: running.feeder.preloaded)
    content = device.content()
    assert len(content) == 9 and all(payloads[key] == data for key, data in content.items())
    running.loader.check_integrity()


def follow(running, told):
    """As the scheduler does: the device first."""
    running.device.SetPlan(plan_to_proto(told, running.store.shape), None)
    running.stub.SetPlan(plan_to_proto(told, running.store.shape), timeout=5)


def test_hot_experts_are_sent_by_utility(rig, store, payloads):
    running = rig().serve()
    device = running.with_device(slots=3)
    until(lambda: running.feeder.preloaded)
    device.fills.clear()
    wanted = {ExpertKey(1, 7): 3, ExpertKey(2, 6): 5, ExpertKey(0, 5): 4, ExpertKey(0, 6): 2, ExpertKey(0, 0): 1}
    follow(running, plan(store.shape, wanted, epoch=1, threshold=3))
    hot = [ExpertKey(2, 6), ExpertKey(0, 5), ExpertKey(1, 7)]
    until(lambda: set(device.slots.residents()) == set(hot))
    assert [key for key, _, _ in device.fills] == hot
    assert device.content() == {key: payloads[key] for key in hot}


def test_link_budget_bounds_what_a_plan_moves(rig, store):
    running = rig().serve()
    device = running.with_device(slots=6)
    until(lambda: running.feeder.preloaded)
    device.fills.clear()
    wanted = {ExpertKey(layer, 7): 5 - layer for layer in range(3)}
    follow(running, plan(store.shape, wanted, epoch=1, budget=2 * EXPERT + 5))
    until(lambda: len(device.fills) == 2)
    follow(running, plan(store.shape, wanted, epoch=2, budget=0))
    follow(running, plan(store.shape, wanted, epoch=3, budget=EXPERT))
    until(lambda: len(device.fills) == 3)
    assert [(key, epoch) for key, epoch, _ in device.fills] == [
        (ExpertKey(0, 7), 1),
        (ExpertKey(1, 7), 1),
        (ExpertKey(2, 7), 3),
    ]


def test_newer_plan_replaces_what_waits(rig, store):
    """The first plan's experts have no victim on the device: nothing of it may be left once the second came."""
    running = rig().serve()
    device = running.with_device(slots=2)
    until(lambda: running.feeder.preloaded)
    kept = {key: 9 for key in device.slots.residents()}
    follow(running, plan(store.shape, kept | {ExpertKey(2, 7): 3}, epoch=1))
    until(lambda: (ExpertKey(2, 7), 1, "NO_VICTIM") in device.fills)
    follow(running, plan(store.shape, {ExpertKey(0, 7): 3, ExpertKey(1, 7): 3}, epoch=2))
    until(lambda: set(device.slots.residents()) == {ExpertKey(0, 7), ExpertKey(1, 7)})
    assert {key for key, epoch, _ in device.fills if epoch == 2} == {ExpertKey(0, 7), ExpertKey(1, 7)}


def test_evicted_expert_wanted_again_is_sent_again(rig, store):
    running = rig().serve()
    device = running.with_device(slots=1)
    until(lambda: running.feeder.preloaded)
    for epoch, key in enumerate([ExpertKey(1, 3), ExpertKey(2, 4), ExpertKey(1, 3)], start=1):
        follow(running, plan(store.shape, {key: 2}, epoch))
        until(lambda key=key: device.slots.residents() == [key])


def test_replaced_device_is_filled_again(rig, store, payloads):
    running = rig().serve()
    running.with_device(slots=4)
    until(lambda: running.feeder.preloaded)
    wanted = {ExpertKey(2, 7): 5, ExpertKey(1, 6): 5}
    follow(running, plan(store.shape, wanted, epoch=5))
    until(lambda: set(wanted) <= set(running.device.slots.residents()))
    running.device.close()
    del running.directory["gpu-0"]
    follow_on = plan(store.shape, wanted | {ExpertKey(0, 3): 5}, epoch=6)
    running.stub.SetPlan(plan_to_proto(follow_on, store.shape), timeout=5)
    until(lambda: running.log)  # the feeder has found it gone
    fresh = running.with_device(slots=4, feed=False)
    until(lambda: len(fresh.slots.residents()) == 4)
    content = fresh.content()
    assert {ExpertKey(2, 7), ExpertKey(1, 6), ExpertKey(0, 3)} <= set(content)
    assert all(payloads[key] == data for key, data in content.items())


def settled(running, seconds=0.6):
    """The fills made, after a time in which retries by a clock would have made more."""
    time.sleep(seconds)
    return list(running.device.fills)


def test_what_has_no_victim_costs_an_idle_service_nothing(rig, store):
    """An arena of three blocks: every further try would read from disk."""
    running = rig(blocks=3).serve()
    device = running.with_device(slots=2)
    until(lambda: running.feeder.preloaded)
    device.fills.clear()
    kept = {key: 9 for key in device.slots.residents()}
    hot = {ExpertKey(2, e): 7 - e for e in range(3, 7)}
    follow(running, plan(store.shape, kept | hot, epoch=1))
    until(lambda: len(device.fills) == len(hot))
    until(lambda: not running.loader._reading)
    read = running.store.bytes_read
    assert settled(running) == [(key, 1, "NO_VICTIM") for key in hot]
    assert running.store.bytes_read == read
    # The next plan tries again.
    follow(running, plan(store.shape, hot, epoch=2))
    until(lambda: set(device.slots.residents()) == {ExpertKey(2, 3), ExpertKey(2, 4)})


def test_what_had_no_victim_is_tried_again_once_another_transfer_went_well(rig, store):
    running = rig().serve()
    device = running.with_device(slots=2)
    until(lambda: running.feeder.preloaded)
    device.fills.clear()
    kept, cold = device.slots.residents()
    first, second = ExpertKey(2, 7), ExpertKey(1, 7)
    reading = device.slots.pinned(cold.layer, [cold.expert])
    reading.__enter__()

    def let_go(_context):
        device.filled = lambda context: None
        reading.__exit__(None, None, None)

    device.filled = let_go
    follow(running, plan(store.shape, {kept: 9, first: 5, second: 4}, epoch=1))
    until(lambda: set(device.slots.residents()) == {kept, first})
    assert [(key, outcome) for key, _, outcome in device.fills] == [
        (first, "NO_VICTIM"),
        (second, "FILLED"),
        (first, "FILLED"),
    ]


def test_a_lost_answer_costs_its_bytes_and_no_budget_is_renewed(rig, store):
    running = rig().serve()
    device = running.with_device(slots=6)
    until(lambda: running.feeder.preloaded)
    device.fills.clear()

    def lose_one(context):
        device.filled = lambda context: None
        context.abort(CODE.DEADLINE_EXCEEDED, "the answer is lost")

    device.filled = lose_one
    wanted = {ExpertKey(layer, 7): 5 - layer for layer in range(3)}
    follow(running, plan(store.shape, wanted, epoch=1, budget=2 * EXPERT))
    until(lambda: len(device.fills) == 2)
    assert settled(running) == [(ExpertKey(0, 7), 1, "FILLED"), (ExpertKey(1, 7), 1, "FILLED")]
    assert len(running.log) == 1 and "the answer is lost" in running.log[0]


def test_a_replaced_device_gets_the_plans_budget_anew_and_not_more(rig, store):
    running = rig().serve()
    running.with_device(slots=4)
    until(lambda: running.feeder.preloaded)
    wanted = {ExpertKey(2, 7): 5, ExpertKey(1, 7): 4}
    follow(running, plan(store.shape, wanted, epoch=1, budget=EXPERT))
    until(lambda: ExpertKey(2, 7) in running.device.slots.residents())
    running.device.close()
    fresh = running.with_device(slots=4, feed=False)
    fresh.SetPlan(plan_to_proto(plan(store.shape, wanted, epoch=2), store.shape), None)
    running.feeder.set_plan(plan(store.shape, {key: 3 for key in store.shape.keys()}, epoch=2, budget=EXPERT))  # noqa: SIM118
    until(lambda: len(fresh.fills) == 1)
    assert len(settled(running)) == 1


class Held(MemoryLink):
    """While `holding`, copies stop after their first piece until `go`."""

    def __init__(self):
        self.holding, self.go = False, threading.Event()
        self.reached = threading.Event()

    def move(self, block, slot, read_last, wanted):
        def look(moved):
            if self.holding and moved:
                self.reached.set()
                assert self.go.wait(20)
            return wanted(moved)

        return super().move(block, slot, read_last, look)


@pytest.mark.parametrize("still_wanted", [False, True])
def test_a_newer_plan_cancels_what_is_under_way(rig, store, payloads, still_wanted):
    """And has it sent again in its turn, if it wants it too."""
    running, link = rig().serve(), Held()
    device = running.with_device(slots=4, link=link)
    until(lambda: running.feeder.preloaded)
    sent = running.feeder.bytes_sent
    device.fills.clear()
    overtaken, link.holding = ExpertKey(2, 7), True
    follow(running, plan(store.shape, {overtaken: 5}, epoch=1))
    assert link.reached.wait(20)
    urgent = {ExpertKey(layer, 6): 9 - layer for layer in range(3)}
    follow(running, plan(store.shape, urgent | ({overtaken: 1} if still_wanted else {}), epoch=2))
    link.holding = False
    link.go.set()
    last = [(overtaken, 2, "FILLED")] if still_wanted else []
    until(lambda: len(device.fills) == 4 + still_wanted)
    assert device.fills == [(overtaken, 1, "CANCELLED"), *((key, 2, "FILLED") for key in urgent), *last]
    until(lambda: running.feeder.bytes_sent == sent + EXPERT // 8 + EXPERT * (3 + still_wanted))
    content = device.content()
    assert {*urgent, *(key for key, *_ in last)} <= set(content)
    assert all(payloads[key] == data for key, data in content.items())
    device.slots.check_integrity()


class Overtaken(MemoryLink):
    """The arena's block is written anew during every copy."""

    arena = None

    def move(self, block, slot, read_last, wanted):
        moved = super().move(block, slot, read_last, wanted)
        for layer in range(3):
            if (at := self.arena.block_of(ExpertKey(layer, 7))) is not None:
                self.arena.invalidate(ExpertKey(layer, 7))
                self.arena.publish(ExpertKey(layer, 7), at)
        return moved


@pytest.mark.parametrize("budget,rounds,tries", [(3 * EXPERT, 30, 3), (10**9, 4, 5)])
def test_copies_in_vain_are_paid_for_and_end(rig, store, monkeypatch, budget, rounds, tries):
    monkeypatch.setattr(transfers, "RETRY_ROUNDS", rounds)
    running, link = rig().serve(), Overtaken()
    link.arena = running.arena
    device = running.with_device(slots=6, link=link)
    until(lambda: running.feeder.preloaded)
    device.fills.clear()
    follow(running, plan(store.shape, {ExpertKey(1, 7): 5}, epoch=1, budget=budget))
    until(lambda: len(device.fills) == tries)
    assert settled(running) == [(ExpertKey(1, 7), 1, "NOT_IN_ARENA")] * tries


def test_absent_device_neither_hangs_nor_spins(rig):
    running = rig().serve()
    running.feeder.start()
    cpu = time.process_time()
    time.sleep(0.5)  # measures the waiting itself
    assert time.process_time() - cpu < 0.25
    started = time.monotonic()
    running.feeder.stop()
    assert time.monotonic() - started < 5


def test_device_with_other_weights_is_not_fed(rig, store):
    running = rig().serve()
    running.feeder._fingerprint = "another"
    device = running.with_device(slots=2)
    until(lambda: running.log)
    assert "point both at copies of the same store" in running.log[0] and device.fills == []
