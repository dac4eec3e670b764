from moespac.actors.policy.track_record import FEW, SILENT, TrackRecord


def taken(record: TrackRecord, told: dict[str, float], truth: dict[str, float], times: int) -> list[str]:
    """The ways chosen when every one takes what it takes in truth."""
    ways = []
    for _ in range(times):
        ways.append(record.choose(told))
        record.note(ways[-1], told[ways[-1]], truth[ways[-1]])
    return ways


def test_what_it_is_told_holds_at_first():
    assert TrackRecord().choose({"plain": 2.0, "streamed": 1.0}) == "streamed"
    assert TrackRecord().choose({"plain": 1.0, "streamed": 1.0}) == "plain"


def test_a_way_that_takes_longer_than_told_is_left_but_for_trials():
    told, truth = {"plain": 2.0, "streamed": 1.0}, {"plain": 2.0, "streamed": 4.0}
    ways = taken(TrackRecord(), told, truth, 2000)
    assert set(ways[:FEW]) == {"streamed"} and 1 <= ways[FEW:].count("streamed") <= 2 * 2000 / SILENT


def test_a_way_that_is_told_to_be_slow_but_is_not_is_found():
    told, truth = {"plain": 1.5, "streamed": 1.0}, {"plain": 0.7, "streamed": 1.0}
    ways = taken(TrackRecord(), told, truth, 2000)
    first = ways.index("plain")
    assert first <= SILENT and sum(truth[way] for way in ways[first:]) <= 0.7 * (2000 - first) * 1.35
    assert ways[-SILENT:].count("plain") > 0.95 * SILENT


def test_one_cold_start_is_not_for_good():
    record = TrackRecord()
    record.note("streamed", 1.0, 100.0)
    assert taken(record, {"plain": 2.0, "streamed": 1.0}, {"plain": 2.0, "streamed": 1.0}, 100).count("plain") == 0


def test_trials_cost_a_small_share_of_the_time():
    for slower in (1.2, 3.0, 8.0):
        told, truth = {"plain": 1.0, "streamed": 1.0}, {"plain": 1.0, "streamed": slower}
        ways = taken(TrackRecord(), told, truth, 5000)
        assert sum(truth[way] for way in ways) <= 5000 * 1.01
