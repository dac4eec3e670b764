"""How well estimators know what is worth keeping resident, on recorded routing.

    python tests/benchmarks/utility.py [--json] [--traces DIR] [--windows 5 9] [--ratios .17 .33 .5]

For each `gptoss20b*.npz` and `dsv2lite*.npz`: the first 30 sequences of at least 64 tokens that do not loop, 300 tokens
of each, cut into windows that do not overlap. See README.md here for the protocol and the keys.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import copy
import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from exchange import belady_share, oracle_worth, resident_share
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from moespac.actors.core import ModelShape, RoutingWindow
from moespac.actors.policy.estimator import ESTIMATORS, UtilityEstimator, make_estimator
from moespac.cluster.simulator.traces import Sequence, Trace, read_trace

SHARED = Path(__file__).parents[3] / "shared" / "data" / "traces"
MODELS = {"gptoss": "gptoss20b*.npz", "dsv2lite": "dsv2lite*.npz"}
SEQUENCES, SEQUENCE_TOKENS, LEAST_TOKENS = 30, 300, 64
BUDGETS = {"b10": 0.10, "b25": 0.25, "free": None}
RESET = "best_reset"
"""`best` that forgets, at the start of each sequence, all it learned from the judged file."""


@dataclass(frozen=True)
class Job:
    """One file judged at one window length, with tables learned from `learn_from`."""

    model: str
    file: Path
    learn_from: tuple[Path, ...]
    window: int
    ratios: tuple[float, ...]


def fingerprint(sequence: Sequence) -> str:
    return hashlib.sha256(sequence.ids.astype(np.uint8).tobytes()).hexdigest()


def usable(trace: Trace) -> list[Sequence]:
    return [s for s in trace.sequences if len(s.ids) >= LEAST_TOKENS and not s.repetition]


def windows(sequence: Sequence, tokens: int, n_experts: int) -> Iterator[RoutingWindow]:
    """The sequence in windows of `tokens` tokens; what is left at its end is dropped."""
    for start in range(0, len(sequence.ids) - tokens + 1, tokens):
        ids = sequence.ids[start : start + tokens]
        counts = (ids[..., None] == np.arange(n_experts)).sum(axis=(0, 2))
        known = np.array(sequence.token_ids[start : start + tokens]) if sequence.token_ids else None
        yield RoutingWindow(tokens, counts, token_ids=known, ids=ids, request=sequence.name)


def learned(name: str, shape: ModelShape, sequences: list[Sequence], tokens: int) -> UtilityEstimator:
    """An estimator that saw `sequences`, saved and loaded as over a restart."""
    teacher = make_estimator(name, shape)
    for sequence in sequences:
        for window in windows(sequence, tokens, shape.n_experts):
            teacher.observe(window)
    made = make_estimator(name, shape)
    made.restore(teacher.state())
    return made


def worths(estimator: UtilityEstimator, judged: list[Sequence], job: Job, n_experts: int, reset: bool) -> np.ndarray:
    """[windows, experts]: what the estimator holds each expert worth before each window, learning as it goes."""
    trained, values = copy.deepcopy(estimator), []
    for sequence in judged:
        if reset:
            estimator = copy.deepcopy(trained)
        for window in windows(sequence, job.window, n_experts):
            values.append(estimator.worth(window.tokens, window.token_ids, window.request).ravel().astype(np.float32))
            estimator.observe(window)
    return np.array(values)


def judge(job: Job) -> dict:
    """Shares of uses found resident, by (ratio, budget, who)."""
    vocabulary: dict[str, int] = {}
    trace = read_trace(job.file, vocabulary)
    known = {fingerprint(sequence) for sequence in trace.sequences}
    others = [s for path in job.learn_from for s in usable(read_trace(path, vocabulary)) if fingerprint(s) not in known]
    judged = [
        Sequence(f"judged {s.name}", s.ids[:SEQUENCE_TOKENS], s.token_ids[:SEQUENCE_TOKENS], (), False)
        for s in usable(trace)[:SEQUENCES]
    ]
    shape = ModelShape(trace.layer_ids, trace.n_experts, trace.top_k, 1, 1, 1)
    used = np.array([w.counts.ravel() > 0 for s in judged for w in windows(s, job.window, trace.n_experts)])
    values = {}
    for name in (*ESTIMATORS, RESET):
        reset = name == RESET
        estimator = learned("best" if reset else name, shape, others, job.window)
        values[name] = worths(estimator, judged, job, trace.n_experts, reset)
    values["oracle"] = oracle_worth(used, values["decayed"])
    shares = {}
    for ratio in job.ratios:
        slots = int(ratio * used.shape[1])
        for budget, part in BUDGETS.items():
            exchanges = slots if part is None else int(part * slots)
            for name, worth in values.items():
                shares[(ratio, budget, name)] = resident_share(worth, used, slots, exchanges)
        shares[(ratio, "free", "belady")] = belady_share(used, slots)
    return {"shares": shares, "windows": len(used), "learned_tokens": sum(len(s.ids) for s in others)}


def summary(jobs: list[Job], results: list[dict]) -> dict:
    """Means over the files of each model, by key; every file's own figures under `files`."""
    ratios: dict[str, list[float]] = {}
    files: dict[str, dict] = {}
    for job, result in zip(jobs, results, strict=True):
        of_file = files.setdefault(job.file.stem, {"learned_tokens": result["learned_tokens"]})
        shares = result["shares"]
        for (ratio, budget, name), share in shares.items():
            stem = f"w{job.window}_r{round(100 * ratio)}_{budget}"
            of_file[f"{stem}_{name}"] = round(share, 4)
            if name not in ("oracle", "belady"):
                over = share / shares[(ratio, budget, "oracle")]
                ratios.setdefault(f"{job.model}_{stem}_{name}_over_oracle", []).append(over)
                if budget == "free":
                    over = share / shares[(ratio, budget, "belady")]
                    ratios.setdefault(f"{job.model}_{stem}_{name}_over_belady", []).append(over)
    return {**{key: round(float(np.mean(each)), 4) for key, each in sorted(ratios.items())}, "files": files}


def jobs_for(folder: Path, lengths: list[int], ratios: tuple[float, ...]) -> list[Job]:
    return [
        Job(model, file, tuple(sorted(SHARED.glob(pattern))), length, ratios)
        for model, pattern in MODELS.items()
        for file, length in product(sorted(folder.glob(pattern)), lengths)
    ]


def show(keys: dict, console: Console) -> None:
    table = Table("key", "mean over files")
    for key, value in keys.items():
        if key != "files":
            table.add_row(key, f"{value:.3f}")
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--traces", type=Path, default=SHARED, metavar="DIR", help="files to judge")
    parser.add_argument("--windows", type=int, nargs="+", default=[5, 9], metavar="W")
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.17, 0.33, 0.5], metavar="R")
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args()
    jobs = jobs_for(given.traces, given.windows, tuple(given.ratios))
    if not jobs:
        parser.error(f"--traces {given.traces}: no {' or '.join(MODELS.values())} there; name a folder of traces")
    with ProcessPoolExecutor(given.processes) as pool, Progress(console=Console(stderr=True), transient=True) as bar:
        running = {pool.submit(judge, job): index for index, job in enumerate(jobs)}
        task, results = bar.add_task("files and windows", total=len(jobs)), [{}] * len(jobs)
        for done in as_completed(running):
            results[running[done]] = done.result()
            bar.advance(task)
    keys = summary(jobs, results)
    show(keys, Console(stderr=given.json))
    if given.json:
        print(json.dumps(keys))


if __name__ == "__main__":
    main()
