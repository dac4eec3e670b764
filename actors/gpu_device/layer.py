"""One layer's routed experts: residents here, misses on the workers at the same time, what fails here after all."""

from __future__ import annotations

import time
from functools import partial

import torch

from ...kernels.layout import ExpertLayout
from ...kernels.reference import expert_rows
from ..core import CostSample, ModelShape
from ..prefetcher.source import ExpertSource
from .hook import LayerExperts
from .misses import Workers
from .passes import Pass
from .routing import Routing, join, route
from .slots import ExpertSlots

Rows = dict[int, torch.Tensor]


class LayerExecutor:
    """Computes the experts that routers ask for. `name`: the device's, for its cost samples."""

    def __init__(
        self,
        name: str,
        shape: ModelShape,
        layout: ExpertLayout,
        slots: ExpertSlots,
        source: ExpertSource,
        workers: Workers | None,
    ):
        self.name, self.shape, self.layout = name, shape, layout
        self.slots, self.source, self._workers = slots, source, workers

    def bound_to(self, run: Pass) -> LayerExperts:
        """What the model's experts modules call during the pass `run`."""
        return partial(self._compute, run)

    def _compute(
        self, run: Pass, layer: int, hidden: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """[T, H] -> [T, H]. Raises PassAbandoned, and ExpertsUnavailable when weights cannot be had anywhere."""
        run.check_wanted()
        routing = route(top_k_index, top_k_weights, self.shape.n_experts)
        calls = []
        try:
            with self.slots.pinned(layer, list(routing.pairs)) as residents:
                run.routed(layer, routing.counts, len(residents))
                misses = [e for e in routing.pairs if e not in residents]
                if self._workers is not None:
                    calls = self._workers.start(run, layer, hidden, routing, misses)
                rows = self._local(run, layer, hidden, routing, residents)
            if self._workers is not None and calls:
                rows |= self._workers.collect(run, layer, calls)
        finally:
            # Only where the pass breaks off: a call that was collected has nothing left to cancel.
            for call in calls:
                call.cancel()
        undone = [e for e in misses if e not in rows]
        if undone:
            rows |= self._fallback(run, layer, hidden, routing, undone)
        return join(hidden, routing, rows)

    def _local(
        self, run: Pass, layer: int, hidden: torch.Tensor, routing: Routing, residents: dict[int, torch.Tensor]
    ) -> Rows:
        """Rows of the residents."""
        if not residents:
            return {}
        start_ns, started = time.time_ns(), time.perf_counter()
        rows = {e: self._expert(hidden, routing, e, block) for e, block in residents.items()}
        if hidden.is_cuda:
            # Timings feed the cost model: they must not end while kernels are still queued.
            torch.cuda.current_stream(hidden.device).synchronize()
        seconds = time.perf_counter() - started
        run.local_s += seconds
        pairs = sum(routing.sizes(list(residents)).values())
        run.samples.append(CostSample(self.name, len(residents), pairs, seconds))
        run.span("local experts", f"layer {layer}", start_ns, time.time_ns(), experts=len(residents), pairs=pairs)
        return rows

    def _fallback(self, run: Pass, layer: int, hidden: torch.Tensor, routing: Routing, experts: list[int]) -> Rows:
        """Rows of experts that nobody else computed, from host memory: costs time, never tokens."""
        rows: Rows = {}

        def compute(expert: int, block) -> None:
            weights = torch.from_numpy(block.copy()).to(hidden.device) if hidden.is_cuda else block
            rows[expert] = self._expert(hidden, routing, expert, weights)

        with run.traced("local experts", f"layer {layer} fallback", experts=len(experts)):
            self.source.with_experts(layer, experts, compute, run.deadline)
        run.fallback_experts += len(experts)
        return rows

    def _expert(self, hidden: torch.Tensor, routing: Routing, expert: int, block) -> torch.Tensor:
        _, token_rows, weights = routing.pairs[expert]
        return expert_rows(self.layout, self.layout.weights(block), hidden[token_rows], weights)
