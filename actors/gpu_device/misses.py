"""The CPU workers' part of a layer's experts that are not resident: sent, and left to others where they fail."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import torch

from ..core import CostSample
from ..transport.calls import CallFailed, ExpertCaller, PendingCall
from .measured_costs import MeasuredCosts
from .passes import Pass
from .routing import Routing

PATIENCE_S = 1.0
PATIENCE_FACTOR = 10.0
"""A call gets PATIENCE_S plus PATIENCE_FACTOR times what it should take; then its experts are computed here."""


class Workers:
    """The CPU workers as one layer sees them."""

    def __init__(self, caller: ExpertCaller, names: Sequence[str], costs: MeasuredCosts):
        """`costs` is fed with what calls took."""
        self._caller, self._names, self._costs = caller, tuple(names), costs

    def available(self) -> list[str]:
        """Those that have not just failed."""
        return [name for name in self._names if self._caller.available(name)]

    def start(
        self, run: Pass, layer: int, hidden: torch.Tensor, routing: Routing, shares: Mapping[str, Sequence[int]]
    ) -> list[PendingCall]:
        """Sends each worker its share of `layer`: experts, ascending, at least one. Nothing is waited for."""
        if not shares:
            return []
        calls = []
        on_host = hidden.detach().to("cpu", torch.float32)
        for name, share in shares.items():
            sizes = routing.sizes(list(share))
            expected_s = self._costs.call_s(name, len(share), sum(sizes.values()))
            patience_s = min(PATIENCE_S + PATIENCE_FACTOR * expected_s, run.remaining_s())
            pairs = [routing.pairs[e] for e in share]
            calls.append(self._caller.start(name, layer, run.epoch, run.request_ids, on_host, pairs, patience_s))
        run.expert_calls += len(calls)
        return calls

    def collect(self, run: Pass, layer: int, calls: Sequence[PendingCall]) -> dict[int, torch.Tensor]:
        """Waits for `calls`; the rows (float32, CPU) of the experts that were computed. Failed calls are left out."""
        rows: dict[int, torch.Tensor] = {}
        started = time.perf_counter()
        for call in calls:
            try:
                rows.update(call.result())
            except CallFailed as failure:
                now = time.time_ns()
                run.span(call.worker, f"layer {layer} failed", now, now, reason=failure.reason)
                continue
            self._note(run, layer, call)
        run.wait_s += time.perf_counter() - started
        return rows

    def _note(self, run: Pass, layer: int, call: PendingCall) -> None:
        for part in call.served:
            run.span(
                call.worker,
                f"layer {layer}",
                part.sent_ns,
                part.received_ns,
                experts=part.experts,
                pairs=part.pairs,
                computing_ns=part.finished_ns - part.started_ns - part.weights_wait_ns,
                way=part.way,
            )
        first, last = call.served[0].sent_ns, max(part.received_ns for part in call.served)
        # What a disk made slow says nothing about how fast the worker computes.
        waited = sum(part.weights_wait_ns for part in call.served)
        taken = max(0, last - first - waited)
        computing = sum(part.finished_ns - part.started_ns - part.weights_wait_ns for part in call.served)
        sample = CostSample(
            call.worker,
            len(call.experts),
            sum(part.pairs for part in call.served),
            taken * 1e-9,
            waited * 1e-9,
            (taken - min(max(0, computing), taken)) * 1e-9,
        )
        run.samples.append(sample)
        run.lane_calls += all(part.way == "lane" for part in call.served)
        self._costs.note_call(sample)
