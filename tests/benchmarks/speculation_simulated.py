"""The governor on the simulated clock: recorded routing, machines that ship, drafts of stated acceptance.

Each family is a trace on a machine with one process of acceptance. Every setting decodes the same requests one after
the other with its own slots and estimators; rejections are the same for all. Nothing is random or timed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

from moespac.actors.policy.rivals.moespac import Moespac
from moespac.cluster.simulator.acceptance import NgramReplay, RateAcceptance
from moespac.cluster.simulator.command import HARDWARE, TRACES
from moespac.cluster.simulator.engine import Engine
from moespac.cluster.simulator.hardware import load_hardware
from moespac.cluster.simulator.machine import machine_of
from moespac.cluster.simulator.run import Case, setting_of
from moespac.cluster.simulator.traces import Sequence as Request
from moespac.cluster.simulator.traces import Trace, read_trace

PAPER, LAPTOP, MINI = "rtx4090-qwen3-30b-a3b", "laptop-rtx4060-olmoe", "mini-pc-two-nodes-gpt-oss-20b"
CACHE = {PAPER: 0.17, LAPTOP: 0.33, MINI: 0.33}
VARIED = (0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class Family:
    """`rates`: of acceptance, the requests take turns; empty: n-grams found in the trace's own text."""

    trace: str
    hardware: str
    rates: tuple[float, ...]

    @property
    def name(self) -> str:
        drafts = "-".join(f"{rate:g}" for rate in self.rates) or "ngram"
        return f"{self.trace} on {self.hardware.split('-')[0]}, {drafts}"


FAMILIES = (
    Family("dsv2lite_esft_law", PAPER, (0.8,)),
    Family("dsv2lite_esft_translation", PAPER, (0.6,)),
    Family("dsv2lite_esft_law", LAPTOP, VARIED),
    Family("dsv2lite_esft_translation", LAPTOP, (0.7,)),
    Family("gptoss20b_mmlu_validation", MINI, (0.6,)),
    Family("gptoss20b_mmlu_pro_validation", MINI, (0.9,)),
    Family("gptoss20b_mmlu_validation", LAPTOP, (0.5,)),
    Family("gptoss20b_mmlu_pro_validation", MINI, ()),
    Family("gptoss20b_mmlu_validation", PAPER, ()),
)


class Fixed(Moespac):
    """The same policy with `setting.gamma` draft tokens in every step."""

    def gamma(self, request: str, remaining: int) -> int:
        return min(self.setting.gamma, remaining - 1)


def requests(trace: Trace, count: int, tokens: int) -> list[Request]:
    """`count` pieces of the trace's sequences that do not loop, `tokens` each; of many sequences the beginnings."""
    usable = [s for s in trace.sequences if not s.repetition]
    found: list[Request] = []
    for start in range(0, max(len(s.ids) for s in usable), tokens):
        for s in usable:
            piece = slice(start, start + tokens)
            if len(s.ids) >= start + tokens // 2:
                ids = s.token_ids[piece]
                name = f"{s.name}+{start}"
                found.append(replace(s, name=name, ids=s.ids[piece], token_ids=ids, prompt_ids=s.prompt_ids + s.token_ids[:start]))
    return found[:count]


GOVERNOR = None
Setting = int | None
"""Draft tokens a step, or GOVERNOR."""


class Decoder:
    """One setting of one family; requests are decoded one after the other."""

    def __init__(self, family: Family, setting: Setting, count: int, tokens: int) -> None:
        path, hardware = TRACES / f"{family.trace}.npz", load_hardware(HARDWARE / f"{family.hardware}.yaml")
        self._machine, trace = machine_of(hardware), read_trace(path)
        self.requests = requests(trace, count, tokens)
        # Estimator and profile know the sequences that no request was cut from.
        taken = sum(len(s.ids) for s in trace.sequences[: 1 + max(i for i, s in enumerate(trace.sequences) if not s.repetition and any(r.name.startswith(f"{s.name}+") for r in self.requests))] if not s.repetition)
        kind = Moespac if setting is GOVERNOR else Fixed
        case = Case(path, "moespac", hardware, CACHE[family.hardware], 8 if setting is GOVERNOR else setting, taken, not family.rates)
        self._policy = kind(setting_of(case, kind, self._machine, trace))
        self._rates = [RateAcceptance(rate) for rate in family.rates] or [NgramReplay()]
        self._at = 0
        self._engine = Engine(self._machine, self._policy, self._drafting, free_drafts=not family.rates)

    def _drafting(self, sequence: Request, at: int, gamma: int):
        return self._rates[self._at % len(self._rates)](sequence, at, gamma)

    def next(self) -> float:
        """Tokens a second of the next request."""
        tally = self._engine.tally
        before = tally.tokens, tally.seconds
        self._engine.run([self.requests[self._at]])
        self._at += 1
        return (tally.tokens - before[0]) / (tally.seconds - before[1])
