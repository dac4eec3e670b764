"""A call's experts, computed from weights in host memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from ...kernels.experts import ExpertKernel, ExpertWork
from ..prefetcher.source import ExpertSource
from ..transport.wire import DecodedCall


class GaveUp(Exception):
    """Nobody waits for the rows any more."""


@dataclass(frozen=True)
class ExpertComputer:
    """Computes expert calls in `dtype`, whatever format the weights are stored in."""

    source: ExpertSource
    kernel: ExpertKernel
    dtype: torch.dtype

    def rows(
        self,
        call: DecodedCall,
        wanted: Callable[[], bool],
        deadline: float | None = None,
        out: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, float]:
        """The rows, float32 [pairs, H] in the call's pair order, and the seconds spent waiting for weights.

        Rows are written to `out`, a new tensor if None.
        `wanted` is asked before each run of the kernel; GaveUp is raised when it says no. Weights
        are not waited for beyond `deadline`, on `time.monotonic`. Raises what `ExpertSource.with_experts` raises.
        """
        if out is None:
            out = torch.empty(len(call.token_rows), call.hidden.shape[1])
        hidden = call.hidden.to(self.dtype)
        counts = [span.stop - span.start for span in call.spans]
        rows_of, weights_of = (t.split_with_sizes(counts) for t in (call.token_rows, call.router_weights))
        shares = dict(zip(call.experts, zip(rows_of, weights_of, strict=True), strict=True))

        def use(blocks: dict[int, np.ndarray]) -> None:
            # Called again for blocks that were overwritten meanwhile: it only ever assigns.
            if not wanted():
                raise GaveUp
            work = [ExpertWork(block, *shares[e]) for e, block in blocks.items()]
            rows = self.kernel.rows(hidden, work)
            if tuple(blocks) == call.experts:
                out.copy_(rows)
                return
            spans = dict(zip(call.experts, call.spans, strict=True))
            for expert, share in zip(blocks, rows.split([len(w.token_rows) for w in work]), strict=True):
                out[spans[expert]] = share

        with torch.inference_mode():
            waited_s = self.source.with_experts(call.layer, call.experts, use, deadline)
        return out, waited_s
