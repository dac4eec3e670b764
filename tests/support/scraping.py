"""Metrics as Prometheus gets them."""

from __future__ import annotations

import urllib.request

from prometheus_client.parser import text_string_to_metric_families


def samples(text: str) -> dict[str, float]:
    """By name and labels, `name{label="value"}`, labels by name; fails where the text is not in Prometheus's format."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def scrape(url: str) -> dict[str, float]:
    """The samples there."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        return samples(answer.read().decode())
