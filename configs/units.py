"""Sizes, rates and durations as people write them: `10GiB`, `25GB/s`, `30ms`.

Binary and decimal units are distinct. A bare number is refused (except 0, the same in every unit):
a missing unit is the likeliest mistake there is.
"""

from __future__ import annotations

import re
from decimal import Decimal
from fractions import Fraction

from .errors import Invalid

SIZE_UNITS: dict[str, int] = {
    "B": 1,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
"""Bytes of one unit."""
DURATION_UNITS: dict[str, Fraction] = {
    "ns": Fraction(1, 10**9),
    "us": Fraction(1, 10**6),
    "µs": Fraction(1, 10**6),
    "ms": Fraction(1, 1000),
    "s": Fraction(1),
    "min": Fraction(60),
}
"""Seconds of one unit."""

Units = dict[str, int] | dict[str, Fraction]

_QUANTITY = re.compile(r"\s*([+-]?\d+(?:\.\d+)?|[+-]?\.\d+)\s*([^\d\s][^\s]*)?\s*", re.ASCII)
_LARGEST = 2**63 - 1


def parse_size(value: object) -> int:
    """Bytes. Raises `Invalid` unless `value` is a whole, non-negative number of bytes with a unit, or 0."""
    amount = _amount(value, SIZE_UNITS, "a size", "10GiB, 512MiB or 1.5GB", ("MiB", "GiB"))
    if amount.denominator != 1:
        raise Invalid("is not a whole number of bytes", f"write {int(amount)}B or {int(amount) + 1}B")
    if amount > _LARGEST:
        raise Invalid("is larger than any memory", "check the unit; the largest is TiB")
    return int(amount)


def parse_rate(value: object) -> float:
    """Bytes per second. Raises `Invalid` unless `value` is a size followed by `/s`."""
    units = {f"{unit}/s": size for unit, size in SIZE_UNITS.items()}
    return float(_amount(value, units, "a rate", "25GB/s or 800MB/s", ("MB/s", "GB/s")))


def parse_duration(value: object) -> float:
    """Seconds. Raises `Invalid` unless `value` is a number with a unit of time."""
    return float(_amount(value, DURATION_UNITS, "a duration", "30ms, 20us or 2s", ("ms", "s")))


def format_size(size: int) -> str:
    """The shortest exact text of `size` bytes; `parse_size` gives `size` back."""
    exact = [(size // n, unit) for unit, n in SIZE_UNITS.items() if size % n == 0]
    number, unit = min(exact, key=lambda pair: (len(f"{pair[0]}{pair[1]}"), pair[1]))
    return f"{number}{unit}" if size else "0B"


def show_size(size: float) -> str:
    """`size` bytes for people: three digits in the binary unit that fits."""
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    for unit in units:
        if abs(size) < 1024 or unit == units[-1]:
            return f"{size:.3g} {unit}" if abs(size) < 1000 else f"{size:.0f} {unit}"
        size /= 1024
    raise AssertionError("unreachable: the last unit takes every size")


def format_duration(seconds: float) -> str:
    """An exact text of `seconds`; `parse_duration` gives `seconds` back."""
    return f"{Decimal(repr(seconds)):f}s"


def format_rate(rate: float) -> str:
    """An exact text of `rate` bytes per second; `parse_rate` gives `rate` back."""
    return f"{Decimal(repr(rate)):f}B/s"


def _amount(value: object, units: Units, what: str, examples: str, likely: tuple[str, str]) -> Fraction:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise Invalid(f"is not {what}", f"write a number with a unit, such as {examples}")
    text = str(value)
    if not isinstance(value, str) and value == 0:
        return Fraction(0)
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise Invalid(f"is not {what}", f"write a number with a unit, such as {examples}")
    number, unit = Fraction(match[1]), match[2]
    if unit is None:
        if number == 0:
            return number
        plain = text.strip()
        raise Invalid(f"is {what} without a unit", f"write {plain}{likely[0]} or {plain}{likely[1]}")
    if number < 0:
        raise Invalid(f"is negative; {what} is not", f"write a number with a unit, such as {examples}")
    if unit not in units:
        known = ", ".join(u for u in units if u != "µs")
        close = [u for u in units if u.lower() == unit.lower()] or _with_completed_unit(unit, units)
        hint = f"did you mean {' or '.join(match[1] + u for u in close)}? " if close else ""
        raise Invalid(f"has the unknown unit {unit!r}", f"{hint}units are {known} (case counts)")
    return number * units[unit]


def _with_completed_unit(unit: str, units: Units) -> list[str]:
    """`G` -> GB, GiB; `GB` where a rate is wanted -> GB/s; `GB/s` where a size is wanted -> GB."""
    start = unit.lower().removesuffix("/s")
    return [u for u in units if len(u) > 1 and u.lower().startswith(start)][:2] if start else []
