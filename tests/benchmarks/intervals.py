"""Ratios of pairs, with what they are known to."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence


def interval(logs: Sequence[float]) -> dict[str, float]:
    """Of ratios given by their logarithms: number, geometric mean, its 95 % confidence interval, and their spread.

    `spread`: standard deviation of the logarithms.
    """
    mean, spread = statistics.mean(logs), statistics.stdev(logs)
    half = student_t(0.975, len(logs) - 1) * spread / math.sqrt(len(logs))
    lower, middle, upper = (round(math.exp(mean + side * half), 4) for side in (-1, 0, 1))
    return {"lower": lower, "mean": middle, "upper": upper, "spread": round(spread, 4), "n": len(logs)}


def student_t(probability: float, freedom: int) -> float:
    """Quantile of Student's distribution by its expansion about the normal's (Abramowitz and Stegun 26.7.5)."""
    z = statistics.NormalDist().inv_cdf(probability)
    terms = ((z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384)
    return z + sum(term / freedom ** (i + 1) for i, term in enumerate(terms))


def worst(report: dict[str, dict], key: str) -> float:
    """Lowest lower end of `key` over all families."""
    return min(family[key]["lower"] for family in report.values())
