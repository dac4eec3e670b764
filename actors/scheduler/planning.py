"""Plans are made beside the steps, never in their way: a thread solves, the newest plan is sent when it is done, and
between plans the utilities that every step changes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import grpc.aio
import structlog

from ...protos.v1 import generation_pb2
from ...protos.v1 import steps_pb2 as pb
from ..core import ModelShape, Plan
from ..policy.planner import Planner
from ..policy.planning_task import PlanningTask, Solved
from ..transport.messages import keys, plan_to_proto, sample_from_proto, window_from_proto
from .device_client import DeviceClient, DeviceLost
from .plan_totals import PlanTotals
from .prefetcher_client import PrefetcherClient

log = structlog.get_logger()

MAX_SPANS = 256
"""Planning spans kept until somebody traces."""


class PlanDispatch:
    """Feeds the planner from step replies and sends what it plans to the device and the prefetcher."""

    def __init__(self, shape: ModelShape, planner: Planner, device: DeviceClient, prefetcher: PrefetcherClient):
        self._shape, self._planner, self._device = shape, planner, device
        self._prefetcher = prefetcher
        self._solver = ThreadPoolExecutor(1, thread_name_prefix="planning")
        self._busy: asyncio.Task | None = None
        self._sent_to = ("", "")
        self._made: list[generation_pb2.PlanInfo] = []
        self._totals = PlanTotals()
        self._spans: list[pb.Span] = []

    @property
    def epoch(self) -> int:
        return self._planner.epoch

    def observe(self, request: str, reply: pb.StepReply) -> list[generation_pb2.PlanInfo]:
        """Learns from a step of `request`, starts the next plan if one is due; returns the plans finished meanwhile."""
        timings = reply.timings
        self._totals.add_step(timings.draft_s + timings.verify_s)
        self._planner.observe(
            window_from_proto(reply.window, reply.prefill, request, None if reply.prefill else reply.accepted + 1),
            [sample_from_proto(sample) for sample in timings.samples],
            keys(reply.resident),
            timings.draft_s + timings.verify_s,
            reply.emitted[-1] if reply.emitted else None,
            timings.draft_s,
        )
        if self._sent_to != self._receivers():
            self._planner.redo()
        if self._busy is None or self._busy.done():
            now = time.monotonic()
            if self._planner.due(now):
                self._start(self._plan())
            elif self._planner.refresh_due(now):
                self._start(self._refresh())
        made, self._made = self._made, []
        return made

    def status(self) -> generation_pb2.PlanningStatus:
        """What has been planned since the start, and what plans are made from now."""
        status = self._totals.message()
        status.estimator = self._planner.estimator
        status.prefetch_open = self._planner.prefetch_open
        if (recall := self._planner.prefetch_recall) is not None:
            status.prefetch_recall = recall
        status.prediction_errors.update(self._planner.prediction_errors())
        return status

    def complete(self, statistics: generation_pb2.Statistics) -> None:
        """Adds what is known when a request ends."""
        if (recall := self._planner.prefetch_recall) is not None:
            statistics.prefetch_recall = recall
        statistics.prefetch_closed = not self._planner.prefetch_open
        statistics.prediction_errors.update(self._planner.prediction_errors())

    def take_spans(self) -> list[pb.Span]:
        """Planning spans since the last call."""
        spans, self._spans = self._spans, []
        return spans

    async def stop(self) -> None:
        if self._busy is not None:
            self._busy.cancel()
        self._solver.shutdown(wait=False, cancel_futures=True)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        self._busy = asyncio.create_task(work)
        self._busy.add_done_callback(_log_failure)

    async def _refresh(self) -> None:
        """The plan that stands, with the utilities of now; begun when the next step is under way."""
        started = time.monotonic()
        plan = self._planner.refresh()
        message = plan_to_proto(plan, self._shape)
        self._planner.refreshed(time.monotonic() - started, time.monotonic())
        await self._send(plan, message)

    async def _plan(self) -> None:
        started_ns, started = time.time_ns(), time.monotonic()
        task = self._planner.task()
        ends = started + task.deadline_s
        solved = await asyncio.get_running_loop().run_in_executor(
            self._solver, task.solve, lambda: ends - time.monotonic()
        )
        ended_ns = time.time_ns()
        took_s = (ended_ns - started_ns) / 1e9
        self._planner.adopt(task, solved, took_s, time.monotonic())
        made = _described(task, solved, took_s)
        self._made.append(made)
        self._totals.add_plan(made)
        self._spans.append(
            pb.Span(
                row="planning",
                name=f"plan {made.epoch}",
                start_ns=started_ns,
                end_ns=ended_ns,
                args=self._span_args(made),
            )
        )
        del self._spans[:-MAX_SPANS]
        await self._send(solved.plan, plan_to_proto(solved.plan, self._shape))

    def _span_args(self, plan: generation_pb2.PlanInfo) -> dict[str, str]:
        recall = self._planner.prefetch_recall
        return {
            "solver": plan.solver,
            "status": plan.status,
            "gap": f"{plan.gap:.4f}",
            "drift": f"{plan.drift:.3f}",
            "hot": str(plan.hot),
            "transfers": f"{plan.transfers_wanted} of {plan.transfers_allowed}",
            "prefetch_recall": "unknown" if recall is None else f"{recall:.2f}",
            **{f"error {actor}": f"{error:.3f}" for actor, error in self._planner.prediction_errors().items()},
        }

    async def _send(self, plan: Plan, message: pb.Plan) -> None:
        """To the device first: it orders its evictions by the plan before the prefetcher's first transfer arrives."""
        try:
            reply = await self._device.set_plan(message)
            if not reply.accepted:
                # This scheduler was restarted and counts from 1 again, the device has seen higher epochs.
                self._planner.epoch = max(self._planner.epoch, reply.epoch_held) + 1
                message = plan_to_proto(replace(plan, epoch=self._planner.epoch), self._shape)
                await self._device.set_plan(message)
        except (DeviceLost, grpc.aio.AioRpcError) as error:
            # A plan is advice: the next one follows soon, and everybody works on with the last.
            log.warning("plan not delivered", epoch=plan.epoch, reason=str(error))
            self._totals.undelivered += 1
            self._sent_to = ("", "")
            return
        delivered = await self._prefetcher.set_plan(message) is not None
        self._sent_to = self._receivers() if delivered else ("", "")

    def _receivers(self) -> tuple[str, str]:
        """Incarnations of device and prefetcher: a restarted one has no plan."""
        return self._device.incarnation, self._prefetcher.incarnation


def _described(task: PlanningTask, solved: Solved, took_s: float) -> generation_pb2.PlanInfo:
    return generation_pb2.PlanInfo(
        epoch=solved.plan.epoch,
        solver="thresholds" if task.assignment is None else "assignment",
        status=solved.plan.solver_status,
        gap=solved.gap,
        seconds=took_s,
        drift=task.drift,
        hot=solved.hot,
        transfers_wanted=solved.transfers,
        transfers_allowed=task.problem.link_experts,
        link_budget_bytes=task.link_budget_bytes,
    )


def _log_failure(task: asyncio.Task) -> None:
    if not task.cancelled() and task.exception() is not None:
        log.error("no plan was made", error=repr(task.exception()))
