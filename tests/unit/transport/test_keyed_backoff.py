"""Waiting after failures, with the clock in hand."""

import pytest

from moespac.actors.transport.keyed_backoff import KeyedBackoff


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_waits_double_up_to_the_bound_and_end_with_a_success() -> None:
    clock = Clock()
    backoff = KeyedBackoff(clock, first_s=1, most_s=5)
    assert backoff.ready("a")
    waits = []
    for _ in range(5):
        backoff.failed("a")
        waits.append(backoff.remaining_s("a"))
        assert not backoff.ready("a")
        clock.now += waits[-1]
        assert backoff.ready("a")
    assert waits == [1, 2, 4, 5, 5]
    backoff.succeeded("a")
    backoff.failed("a")
    assert backoff.remaining_s("a") == 1


def test_failures_of_calls_under_way_count_once() -> None:
    clock = Clock()
    backoff = KeyedBackoff(clock, first_s=1, most_s=60)
    for _ in range(10):
        backoff.failed("a")
    assert backoff.remaining_s("a") == 1
    clock.now += 0.5
    backoff.failed("a")
    assert backoff.remaining_s("a") == 0.5


def test_keys_are_independent() -> None:
    backoff = KeyedBackoff(Clock())
    backoff.failed("a")
    assert not backoff.ready("a")
    assert backoff.ready("b")


def test_many_failures_stay_bounded() -> None:
    clock = Clock()
    backoff = KeyedBackoff(clock, first_s=0.1, most_s=5)
    for _ in range(2000):
        backoff.failed("a")
        clock.now += backoff.remaining_s("a")
    backoff.failed("a")
    assert 0 < backoff.remaining_s("a") <= 5.001


@pytest.mark.parametrize("first, most", [(0, 1), (2, 1), (-1, 1)])
def test_nonsense_waits_are_refused(first: float, most: float) -> None:
    with pytest.raises(ValueError, match="first_s"):
        KeyedBackoff(Clock(), first, most)
