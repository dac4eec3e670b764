"""Is the governor as fast as the best fixed γ where experts are large? On recorded routing and a simulated clock.

`python tests/benchmarks/speculation_simulated.py --json`: also run by `speculation.py`. A family is a trace on a
machine that ships, with drafts of stated acceptance or n-grams found in the trace's own text. Every setting decodes the
same requests one after the other, with slots, estimators and governor of its own that last from request to request;
rejections are the same for all. The best fixed γ is chosen on the first requests and compared on the others, which the
governor meets with what it learned from the first. Simulated time only: equal runs give equal figures.

Keys: `simulated_governor_vs_best_fixed`, `simulated_governor_vs_none`: as the engine's in `speculation.py`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Iterator
from collections.abc import Sequence as SequenceOf
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from statistics import geometric_mean
from typing import Any

from intervals import interval, worst

from moespac.actors.policy.ngram import Found
from moespac.actors.policy.rivals.moespac import Moespac
from moespac.cluster.simulator.acceptance import NgramReplay, RateAcceptance, Window
from moespac.cluster.simulator.command import HARDWARE, TRACES
from moespac.cluster.simulator.engine import Engine
from moespac.cluster.simulator.hardware import load_hardware
from moespac.cluster.simulator.machine import machine_of
from moespac.cluster.simulator.run import SHORTEST, Case, setting_of
from moespac.cluster.simulator.traces import Sequence as Request
from moespac.cluster.simulator.traces import Trace, read_trace

PAPER, LAPTOP, MINI = "rtx4090-qwen3-30b-a3b", "laptop-rtx4060-olmoe", "mini-pc-two-nodes-gpt-oss-20b"
CACHE = {PAPER: 0.17, LAPTOP: 0.33, MINI: 0.33}
"""Share of the experts that have a slot."""
FIXED = (0, 2, 4, 8)
GOVERNOR = None
NGRAM: tuple[float, ...] = ()


@dataclass(frozen=True)
class Family:
    trace: str
    hardware: str
    rates: tuple[float, ...]
    """Of acceptance; the requests take turns. NGRAM: what n-grams find stands where the trace says the same."""

    @property
    def name(self) -> str:
        drafts = ", ".join(f"{rate:g}" for rate in self.rates) or "n-grams"
        return f"{self.trace} on {self.hardware.split('-')[0]}: {drafts}"


FAMILIES = (
    Family("dsv2lite_esft_law", PAPER, (0.8,)),
    Family("dsv2lite_esft_translation", PAPER, (0.6,)),
    Family("dsv2lite_esft_law", LAPTOP, (0.5, 0.6, 0.7, 0.8, 0.9)),
    Family("gptoss20b_mmlu_validation", MINI, (0.6,)),
    Family("gptoss20b_mmlu_pro_validation", MINI, (0.9,)),
    Family("gptoss20b_mmlu_validation", LAPTOP, (0.5,)),
    Family("gptoss20b_mmlu_pro_validation", MINI, NGRAM),
    Family("gptoss20b_mmlu_validation", PAPER, NGRAM),
)


class Fixed(Moespac):
    """The same policy with `setting.gamma` draft tokens in every step."""

    def gamma(self, request: str, remaining: int, match: int = 0) -> int:
        return min(self.setting.gamma, remaining - 1)


def requests(trace: Trace, count: int, tokens: int) -> tuple[list[Request], int]:
    """`count` pieces of sequences that do not loop, about `tokens` each, beginnings first; and in how many tokens of
    the trace's sequences, from the first on, they lie."""
    usable = [s for s in trace.sequences if not s.repetition and len(s.ids) >= SHORTEST]
    found: list[tuple[int, Request]] = []
    for start in range(0, max(len(s.ids) for s in usable), tokens):
        part = slice(start, start + tokens)
        for i, s in enumerate(usable):
            if len(s.ids) >= start + tokens // 2:
                prompt = s.prompt_ids + s.token_ids[:start]
                piece = replace(s, ids=s.ids[part], token_ids=s.token_ids[part], prompt_ids=prompt)
                found.append((i, replace(piece, name=f"{s.name}+{start}")))
    found = found[:count]
    if len(found) < count:
        raise SystemExit(f"{trace.name}: has {len(found)} requests of {tokens} tokens, {count} are wanted: fewer pairs")
    last = max(i for i, _ in found)
    return [piece for _, piece in found], sum(len(s.ids) for s in usable[: last + 1])


class InTurn:
    """Drafts of one rate after the other, request by request."""

    def __init__(self, rates: SequenceOf[float], requests: SequenceOf[Request]) -> None:
        self._rates = [RateAcceptance(rate) for rate in rates]
        self._turns = {request.name: i % len(rates) for i, request in enumerate(requests)}

    def __call__(self, sequence: Request, at: int, gamma: int) -> Window:
        return self._rates[self._turns[sequence.name]](sequence, at, gamma)

    def look_up(self, sequence: Request, at: int) -> Found:
        return Found()


class Run:
    """One setting of one family."""

    def __init__(self, family: Family, gamma: int | None, count: int, tokens: int) -> None:
        path, hardware = TRACES / f"{family.trace}.npz", load_hardware(HARDWARE / f"{family.hardware}.yaml")
        machine, trace, ngram = machine_of(hardware), read_trace(path), family.rates == NGRAM
        self._requests, taken = requests(trace, count, tokens)
        kind = Moespac if gamma is GOVERNOR else Fixed
        most = max(FIXED) if gamma is GOVERNOR else gamma
        # What estimators have learned before comes from sequences of which no request is a part.
        case = Case(path, "moespac", hardware, CACHE[family.hardware], most, taken, ngram)
        self._policy = kind(setting_of(case, kind, machine, trace))
        drafts = NgramReplay() if ngram else InTurn(family.rates, self._requests)
        self._engine = Engine(machine, self._policy, drafts, free_drafts=ngram)
        self._done = 0

    def speeds(self, count: int) -> Iterator[float]:
        """Tokens a second of each of the next `count` requests."""
        for request in self._requests[self._done : self._done + count]:
            tally = self._engine.tally
            tokens, seconds = tally.tokens, tally.seconds
            self._engine.run([request])
            self._done += 1
            yield (tally.tokens - tokens) / (tally.seconds - seconds)

    @property
    def drafted_per_step(self) -> float:
        return self._engine.tally.drafted / self._engine.tally.steps


def judged(family: Family, choose: int, pairs: int, tokens: int) -> dict[str, Any]:
    """Report of one family."""
    runs = {gamma: Run(family, gamma, choose + pairs, tokens) for gamma in (GOVERNOR, *FIXED)}
    first = {gamma: geometric_mean(run.speeds(choose)) for gamma, run in runs.items()}
    best = max(FIXED, key=lambda gamma: first[gamma])
    second = {gamma: list(runs[gamma].speeds(pairs)) for gamma in dict.fromkeys((GOVERNOR, 0, best))}

    def against(gamma: int) -> dict[str, float]:
        return interval([math.log(a / b) for a, b in zip(second[GOVERNOR], second[gamma], strict=True)])

    return {
        "best_fixed": best,
        "tokens_per_s": {
            "governor" if gamma is GOVERNOR else str(gamma): round(geometric_mean(speeds), 2)
            for gamma, speeds in second.items()
        },
        "drafted_per_step": round(runs[GOVERNOR].drafted_per_step, 2),
        "vs_best_fixed": against(best),
        "vs_none": against(0),
    }


def compare(choose: int, pairs: int, tokens: int) -> dict[str, Any]:
    """All families whose traces are there; empty if none is."""
    there = [family for family in FAMILIES if (TRACES / f"{family.trace}.npz").exists()]
    if not there:
        return {}
    workers = min(len(os.sched_getaffinity(0)), len(there))
    report = {}
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        futures = {family.name: pool.submit(judged, family, choose, pairs, tokens) for family in there}
        for name, future in futures.items():
            report[name] = future.result()
            print(name, report[name], flush=True)
    return {
        "simulated_governor_vs_best_fixed": worst(report, "vs_best_fixed"),
        "simulated_governor_vs_none": worst(report, "vs_none"),
        "simulated_by_family": report,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--pairs", type=int, default=36, help="requests of a family that are compared")
    parser.add_argument("--choose", type=int, default=10, help="requests of a family that choose, and teach")
    parser.add_argument("--tokens", type=int, default=128, help="of a request")
    options = parser.parse_args()
    result = compare(options.choose, options.pairs, options.tokens)
    print(json.dumps(result) if options.json else json.dumps(result, indent=2))


if __name__ == "__main__":
    # One core each: small products do not pay for threads, and the cores have a family each.
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
    main()
