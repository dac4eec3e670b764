"""The MoE-SpAc paper's comparison: its machine, its rivals, recorded routing; and what it owes to every assumption."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import geometric_mean
from typing import Any

from rich.table import Table

from .hardware import Hardware
from .run import Case, sweep, without_irrelevant
from .tally import Tally
from .traces import BadTrace, read_trace

BEST, DESCRIBED, BASELINE, CLAIRVOYANT = "moespac", "moe-spac-described", "llama.cpp-sd", "clairvoyant"
STANDARD = ("accelerate", "vllm", "llama.cpp", "mixtral-offload", "moe-infinity", "sp-moe", "fate", "hybrimoe")
"""The paper's standard baselines."""
OTHERS = ("moe-spac-released",)
CACHE_RATIO, GAMMA = 0.17, 8
LEAST_TOKENS = 1000
ACCEPTANCES = (0.5, 0.6, 0.7, 0.8, 0.9)
SHARE_FOR_SENSITIVITY = 16
"""Sensitivities replay a sixteenth of the tokens, compared with the nominal constants on the same."""

Speeds = dict[str, dict[str, float]]
"""Policy → trace → tokens per second."""


def paper_traces(files: Sequence[Path]) -> list[Path]:
    """Those of `files` with at least 1,000 tokens. Raises BadTrace when none has."""
    long = [file for file in files if read_trace(file).tokens >= LEAST_TOKENS]
    if not long:
        raise BadTrace(f"no trace of at least {LEAST_TOKENS} tokens among {len(files)}; name some with --trace")
    return long


def compare(traces: Sequence[Path], hardware: Hardware, tokens: int, progress: Callable[[int], Any]) -> dict[str, Any]:
    """All figures. `tokens`: replayed of each trace; `progress`: number of runs → context giving `done(count)`."""
    policies = (BEST, DESCRIBED, BASELINE, CLAIRVOYANT, *OTHERS, *STANDARD)
    plan: list[tuple[str, Case]] = []

    def add(label: str, machine: Hardware, most: int) -> None:
        plan.extend((label, Case(t, p, machine, CACHE_RATIO, GAMMA, most)) for t in traces for p in policies)

    few = max(1, tokens // SHARE_FOR_SENSITIVITY)
    add("nominal", hardware, tokens)
    add("few", hardware, few)
    for name, ends in hardware.uncertain().items():
        for end in ends:
            add(f"{name}={end:g}", hardware.with_value(name, end), few)
    for rate in ACCEPTANCES:
        add(f"acceptance {rate}", hardware.with_value("speculation.acceptance", rate), few)
    plan = [(label, without_irrelevant(case, hardware)) for label, case in plan]
    # The longest first, so that no core idles at the end.
    cases = sorted({case for _, case in plan}, key=lambda case: (-case.most_tokens, case.policy, case.trace))
    with progress(len(cases)) as done:
        tallies = dict(zip(cases, sweep(cases, done), strict=True))
    runs: dict[str, dict[tuple[str, str], Tally]] = {}
    for label, case in plan:
        runs.setdefault(label, {})[case.policy, case.trace.stem] = tallies[case]
    speeds = _speeds(runs["nominal"])
    few_keys = ratios(_speeds(runs["few"]))
    return {
        **ratios(speeds),
        "hardware": hardware.name,
        "traces": [trace.stem for trace in traces],
        "tokens_per_trace": tokens,
        "cache_ratio": CACHE_RATIO,
        "acceptance": hardware.speculation.acceptance.value,
        "tokens_per_s": speeds,
        "step": {policy: _step(runs["nominal"], policy) for policy in policies},
        "nominal_on_fewer_tokens": few_keys,
        "sensitivity": {
            name: {f"{end:g}": ratios(_speeds(runs[f"{name}={end:g}"])) for end in ends}
            for name, ends in hardware.uncertain().items()
        },
        "by_acceptance": {str(rate): ratios(_speeds(runs[f"acceptance {rate}"])) for rate in ACCEPTANCES},
    }


def ratios(speeds: Speeds) -> dict[str, float]:
    """The comparison's keys: geometric means over traces of ratios of tokens per second."""
    traces = speeds[BEST]
    standard = {t: sum(speeds[p][t] for p in STANDARD) / len(STANDARD) for t in traces}

    def over(one: str, other: Mapping[str, float]) -> float:
        return geometric_mean(speeds[one][t] / other[t] for t in traces)

    return {
        "best_over_sd_baseline": over(BEST, speeds[BASELINE]),
        "best_over_standard_mean": over(BEST, standard),
        "as_described_over_sd_baseline": over(DESCRIBED, speeds[BASELINE]),
        "best_over_clairvoyant": over(BEST, speeds[CLAIRVOYANT]),
    }


def _speeds(tallies: Mapping[tuple[str, str], Tally]) -> Speeds:
    speeds: Speeds = {}
    for (policy, trace), tally in tallies.items():
        speeds.setdefault(policy, {})[trace] = tally.summary()["tokens_per_s"]
    return speeds


def _step(tallies: Mapping[tuple[str, str], Tally], policy: str) -> dict[str, float]:
    total = Tally()
    for (name, _), tally in tallies.items():
        if name == policy:
            total.add(tally)
    return total.summary()


KEYS = ("best_over_sd_baseline", "best_over_standard_mean", "as_described_over_sd_baseline", "best_over_clairvoyant")


def paper_tables(result: dict[str, Any]) -> list[Table]:
    """Speeds by policy and trace; the keys under every assumption."""
    speeds = Table(title=f"tokens/s, simulated: {result['hardware']}, cache {result['cache_ratio']:.0%}")
    speeds.add_column("policy")
    for trace in result["traces"]:
        speeds.add_column(trace, justify="right")
    for policy, by_trace in result["tokens_per_s"].items():
        speeds.add_row(policy, *(f"{by_trace[trace]:.1f}" for trace in result["traces"]))
    keys = Table(title="ratios, geometric means over traces")
    keys.add_column("constants")
    for key in KEYS:
        keys.add_column(key, justify="right")
    rows = {"nominal": {key: result[key] for key in KEYS}, "nominal, fewer tokens": result["nominal_on_fewer_tokens"]}
    for name, ends in result["sensitivity"].items():
        rows |= {f"{name} = {end}": values for end, values in ends.items()}
    rows |= {f"acceptance {rate}": values for rate, values in result["by_acceptance"].items()}
    for name, values in rows.items():
        keys.add_row(name, *(f"{values[key]:.3f}" for key in KEYS))
    return [speeds, keys]
