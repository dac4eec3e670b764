"""The step loop against a device that hangs, dies, forgets and comes back."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator

import grpc
import pytest
from scripted_device import ScriptedDevice

from moespac.actors.core import DraftChoice
from moespac.actors.policy.planner import Planner, PlannerSettings
from moespac.actors.policy.turns import Turns
from moespac.actors.scheduler.device_client import DeviceClient
from moespac.actors.scheduler.loop import MAX_STALLS, LoopSettings, StepLoop
from moespac.actors.scheduler.planning import PlanDispatch
from moespac.actors.scheduler.prefetcher_client import PrefetcherClient
from moespac.actors.scheduler.request import Failure, Request
from moespac.actors.transport.async_peers import AsyncPeers
from moespac.actors.transport.endpoint import INCARNATION
from moespac.actors.transport.messages import shape_from_proto
from moespac.protos.v1 import generation_pb2 as pb

STEP_TIMEOUT_S = 0.5


@pytest.fixture
def device():
    scripted = ScriptedDevice()
    scripted.start()
    yield scripted
    scripted.stop()


@contextlib.asynccontextmanager
async def running(device: ScriptedDevice, kv_bytes: int = 10_000) -> AsyncIterator[StepLoop]:
    peers = AsyncPeers(device.resolve)
    client = DeviceClient(peers, device.name, STEP_TIMEOUT_S)
    loop = StepLoop(client, Turns(4, 4, kv_bytes), LoopSettings(4, 64, restart_patience_s=5.0))
    description = await client.wait_ready(5.0)
    settings = PlannerSettings("decayed", replan_every=2, deadline_s=0.1)
    planner = Planner(shape_from_proto(description.model), description.slots, device.name, [], settings)
    plans = PlanDispatch(shape_from_proto(description.model), planner, client, PrefetcherClient(peers, "prefetcher"))
    await loop.start(description, plans)
    task = asyncio.create_task(loop.run())
    try:
        yield loop
        assert not task.done(), f"the loop ended: {task}"
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await loop.stop()
        await peers.close()


def submitted(loop: StepLoop, name: str, max_tokens: int = 6, remaining_s: float | None = None) -> Request:
    message = pb.SubmitRequest(request_id=name, prompt_ids=[10], max_tokens=max_tokens)
    request = loop.new_request(message, remaining_s)
    assert loop.submit(request) is None
    return request


async def outcome(request: Request) -> tuple[list[int], pb.Statistics | Failure]:
    """All tokens and how it ended."""
    tokens: list[int] = []
    async with asyncio.timeout(20):
        while True:
            event = await request.events.get()
            if isinstance(event, Failure):
                return tokens, event
            tokens += event.token_ids
            if event.HasField("statistics"):
                return tokens, event.statistics


def status_of(loop: StepLoop) -> pb.StatusReply:
    status = pb.StatusReply()
    loop.report(status)
    return status


def test_requests_take_turns_and_end_with_statistics(device):
    wanted = []
    device.on_step = lambda request, context: wanted.extend(draft.gamma for draft in request.drafts)

    async def run():
        async with running(device) as loop:
            ends = await asyncio.gather(outcome(submitted(loop, "a")), outcome(submitted(loop, "b")))
            async with asyncio.timeout(5):
                while not ({"a", "b"} <= set(device.closed) and status_of(loop).planning.HasField("last")):
                    await asyncio.sleep(0.01)
            status = status_of(loop)
        for tokens, statistics in ends:
            assert tokens == [11, 12, 13, 14, 15, 16]
            assert (statistics.tokens, statistics.steps, statistics.restarts) == (6, 3, 0)
        assert status.work.tokens == 12 and status.work.steps == 6 and status.work.decode_s > 0
        assert (status.work.uses, status.work.hits) == (24, 12)
        steps = [(entry.kind, entry.gamma, entry.steps) for entry in status.speculation.steps]
        assert steps == [("model", 2, 6)], "as many as were proposed"
        assert sorted(wanted)[-6:] == [1, 1, 3, 3, 4, 4], "never more than is still wanted"
        (choices,) = status.speculation.decisions
        assert (choices.reason, choices.tokens) == ("fixed", 12) and choices.promised_tokens > 0
        assert (status.planning.estimator, status.planning.prefetch_open) == ("decayed", True)
        assert status.planning.last.solver == "thresholds" and status.planning.last.hot <= 2
        assert 0 < sum(plans.plans for plans in status.planning.plans) == status.planning.last.epoch
        turns = [name for name, _ in device.steps if name in "ab"]
        assert turns in (["a", "b"] * 3, ["b", "a"] * 3)
        assert {request.scheduler for request in device.opened} == {INCARNATION}

    asyncio.run(run())


def test_all_of_a_choice_reaches_the_device(device):
    choice = DraftChoice("model", 5, least_match=3, chances=(0.25, 0.5), floors=(0.75,))
    heard = []
    device.on_step = lambda request, context: heard.extend(request.drafts)
    device.sessions["a"] = 10

    async def scenario():
        peers = AsyncPeers(device.resolve)
        client = DeviceClient(peers, device.name, STEP_TIMEOUT_S)
        await client.step("a", [choice, DraftChoice("ngram", 2)], 8, False)
        await peers.close()

    asyncio.run(scenario())
    told = [(c.kind, c.gamma, c.least_match, tuple(c.chances), tuple(c.floors)) for c in heard]
    assert told == [choice, DraftChoice("ngram", 2)]


def test_plans_are_renewed_between_solutions(device):
    async def scenario():
        async with running(device) as loop:
            await outcome(submitted(loop, "a", max_tokens=40))

    device.on_step = lambda request, context: time.sleep(0.02)
    asyncio.run(scenario())
    epochs, solved = [plan.epoch for plan in device.plans], 40 // 2 // 2
    assert epochs == sorted(set(epochs)) and len(epochs) > solved, "more than a plan every second step"
    assert all(plan.solver_status and plan.transfer_cost for plan in device.plans)


def test_a_device_killed_in_the_middle_changes_no_token(device):
    async def run():
        async with running(device) as loop:
            request = submitted(loop, "a", max_tokens=8)
            while len(request.emitted) < 2:
                await asyncio.sleep(0.01)
            device.stop()
            await asyncio.sleep(0.2)
            device.start()
            tokens, statistics = await outcome(request)
        assert tokens == list(range(11, 19))
        # It may have been done before the device died, on a fast machine.
        assert statistics.restarts in (0, 1)

    asyncio.run(run())


def test_a_device_lost_while_idle_is_noticed_and_found_again(device):
    async def run():
        async with running(device) as loop:
            device.stop()
            await loop.refresh()
            assert not loop.ready
            device.start()
            async with asyncio.timeout(10):
                while not loop.ready:
                    await asyncio.sleep(0.05)
            assert (await outcome(submitted(loop, "a")))[0] == [11, 12, 13, 14, 15, 16]

    asyncio.run(run())


def test_a_device_that_loads_again_is_not_ready(device):
    async def run():
        async with running(device) as loop:
            device.ready = False
            await loop.refresh()
            assert not loop.ready
            device.ready = True
            async with asyncio.timeout(10):
                while not loop.ready:
                    await asyncio.sleep(0.05)

    asyncio.run(run())


def test_a_device_that_forgot_is_told_again(device):
    forgotten = threading.Event()

    def forget(request, context):
        if len(device.steps) == 3 and not forgotten.is_set():  # the warm-up's was the first
            forgotten.set()
            device.sessions.clear()

    device.on_step = forget

    async def run():
        async with running(device) as loop:
            tokens, _ = await outcome(submitted(loop, "a"))
        assert forgotten.is_set() and tokens == [11, 12, 13, 14, 15, 16]

    asyncio.run(run())


def test_an_error_from_close_ends_nothing_but_is_survived(device):
    async def run():
        async with running(device) as loop:
            device.on_close = lambda request, context: context.abort(grpc.StatusCode.INTERNAL, "no")
            assert (await outcome(submitted(loop, "a")))[0] == [11, 12, 13, 14, 15, 16]
            assert (await outcome(submitted(loop, "b")))[0] == [11, 12, 13, 14, 15, 16]

    asyncio.run(run())


def test_a_step_that_hangs_is_taken_up_again(device):
    hung = threading.Event()

    def hang_once(request, context):
        if request.request_id == "a" and not hung.is_set():
            hung.set()
            time.sleep(2 * STEP_TIMEOUT_S)

    device.on_step = hang_once

    async def run():
        async with running(device) as loop:
            tokens, statistics = await outcome(submitted(loop, "a"))
        assert hung.is_set() and tokens == [11, 12, 13, 14, 15, 16]
        assert statistics.restarts == 1

    asyncio.run(run())


def test_a_request_over_which_the_device_always_hangs_is_given_up(device):
    def hang(request, context):
        if request.request_id == "a":
            context.add_callback(lambda: None)
            time.sleep(2 * STEP_TIMEOUT_S)

    device.on_step = hang

    async def run():
        async with running(device) as loop:
            _, failure = await outcome(submitted(loop, "a"))
            assert failure.code == grpc.StatusCode.UNAVAILABLE
            assert sum(1 for name, _ in device.steps if name == "a") == MAX_STALLS + 1
            assert (await outcome(submitted(loop, "b")))[0] == [11, 12, 13, 14, 15, 16]

    asyncio.run(run())


def test_the_clients_deadline_reaches_the_device(device):
    async def run():
        async with running(device) as loop:
            await outcome(submitted(loop, "a", remaining_s=0.3))
            left = [seconds for name, seconds in device.steps if name == "a"]
            assert left and max(left) < STEP_TIMEOUT_S - 0.1, "the rest of the deadline, not the step timeout"
            device.on_step = lambda request, context: time.sleep(0.05)
            tokens, failure = await outcome(submitted(loop, "b", max_tokens=500, remaining_s=0.3))
            assert failure.code == grpc.StatusCode.DEADLINE_EXCEEDED and 0 < len(tokens) < 20
            assert loop.ready

    asyncio.run(run())


def test_a_request_that_was_left_takes_no_further_step(device):
    device.on_step = lambda request, context: time.sleep(0.02)

    async def run():
        async with running(device) as loop:
            request = submitted(loop, "a", max_tokens=500)
            while len(request.emitted) < 2:
                await asyncio.sleep(0.01)
            loop.abandon(request)
            steps = len(device.steps)
            async with asyncio.timeout(5):
                while "a" not in device.closed:
                    await asyncio.sleep(0.01)
            assert len(device.steps) <= steps + 1
            assert loop.running == 0

    asyncio.run(run())


def test_a_request_that_is_finished_ends_with_statistics_at_once(device):
    """Not behind the step that runs, and without what that step emits."""

    async def run():
        release = threading.Event()
        device.on_step = lambda request, context: len(device.steps) < 4 or release.wait(5)
        async with running(device) as loop:
            request = submitted(loop, "a", max_tokens=100)
            async with asyncio.timeout(5):
                while len(device.steps) < 4:
                    await asyncio.sleep(0.01)
            loop.finish("a")
            loop.finish("nobody")
            tokens, statistics = await outcome(request)
            release.set()
            async with asyncio.timeout(5):
                while "a" not in device.closed:
                    await asyncio.sleep(0.01)
            assert tokens == [11, 12, 13, 14] and loop.running == 0
        assert statistics.finish_reason == pb.Statistics.STOP and not statistics.HasField("stop_token_id")

    asyncio.run(run())


def test_stop_tokens_end_a_request_inside_a_step_and_logprobs_go_along(device):
    device.eos = [13]

    async def run():
        async with running(device) as loop:
            message = pb.SubmitRequest(request_id="a", prompt_ids=[10], max_tokens=9, stop_token_ids=[15], logprobs=2)
            message.ignore_eos = True
            request = loop.new_request(message, None)
            assert loop.submit(request) is None
            async with asyncio.timeout(20):
                events = [await request.events.get()]
                while not events[-1].HasField("statistics"):
                    events.append(await request.events.get())
        assert [list(event.token_ids) for event in events[:-1]] == [[11, 12], [13, 14]]
        assert [[entry.token for entry in event.logprobs] for event in events[:-1]] == [[11, 12], [13, 14]]
        assert events[-1].statistics.stop_token_id == 15 and events[-1].statistics.tokens == 4
        opened = device.opened[-1]
        assert (opened.prompt_tokens, opened.logprobs) == (1, 2)

    asyncio.run(run())


def test_what_never_fits_and_what_is_too_long_is_refused(device):
    async def run():
        async with running(device, kv_bytes=200) as loop:
            fits_never = loop.new_request(pb.SubmitRequest(request_id="a", prompt_ids=[1] * 30, max_tokens=5), None)
            assert loop.submit(fits_never).code == grpc.StatusCode.RESOURCE_EXHAUSTED
            too_long = loop.new_request(pb.SubmitRequest(request_id="b", prompt_ids=[1] * 999, max_tokens=5), None)
            refusal = loop.submit(too_long)
            assert refusal.code == grpc.StatusCode.INVALID_ARGUMENT and "1000" in refusal.message

    asyncio.run(run())
