"""Observations counted by size, in the message that tells of them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from ..protos.v1 import generation_pb2 as pb


def empty_histogram(bounds: Sequence[float]) -> pb.Histogram:
    """`bounds`: of the sizes, ascending; an observation equal to a bound is below it."""
    return pb.Histogram(bounds=bounds, counts=[0] * (len(bounds) + 1))


def observe(histogram: pb.Histogram, value: float) -> None:
    """Adds one observation."""
    histogram.counts[bisect_left(histogram.bounds, value)] += 1
    histogram.sum += value
