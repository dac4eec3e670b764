"""One layer's routed experts: residents here, misses on the workers and over the link at the same time, what fails here
after all."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch

from ...kernels.experts import ExpertKernel, ExpertWork
from ..core import CostSample, ExpertKey, ModelShape
from ..policy.cost import LINK
from ..prefetcher.source import ExpertSource
from .hook import LayerExperts
from .measured_costs import MeasuredCosts
from .misses import Workers
from .passes import Pass
from .routing import Routing, join, renormalised, route
from .sharing import Sharing
from .slots import ExpertSlots
from .staging import Staging

Rows = dict[int, torch.Tensor]

COPY_PATIENCE_S = 1.0
COPY_PATIENCE_FACTOR = 10.0
"""A copy gets COPY_PATIENCE_S plus COPY_PATIENCE_FACTOR times what it should take; then its expert is computed from
host memory."""


class LayerExecutor:
    """Computes the experts that routers ask for."""

    def __init__(
        self,
        name: str,
        shape: ModelShape,
        kernel: ExpertKernel,
        spare_kernel: ExpertKernel,
        slots: ExpertSlots,
        source: ExpertSource,
        costs: MeasuredCosts,
        workers: Workers | None = None,
        staging: Staging | None = None,
    ):
        """`name`: the device's, for its cost samples; `kernel`: computes from slots and staging, `spare_kernel` from
        elsewhere."""
        self.name, self.shape, self._kernel, self._spare_kernel = name, shape, kernel, spare_kernel
        self.slots, self.source, self._costs = slots, source, costs
        self._workers, self.staging = workers, staging
        self._sharing = Sharing(name, shape, costs, slots, source, workers, staging)

    def bound_to(self, run: Pass) -> LayerExperts:
        """What the model's experts modules call during the pass `run`."""
        return partial(self._compute, run)

    def residents_only(self, run: Pass) -> LayerExperts:
        """The same for a draft before the pass `run`: experts that are not resident are left out.

        What the routers wanted goes into `run.predicted`, and nothing into `run.counts`.
        """
        return partial(self._residents_only, run)

    def _compute(
        self, run: Pass, layer: int, hidden: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """[T, H] -> [T, H]. Raises PassAbandoned, and ExpertsUnavailable when weights cannot be had anywhere."""
        run.check_wanted()
        routing = route(top_k_index, top_k_weights, self.shape.n_experts)
        calls = []
        try:
            with self.slots.pinned(layer, list(routing.pairs)) as residents:
                run.routed(layer, routing, len(residents))
                misses = [e for e in routing.pairs if e not in residents]
                decision, decided = self._sharing.decide(layer, routing, list(residents), misses), time.perf_counter()
                self.slots.count_on(decision.landing)
                if self.staging is not None and misses:
                    self.staging.order(decision.staged, decision.ahead, run.deadline)
                if self._workers is not None:
                    calls = self._workers.start(run, layer, hidden, routing, decision.calls)
                rows = self._local(run, layer, hidden, routing, residents)
            rows |= self._staged(run, layer, hidden, routing, decision.staged)
            rows |= self._landed(run, layer, hidden, routing, decision.landing)
            if self._workers is not None and calls:
                rows |= self._workers.collect(run, layer, calls)
            self._sharing.note(decision, len(hidden), time.perf_counter() - decided)
        except BaseException:
            if self.staging is not None:
                self.staging.order(())
            raise
        finally:
            # Only where the pass breaks off: a call that was collected has nothing left to cancel.
            for call in calls:
                call.cancel()
        undone = [e for e in misses if e not in rows]
        if undone:
            rows |= self._fallback(run, layer, hidden, routing, undone)
        return join(hidden, routing, rows)

    def _residents_only(
        self, run: Pass, layer: int, hidden: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """[T, H] -> [T, H], the weights of the residents scaled to make up for those left out."""
        run.check_wanted()
        with self.slots.pinned(layer, np.unique(top_k_index.cpu().numpy()).tolist()) as residents:
            weights = renormalised(top_k_index, top_k_weights, list(residents))
            routing = route(top_k_index, weights, self.shape.n_experts)
            run.foreseen(layer, routing.counts)
            kept = Routing(routing.counts, routing.chosen, {e: routing.pairs[e] for e in residents})
            rows = self._local(run, layer, hidden, kept, residents)
        return join(hidden, kept, rows)

    def _local(
        self,
        run: Pass,
        layer: int,
        hidden: torch.Tensor,
        routing: Routing,
        blocks: Mapping[int, torch.Tensor],
        row: str = "local experts",
        note: str = "",
    ) -> Rows:
        """Rows of experts that are on the device; `row` and `note` are the timeline's."""
        if not blocks:
            return {}
        start_ns, started = time.time_ns(), time.perf_counter()
        rows = _compute_with(self._kernel, hidden, routing, blocks)
        if hidden.is_cuda:
            # Timings feed the cost model: they must not end while kernels are still queued.
            torch.cuda.current_stream(hidden.device).synchronize()
        seconds = time.perf_counter() - started
        run.local_s += seconds
        pairs = sum(routing.sizes(list(blocks)).values())
        sample = CostSample(self.name, len(blocks), pairs, seconds)
        run.samples.append(sample)
        self._costs.note(sample)
        run.span(row, f"layer {layer}{note}", start_ns, time.time_ns(), experts=len(blocks), pairs=pairs)
        return rows

    def _staged(self, run: Pass, layer: int, hidden: torch.Tensor, routing: Routing, keys: Sequence[ExpertKey]) -> Rows:
        """Rows of experts that come through staging, some of them at a time while the next are copied."""
        rows: Rows = {}
        left = list(keys)
        while left and self.staging is not None:
            started = time.perf_counter()
            with self.staging.ready(left, self._patience_s(run)) as ready:
                run.copy_wait_s += time.perf_counter() - started
                if not ready:
                    break
                blocks = {key.expert: block for key, block in ready.items()}
                rows |= self._local(run, layer, hidden, routing, blocks, "streamed experts")
            left = [key for key in left if key not in ready]
        run.streamed_experts += len(rows)
        return rows

    def _landed(self, run: Pass, layer: int, hidden: torch.Tensor, routing: Routing, keys: Sequence[ExpertKey]) -> Rows:
        """Rows of experts whose copies into slots were under way, as far as they have arrived."""
        if not keys:
            return {}
        started = time.perf_counter()
        self.slots.wait_landed(keys, self._patience_s(run))
        run.copy_wait_s += time.perf_counter() - started
        with self.slots.pinned(layer, [key.expert for key in keys]) as there:
            rows = self._local(run, layer, hidden, routing, there, note=" awaited")
        run.awaited_experts += len(rows)
        return rows

    def _patience_s(self, run: Pass) -> float:
        expected_s = self._costs.model.predict(LINK, 1, 0)
        return min(COPY_PATIENCE_S + COPY_PATIENCE_FACTOR * expected_s, run.remaining_s())

    def _fallback(self, run: Pass, layer: int, hidden: torch.Tensor, routing: Routing, experts: list[int]) -> Rows:
        """Rows of experts that nobody else computed, from host memory: costs time, never tokens."""
        rows: Rows = {}

        def compute(blocks: dict[int, np.ndarray]) -> None:
            if hidden.is_cuda:
                here = {e: torch.from_numpy(block.copy()).to(hidden.device) for e, block in blocks.items()}
            else:
                here = blocks
            rows.update(_compute_with(self._spare_kernel, hidden, routing, here))

        with run.traced("local experts", f"layer {layer} fallback", experts=len(experts)):
            self.source.with_experts(layer, experts, compute, run.deadline)
        run.fallback_experts += len(experts)
        return rows


def _compute_with(
    kernel: ExpertKernel, hidden: torch.Tensor, routing: Routing, blocks: Mapping[int, np.ndarray | torch.Tensor]
) -> Rows:
    work = [ExpertWork(block, *routing.pairs[e][1:]) for e, block in blocks.items()]
    rows = kernel.rows(hidden, work)
    return dict(zip(blocks, rows.split([len(w.token_rows) for w in work]), strict=True))
