"""Experts that a layer uses and that are not resident: handed to the CPU workers, taken back from those that fail."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

import torch

from ..core import CostSample
from ..policy.cost import CostModel
from ..policy.reactive import split_misses
from ..transport.calls import CallFailed, ExpertCaller, PendingCall
from .passes import Pass
from .routing import Routing

PATIENCE_S = 1.0
PATIENCE_FACTOR = 10.0
"""A call gets PATIENCE_S plus PATIENCE_FACTOR times what it should take; then its experts are computed here."""

LEARN_FIRST, LEARN_EVERY = 32, 8
"""The first calls to a worker are all learnt from, then every eighth: a fit takes half a millisecond of a pass."""


class Workers:
    """The CPU workers as one layer sees them."""

    def __init__(self, caller: ExpertCaller, names: Sequence[str], costs: CostModel):
        """`costs` is fed with what calls took."""
        self._caller, self._names, self._costs = caller, tuple(names), costs
        self._calls: Counter[str] = Counter()

    def start(
        self, run: Pass, layer: int, hidden: torch.Tensor, routing: Routing, misses: list[int]
    ) -> list[PendingCall]:
        """Sends `misses` of `layer` to the workers that answer, shared out by their measured speed.

        Nothing is waited for. Empty when no worker is available: the caller computes the experts itself.
        """
        names = [name for name in self._names if self._caller.available(name)]
        if not misses or not names:
            return []
        sizes = routing.sizes(misses)
        calls = []
        on_host = hidden.detach().to("cpu", torch.float32)
        for name, share in zip(names, split_misses(sizes, self._costs.worker_costs(names)), strict=True):
            if not share:
                continue
            expected_s = self._costs.predict(name, len(share), sum(sizes[e] for e in share))
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
        sample = CostSample(
            call.worker,
            len(call.experts),
            sum(part.pairs for part in call.served),
            max(0, last - first - waited) * 1e-9,
            waited * 1e-9,
        )
        run.samples.append(sample)
        calls = self._calls[call.worker]
        self._calls[call.worker] += 1
        if calls < LEARN_FIRST or calls % LEARN_EVERY == 0:
            self._costs.observe(sample)
