import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moespac.actors.policy.logprobs import token_logprobs

rows = st.lists(st.integers(-4, 4), min_size=1, max_size=12).map(lambda row: np.array(row, dtype=np.float32))


@given(rows, st.data())
def test_equals_torch_log_softmax_and_a_stable_sort(logits, data):
    token, top = data.draw(st.integers(0, len(logits) - 1)), data.draw(st.integers(0, 15))
    expected = torch.from_numpy(logits).double().log_softmax(-1).numpy()
    done = token_logprobs(logits, token, top)
    assert done.token == token and done.logprob == pytest.approx(expected[token], abs=1e-12)
    ranked = sorted(range(len(logits)), key=lambda i: (-logits[i], i))[:top]
    assert [i for i, _ in done.top] == ranked
    np.testing.assert_allclose([logp for _, logp in done.top], expected[ranked], atol=1e-12)


def test_large_and_excluded_logits():
    done = token_logprobs(np.array([3e38, -np.inf, 0.0], dtype=np.float32), 1, 2)
    assert done.logprob == -np.inf and done.top[0] == (0, 0.0) and done.top[1] == (2, pytest.approx(-3e38))
