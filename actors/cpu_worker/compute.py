"""A call's experts, one after another, from weights in host memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from ...kernels.layout import ExpertLayout
from ...kernels.reference import expert_rows
from ..prefetcher.source import ExpertSource
from ..transport.wire import DecodedCall


class GaveUp(Exception):
    """Nobody waits for the rows any more."""


@dataclass(frozen=True)
class ExpertComputer:
    """Computes expert calls in `dtype`, whatever type the weights are stored in."""

    source: ExpertSource
    layout: ExpertLayout
    dtype: torch.dtype

    def rows(
        self, call: DecodedCall, wanted: Callable[[], bool], deadline: float | None = None
    ) -> tuple[torch.Tensor, float]:
        """The rows, float32 [pairs, H] in the call's pair order, and the seconds spent waiting for weights.

        `wanted` is asked before each expert; GaveUp is raised when it says no. Weights
        are not waited for beyond `deadline`, on `time.monotonic`. Raises what `ExpertSource.with_experts` raises.
        """
        out = torch.empty(len(call.token_rows), self.layout.hidden_size)
        hidden = call.hidden.to(self.dtype)
        spans = dict(zip(call.experts, call.spans, strict=True))

        def use(expert: int, block: np.ndarray) -> None:
            # Called again when the block was overwritten meanwhile: it only ever assigns.
            if not wanted():
                raise GaveUp
            span = spans[expert]
            tokens = hidden[call.token_rows[span]]
            weights = self.layout.weights(block)
            out[span] = expert_rows(self.layout, weights, tokens, call.router_weights[span]).float()

        with torch.inference_mode():
            waited_s = self.source.with_experts(call.layer, call.experts, use, deadline)
        return out, waited_s
