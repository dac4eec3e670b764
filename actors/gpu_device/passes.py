"""One pass over the layers: on whose behalf it runs, when it must stop, and what it did."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from ..core import CostSample, ModelShape, RoutingWindow, Span
from .routing import Routing


class PassAbandoned(RuntimeError):
    """Nobody waits for the result any more."""


class DeadlinePassed(PassAbandoned):
    """The result would come too late."""


@dataclass
class Pass:
    """Context and record of one pass; layers write into it as they run."""

    shape: ModelShape
    request_ids: tuple[str, ...]
    epoch: int = 0
    """Plan followed."""
    deadline: float | None = None
    """On `time.monotonic`; expert calls get no later one."""
    wanted: Callable[[], bool] = lambda: True
    """Asked before every layer; False abandons the pass."""
    trace: bool = False

    tokens: int = 0
    """Tokens it computed."""
    token_ids: tuple[int, ...] = ()
    """Their ids."""
    expert_calls: int = 0
    lane_calls: int = 0
    fallback_experts: int = 0
    streamed_experts: int = 0
    """Computed from a staging buffer."""
    awaited_experts: int = 0
    """Computed from a slot whose copy was under way when the layer started."""
    local_s: float = 0.0
    copy_wait_s: float = 0.0
    """Nothing to compute until a copy arrived."""
    wait_s: float = 0.0
    samples: list[CostSample] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    predicted: np.ndarray | None = None
    """What a draft's routers wanted before the pass, as `counts`; None: no draft had routers."""
    counts: np.ndarray = field(init=False)
    chosen: list[np.ndarray] = field(init=False)
    """For each layer the experts of each token, int [tokens, top_k]."""
    used: list[int] = field(init=False)
    hits: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.counts = np.zeros((self.shape.n_layers, self.shape.n_experts), dtype=np.int64)
        self.chosen = [np.empty((0, self.shape.top_k), dtype=np.int64)] * self.shape.n_layers
        self.used = [0] * self.shape.n_layers
        self.hits = [0] * self.shape.n_layers

    def check_wanted(self) -> None:
        """Raises PassAbandoned when the result is not wanted, DeadlinePassed when it comes too late anyway."""
        if not self.wanted():
            raise PassAbandoned("the step's caller has gone")
        if self.deadline is not None and time.monotonic() > self.deadline:
            raise DeadlinePassed("the step's deadline has passed")

    def remaining_s(self) -> float:
        return float("inf") if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    def routed(self, layer: int, routing: Routing, hits: int) -> None:
        """Notes a layer's routing, and how many of the experts used were resident."""
        row = self.shape.row(layer)
        self.counts[row] += routing.counts
        self.chosen[row] = routing.chosen
        self.used[row] = int(np.count_nonzero(routing.counts))
        self.hits[row] = hits

    def foreseen(self, layer: int, counts: np.ndarray) -> None:
        """Notes what a layer's router wanted in drafting: pairs per expert."""
        if self.predicted is None:
            self.predicted = np.zeros_like(self.counts)
        self.predicted[self.shape.row(layer)] += counts

    def window(self, prefill: bool) -> RoutingWindow:
        """What the estimators learn from; the experts of each token where every layer has run with its ids known."""
        known = len(self.token_ids) == self.tokens and all(len(chosen) == self.tokens for chosen in self.chosen)
        return RoutingWindow(
            tokens=self.tokens,
            counts=self.counts,
            prefill=prefill,
            token_ids=np.array(self.token_ids, dtype=np.int64) if known else None,
            ids=np.stack(self.chosen, axis=1) if known else None,
        )

    def span(self, row: str, name: str, start_ns: int, end_ns: int, **args: object) -> None:
        if self.trace:
            self.spans.append(Span(row, name, start_ns, end_ns, {k: str(v) for k, v in args.items()}))

    @contextmanager
    def traced(self, row: str, name: str, **args: object):
        """A span around the block."""
        start = time.time_ns()
        yield
        self.span(row, name, start, time.time_ns(), **args)
