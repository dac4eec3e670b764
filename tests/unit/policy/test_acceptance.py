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
    result = accept(draft, chosen.__getitem__)
    assert result.emitted == tuple(emitted)
    assert result.accepted == len(emitted) - 1


def test_choices_behind_a_rejection_are_not_asked_for():
    asked = []
    assert accept([1, 2, 3], lambda i: asked.append(i) or (1, 9, 3, 4)[i]) == Acceptance((1, 9), 1)
    assert asked == [0, 1]


def test_ends():
    assert accept([], [7].__getitem__) == Acceptance((7,), 0)
    assert accept([1, 2], [1, 2, 3].__getitem__) == Acceptance((1, 2, 3), 2)
    assert accept([1, 2], [9, 2, 3].__getitem__) == Acceptance((9,), 0)
