import pytest

from moespac.actors.policy.link import SerialLink


def test_transfers_follow_one_another():
    link = SerialLink(bandwidth=100.0, latency_s=0.5)
    assert link.finish_time(10.0, 200) == pytest.approx(12.5)
    # Asked for while the first is under way: starts when the link is free, latency not paid on the link.
    assert link.finish_time(11.0, 100) == pytest.approx(13.5)
    # After a pause the link is free at once.
    assert link.finish_time(20.0, 100) == pytest.approx(21.5)
    assert link.busy_s == pytest.approx(4.0)


def test_nothing_to_move_takes_the_latency():
    assert SerialLink(1e9, 1e-3).finish_time(0.0, 0) == pytest.approx(1e-3)


@pytest.mark.parametrize(("bandwidth", "latency"), [(0, 0), (-1, 0), (float("nan"), 0), (1, -1), (1, float("nan"))])
def test_impossible_links_are_refused(bandwidth, latency):
    with pytest.raises(ValueError, match="expected"):
        SerialLink(bandwidth, latency)


def test_negative_size_is_refused():
    with pytest.raises(ValueError, match="size is -1"):
        SerialLink(1.0).finish_time(0.0, -1)
