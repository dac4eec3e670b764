"""Spans as a Chrome trace: opens in Perfetto (https://ui.perfetto.dev) and chrome://tracing.

Format: "Trace Event Format", complete events (ph X) with ts and dur in microseconds, metadata events (ph M) for names.
"""

from __future__ import annotations

import heapq
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..actors.core import Span
from ..errors import UserError

PROCESS = 1
FIRST_ROWS = ("draft", "trunk", "local experts", "streamed experts")
LAST_ROWS = ("transfers", "planning")
"""Workers come between, by name."""


class TraceError(UserError, OSError):
    """The trace cannot be written."""


def lanes(spans: Iterable[Span]) -> list[list[Span]]:
    """Shares spans out to as few lanes as possible so that none of a lane overlap: first free lane, by start."""
    result: list[list[Span]] = []
    free: list[int] = []  # lanes that are free now, lowest first
    busy: list[tuple[int, int]] = []  # (end, lane)
    for span in sorted(spans, key=lambda s: (s.start_ns, s.end_ns)):
        while busy and busy[0][0] <= span.start_ns:
            heapq.heappush(free, heapq.heappop(busy)[1])
        if free:
            lane = heapq.heappop(free)
        else:
            lane = len(result)
            result.append([])
        result[lane].append(span)
        heapq.heappush(busy, (max(span.end_ns, span.start_ns), lane))
    return result


def chrome_trace(spans: Sequence[Span]) -> dict[str, Any]:
    """The trace as a JSON object; times start at the first span."""
    rows: dict[str, list[Span]] = defaultdict(list)
    for span in spans:
        rows[span.row].append(span)
    origin = min((span.start_ns for span in spans), default=0)
    events: list[dict[str, Any]] = [_metadata("process_name", 0, name="moespac")]
    thread = 0
    for row in sorted(rows, key=_row_order):
        for number, lane in enumerate(lanes(rows[row])):
            thread += 1
            events.append(_metadata("thread_name", thread, name=row if number == 0 else f"{row} ({number + 1})"))
            events.append(_metadata("thread_sort_index", thread, sort_index=thread))
            events.extend(_complete(span, thread, origin) for span in lane)
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": {"start_ns": str(origin)}}


def write_trace(path: str | Path, spans: Sequence[Span]) -> None:
    """Writes the trace; the file appears whole or not at all. Raises TraceError."""
    target = Path(path)
    content = json.dumps(chrome_trace(spans))
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        try:
            temporary.write_text(content, encoding="utf-8")
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise TraceError(
            f"{target}: the trace cannot be written ({error.strerror or error}): name a file in a folder that exists "
            f"and that you may write to"
        ) from error


def _row_order(row: str) -> tuple[int, int, str]:
    if row in FIRST_ROWS:
        return 0, FIRST_ROWS.index(row), row
    if row in LAST_ROWS:
        return 2, LAST_ROWS.index(row), row
    return 1, 0, row


def _metadata(kind: str, thread: int, **args: Any) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": PROCESS, "tid": thread, "args": args}


def _complete(span: Span, thread: int, origin_ns: int) -> dict[str, Any]:
    return {
        "ph": "X",
        "cat": span.row,
        "name": span.name,
        "pid": PROCESS,
        "tid": thread,
        "ts": (span.start_ns - origin_ns) / 1000,
        "dur": max(0, span.end_ns - span.start_ns) / 1000,
        "args": dict(span.args),
    }
