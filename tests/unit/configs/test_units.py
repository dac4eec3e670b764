"""Sizes, rates and durations: what is written is what is meant, and what is unclear is refused with advice."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moespac.configs.errors import Invalid
from moespac.configs.units import (
    SIZE_UNITS,
    format_duration,
    format_rate,
    format_size,
    parse_duration,
    parse_rate,
    parse_size,
    show_size,
)


@given(st.integers(0, 2**63 - 1))
def test_a_size_survives_its_text(size):
    assert parse_size(format_size(size)) == size


@given(st.integers(0, 10**6), st.sampled_from(sorted(SIZE_UNITS)), st.sampled_from(["", " "]))
def test_a_size_is_its_number_times_its_unit(number, unit, space):
    assert parse_size(f"{number}{space}{unit}") == number * SIZE_UNITS[unit]


@given(st.floats(0, 1e9, allow_subnormal=False))
def test_a_duration_survives_its_text(seconds):
    assert parse_duration(format_duration(seconds)) == seconds


@given(st.floats(0, 1e15, allow_subnormal=False))
def test_a_rate_survives_its_text(rate):
    assert parse_rate(format_rate(rate)) == rate


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("10GiB", 10 * 2**30),
        ("512MiB", 2**29),
        ("1.5GB", 1_500_000_000),
        ("0", 0),
        (0, 0),
        ("96 KiB", 98304),
        ("7B", 7),
    ],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (parse_rate, "25GB/s", 25e9),
        (parse_rate, "800 MiB/s", 800 * 2**20),
        (parse_duration, "30ms", 0.03),
        (parse_duration, "20us", 2e-5),
        (parse_duration, "20µs", 2e-5),
        (parse_duration, "2s", 2.0),
        (parse_duration, "1.5min", 90.0),
    ],
)
def test_rates_and_durations(parse, text, value):
    assert parse(text) == value


@pytest.mark.parametrize(
    ("parse", "value", "problem", "advice"),
    [
        (parse_size, 64, "without a unit", "64MiB or 64GiB"),
        (parse_size, "64", "without a unit", "64MiB or 64GiB"),
        (parse_size, 1.5, "without a unit", "1.5MiB or 1.5GiB"),
        (parse_size, "10Gb", "unknown unit 'Gb'", "10GB"),
        (parse_size, "10gib", "unknown unit 'gib'", "10GiB"),
        (parse_size, "10G", "unknown unit 'G'", "10GB or 10GiB"),
        (parse_size, "10GB/s", "unknown unit 'GB/s'", "10GB"),
        (parse_size, "10 parsecs", "unknown unit 'parsecs'", "units are B, kB"),
        (parse_size, "-1GiB", "negative", "10GiB"),
        (parse_size, "1.0001KiB", "not a whole number of bytes", "1024B or 1025B"),
        (parse_size, "9999999TiB", "larger than any memory", "check the unit"),
        (parse_size, "much", "is not a size", "10GiB"),
        (parse_size, True, "is not a size", "10GiB"),
        (parse_size, None, "is not a size", "10GiB"),
        (parse_size, float("nan"), "is not a size", "10GiB"),
        (parse_size, [1], "is not a size", "10GiB"),
        (parse_rate, "25GB", "unknown unit 'GB'", "25GB/s"),
        (parse_rate, 25, "without a unit", "25MB/s or 25GB/s"),
        (parse_duration, 30, "without a unit", "30ms or 30s"),
        (parse_duration, "30sec", "unknown unit 'sec'", "ns, us, ms, s, min"),
    ],
)
def test_unclear_quantities_are_refused_with_advice(parse, value, problem, advice):
    with pytest.raises(Invalid) as caught:
        parse(value)
    assert problem in caught.value.problem
    assert advice in caught.value.remedy


def test_sizes_for_people():
    assert [show_size(n) for n in (0, 98304, 6 << 20, 1000 << 20, 2**40)] == [
        "0 B", "96 KiB", "6 MiB", "1000 MiB", "1 TiB",
    ]  # fmt: skip
