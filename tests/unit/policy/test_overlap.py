import pytest
from hypothesis import given
from hypothesis import strategies as st

from moespac.actors.policy.overlap import busy_seconds, overlap_seconds

intervals = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 10)).map(lambda p: (p[0], p[0] + p[1])), max_size=6)


def moments(spans):
    return {t for start, end in spans for t in range(start, end)}


@given(intervals, intervals)
def test_counts_each_shared_moment_once(a, b):
    assert overlap_seconds(a, b) == pytest.approx(len(moments(a) & moments(b)) * 1e-9)
    assert busy_seconds(a) == pytest.approx(len(moments(a)) * 1e-9)


def test_nanoseconds_since_the_epoch_lose_nothing():
    now = 1_790_000_000_000_000_000
    assert overlap_seconds([(now, now + 10)], [(now + 7, now + 20)]) == pytest.approx(3e-9)


def test_backward_interval_is_refused():
    with pytest.raises(ValueError, match="before it starts"):
        overlap_seconds([(5, 4)], [])
