import pytest
from hypothesis import given
from hypothesis import strategies as st

from moespac.actors.policy.acceptance import Acceptance, accept

tokens = st.lists(st.integers(0, 2), max_size=8)


@given(tokens, st.data())
def test_equals_generating_token_by_token(draft, data):
    chosen = data.draw(st.lists(st.integers(0, 2), min_size=len(draft) + 1, max_size=len(draft) + 1))
    # Without a draft the target would emit chosen[0], chosen[1], … as long as its context is the draft's.
    emitted = [chosen[0]]
    while len(emitted) <= len(draft) and emitted == list(draft[: len(emitted)]):
        emitted.append(chosen[len(emitted)])
    result = accept(draft, chosen)
    assert result.emitted == tuple(emitted)
    assert result.accepted == len(emitted) - 1


def test_ends():
    assert accept([], [7]) == Acceptance((7,), 0)
    assert accept([1, 2], [1, 2, 3]) == Acceptance((1, 2, 3), 2)
    assert accept([1, 2], [9, 2, 3]) == Acceptance((9,), 0)


def test_lengths_must_fit():
    with pytest.raises(ValueError, match="needs 3"):
        accept([1, 2], [1, 2])
