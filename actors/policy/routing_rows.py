"""The routing of a window as one row of zeros and ones a token, experts of all layers side by side."""

from __future__ import annotations

import numpy as np

from ..core import ModelShape, RoutingWindow


def routing_rows(window: RoutingWindow, shape: ModelShape) -> np.ndarray:
    """float32 [tokens, n_layers · n_experts]: 1 where a token was routed to an expert.

    Where only counts are known every token gets the window's mean. Raises ValueError when `ids` are not this
    model's or contradict `counts`.
    """
    width = shape.n_layers * shape.n_experts
    if window.ids is None:
        mean = np.asarray(window.counts, dtype=np.float32).reshape(1, width) / window.tokens
        return np.repeat(mean, window.tokens, axis=0)
    ids, expected = np.asarray(window.ids), (window.tokens, shape.n_layers, shape.top_k)
    if ids.shape != expected:
        raise ValueError(f"routing window: ids have shape {ids.shape}; expected {expected}: tokens, layers, top_k")
    if ids.min() < 0 or ids.max() >= shape.n_experts:
        raise ValueError(f"routing window: ids must lie in 0..{shape.n_experts - 1}, the experts of a layer")
    columns = ids.astype(np.int64) + shape.n_experts * np.arange(shape.n_layers)[:, None]
    rows = np.zeros((window.tokens, width), dtype=np.float32)
    rows[np.arange(window.tokens)[:, None], columns.reshape(window.tokens, -1)] = 1.0
    if (rows.sum(axis=0).reshape(shape.n_layers, -1) != window.counts).any():
        raise ValueError("routing window: ids and counts disagree; both must describe the same tokens")
    return rows


def token_ids(window: RoutingWindow) -> list[int] | None:
    """The window's token ids as integers, or None. Raises ValueError when there is not one for every token."""
    if window.token_ids is None:
        return None
    ids = [int(i) for i in window.token_ids]
    if len(ids) != window.tokens:
        raise ValueError(f"routing window: {len(ids)} token ids for {window.tokens} tokens; expected one a token")
    return ids


def accepted_tokens(window: RoutingWindow) -> int:
    """How many tokens stay in the text. Raises ValueError when `accepted` is not in 0..tokens."""
    accepted = window.tokens if window.accepted is None else window.accepted
    if not 0 <= accepted <= window.tokens:
        raise ValueError(f"routing window: accepted is {accepted}; expected 0..{window.tokens}, the tokens computed")
    return accepted
