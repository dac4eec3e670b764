"""Traces hold every span once, on named rows in a fixed order, and no row's bars overlap."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moespac.actors.core import Span
from moespac.cluster.timeline import TraceError, chrome_trace, lanes, write_trace

START = 1_700_000_000_000_000_000
ROWS = ("planning", "cpu-1", "transfers", "local experts", "cpu-0", "draft", "trunk")
spans_strategy = st.lists(
    st.builds(
        lambda row, start, length: Span(row, "s", START + start, START + start + length),
        st.sampled_from(ROWS),
        st.integers(0, 1000),
        st.integers(0, 300),
    ),
    max_size=40,
)


def threads(trace: dict) -> dict[int, str]:
    events = trace["traceEvents"]
    return {e["tid"]: e["args"]["name"] for e in events if e["ph"] == "M" and e["name"] == "thread_name"}


def test_rows_are_named_and_in_the_order_of_a_step():
    trace = chrome_trace([Span(row, "s", START, START + 1) for row in ROWS])
    assert list(threads(trace).values()) == [
        "draft",
        "trunk",
        "local experts",
        "cpu-0",
        "cpu-1",
        "transfers",
        "planning",
    ]
    order = {e["tid"]: e["args"]["sort_index"] for e in trace["traceEvents"] if e["name"] == "thread_sort_index"}
    assert [order[tid] for tid in threads(trace)] == sorted(order.values())
    process = trace["traceEvents"][0]
    assert (process["ph"], process["name"], process["args"]) == ("M", "process_name", {"name": "moespac"})


def test_times_are_microseconds_from_the_first_span():
    later = Span("trunk", "pass", START + 2_500, START + 4_000, {"tokens": "5"})
    spans = [later, Span("draft", "d", START, START + 1_000)]
    draft, trunk = [e for e in chrome_trace(spans)["traceEvents"] if e["ph"] == "X"]
    assert (draft["ts"], draft["dur"]) == (0.0, 1.0)
    assert (trunk["ts"], trunk["dur"], trunk["args"]) == (2.5, 1.5, {"tokens": "5"})
    assert (trunk["name"], trunk["cat"]) == ("pass", "trunk")


def test_overlapping_calls_get_lanes_of_their_own():
    calls = [Span("cpu-0", f"call {i}", START + 10 * i, START + 10 * i + 25) for i in range(4)]
    trace = chrome_trace(calls)
    assert list(threads(trace).values()) == ["cpu-0", "cpu-0 (2)", "cpu-0 (3)"]
    lane_of = {e["name"]: e["tid"] for e in trace["traceEvents"] if e["ph"] == "X"}
    assert lane_of == {"call 0": 1, "call 1": 2, "call 2": 3, "call 3": 1}


def test_bars_that_only_touch_share_a_lane():
    assert len(lanes([Span("trunk", "s", START + i, START + i + 1) for i in range(5)])) == 1


@settings(max_examples=60, deadline=None)
@given(spans_strategy)
def test_nothing_is_lost_and_no_lane_overlaps(spans):
    trace = json.loads(json.dumps(chrome_trace(spans)))
    names = threads(trace)
    by_lane = defaultdict(list)
    for event in trace["traceEvents"]:
        if event["ph"] == "X":
            assert names[event["tid"]].startswith(event["cat"])
            by_lane[event["tid"]].append((round(event["ts"] * 1000), round(event["dur"] * 1000)))
    assert sum(map(len, by_lane.values())) == len(spans)
    for bars in by_lane.values():
        bars.sort()
        assert all(a + length <= b for (a, length), (b, _) in itertools.pairwise(bars))
    for row in {span.row for span in spans}:
        of_row = [s for s in spans if s.row == row]
        most = max(sum(s.start_ns <= t.start_ns < s.end_ns for s in of_row) for t in of_row)
        assert len(lanes(of_row)) <= max(1, most + sum(s.start_ns == s.end_ns for s in of_row))


def test_written_whole_and_replaces_what_was_there(tmp_path):
    path = tmp_path / "out.json"
    path.write_text("old")
    write_trace(path, [Span("trunk", "s", START, START + 1)])
    assert json.loads(path.read_text())["displayTimeUnit"] == "ms"
    assert [p.name for p in tmp_path.iterdir()] == ["out.json"]


def test_empty_trace_is_valid(tmp_path):
    write_trace(tmp_path / "out.json", [])
    assert [e["ph"] for e in json.loads((tmp_path / "out.json").read_text())["traceEvents"]] == ["M"]


def test_unwritable_path_is_named_and_nothing_is_left(tmp_path):
    with pytest.raises(TraceError, match=r"missing/out\.json: the trace cannot be written .*folder that exists"):
        write_trace(tmp_path / "missing" / "out.json", [])
    (tmp_path / "folder").mkdir()
    with pytest.raises(TraceError, match="folder: the trace cannot be written"):
        write_trace(tmp_path / "folder", [])
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]
