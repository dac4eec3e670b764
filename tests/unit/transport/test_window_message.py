"""A window's way over the wire."""

import numpy as np
import pytest

from moespac.actors.core import ModelShape, RoutingWindow
from moespac.actors.transport.messages import window_from_proto, window_to_proto


@pytest.mark.parametrize("n_experts", [8, 300])
def test_each_tokens_experts_survive(n_experts):
    shape = ModelShape((1, 4), n_experts, 2, 8, 8, 8)
    ids = np.array([[[0, n_experts - 1], [1, 2]], [[3, 4], [n_experts - 1, 5]], [[6, 7], [0, 1]]])
    counts = np.stack([np.bincount(ids[:, row].ravel(), minlength=n_experts) for row in range(2)])
    sent = RoutingWindow(3, counts, token_ids=np.array([7, 70_000, 2]), ids=ids)
    got = window_from_proto(window_to_proto(sent, [1, 1], [0, 0], shape), False, "r", 2)
    assert (got.tokens, got.request, got.accepted, got.prefill) == (3, "r", 2, False)
    np.testing.assert_array_equal(got.ids, ids)
    np.testing.assert_array_equal(got.counts, counts)
    assert got.token_ids.tolist() == [7, 70_000, 2]


def test_counts_alone_stay_counts_alone():
    shape = ModelShape((0,), 4, 1, 8, 8, 8)
    message = window_to_proto(RoutingWindow(2, np.array([[2, 0, 0, 0]])), [1], [0], shape)
    got = window_from_proto(message, True)
    assert got.ids is None and got.token_ids is None and got.prefill
