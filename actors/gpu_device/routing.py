"""What a layer's router decided, expert by expert, in the order in which transformers' eager experts take it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..transport.wire import ExpertPairs


@dataclass(frozen=True)
class Routing:
    """One layer's (token, slot) pairs, grouped by expert."""

    counts: np.ndarray
    """Pairs of each expert; int [n_experts]; all top-k slots of all tokens counted."""
    chosen: np.ndarray
    """The experts of each token; int [T, k]."""
    pairs: dict[int, ExpertPairs]
    """Of every expert used, ascending: (expert, token rows int64 [n], router weights [n]), on the router's device."""

    def sizes(self, experts: list[int]) -> dict[int, int]:
        """Pairs of each of `experts`."""
        return {e: int(self.counts[e]) for e in experts}


def route(top_k_index: torch.Tensor, top_k_weights: torch.Tensor, n_experts: int) -> Routing:
    """Groups the router's choice, [T, k] each, by expert.

    Within an expert pairs come slot by slot, then token by token: eager experts multiply their tokens in this
    order, and the bits of a matrix product may depend on it.
    """
    # Grouped on the CPU, where counts are needed anyway: the indices are few, and moved once each way.
    chosen = top_k_index.cpu().numpy()
    flat = chosen.T.ravel()
    order = np.argsort(flat, kind="stable")
    counts = np.bincount(flat, minlength=n_experts)
    ends = np.cumsum(counts)
    rows = torch.from_numpy(order % len(top_k_index)).to(top_k_index.device)
    weights = top_k_weights.T.reshape(-1)[torch.from_numpy(order).to(top_k_weights.device)]
    pairs = {}
    for expert in np.flatnonzero(counts).tolist():
        share = slice(int(ends[expert] - counts[expert]), int(ends[expert]))
        pairs[expert] = (expert, rows[share], weights[share])
    return Routing(counts, chosen, pairs)


def renormalised(top_k_index: torch.Tensor, top_k_weights: torch.Tensor, experts: Sequence[int]) -> torch.Tensor:
    """Weights [T, k] that leave out all but `experts`; a token's others are scaled to the sum that all had together.

    A token that chose none of `experts` has weights 0.
    """
    kept = torch.isin(top_k_index, torch.tensor(experts, dtype=top_k_index.dtype, device=top_k_index.device))
    weights = top_k_weights * kept
    total, left = top_k_weights.sum(1, keepdim=True), weights.sum(1, keepdim=True)
    return weights * torch.where(left > 0, total / left, 0.0).to(weights.dtype)


def join(hidden: torch.Tensor, routing: Routing, rows: dict[int, torch.Tensor]) -> torch.Tensor:
    """The layer's output [T, H] from every used expert's weighted rows, whoever computed them.

    Added in ascending expert id in float32, as transformers' eager experts do in that type.
    """
    out = torch.zeros(hidden.shape, dtype=torch.float32, device=hidden.device)
    for expert, token_rows, _ in routing.pairs.values():
        out.index_add_(0, token_rows, rows[expert].to(out.device, torch.float32))
    return out.to(hidden.dtype)
