"""One run of the simulator: a trace, a policy, a machine, a cache size; and many of them on several processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from ...actors.core import ModelShape, RoutingWindow
from ...actors.policy.estimator import make_estimator
from ...actors.policy.rivals.interface import OffloadPolicy, Setting
from ...actors.policy.rivals.registry import policy_class
from ...actors.policy.step_model import NGRAM
from .acceptance import Drafting, NgramReplay, RateAcceptance, routing_counts
from .engine import Engine
from .hardware import Hardware
from .machine import Machine, machine_of
from .tally import Tally
from .traces import BadTrace, Trace, read_trace
from .traces import Sequence as Generation

SHORTEST = 2
"""Tokens of a sequence worth replaying."""


LEARNED_TOKENS, LEARNED_WINDOW = 2000, 5
"""Of sequences not replayed, what the estimator has seen before the run starts: tokens, and those of a window."""


@dataclass(frozen=True)
class Case:
    """Everything a run depends on."""

    trace: Path
    policy: str
    hardware: Hardware
    cache_ratio: float
    gamma: int = 8
    most_tokens: int = 0
    """Of the trace, from its first sequence on; 0: all."""
    ngram: bool = False
    """Drafts by prompt lookup on the trace's token strings, in no time, instead of the hardware file's rate."""
    seed: int = 0


def without_irrelevant(case: Case, nominal: Hardware) -> Case:
    """The same case, with `nominal`'s constants where its policy does not meet them: equal runs are made once."""
    kind = policy_class(case.policy)
    unmet: set[str] = set()
    if not kind.speculates:
        unmet |= {"draft.token_bytes", "draft.token_overhead", "speculation.acceptance"}
    if not kind.applies_gates:
        unmet.add("speculation.gate_accuracy")
    if not kind.pageable:
        unmet.add("link.pageable_bandwidth")
    if not kind.separate_workers:
        unmet |= {"remote.call", "remote.step", "planner.solve", "planner.refresh"}
    hardware = case.hardware
    for name in unmet:
        hardware = hardware.with_value(name, nominal.value(name))
    return replace(case, hardware=hardware)


def simulate(case: Case) -> Tally:
    """Runs `case`. Deterministic but for `Tally.planning_s`. Raises BadTrace, or ValueError for an unknown policy."""
    trace = _trace(case.trace)
    replayed = divided(trace, case.most_tokens)[0]
    if case.ngram and not all(sequence.token_ids for sequence in replayed):
        raise BadTrace(f"{case.trace}: has no token strings for n-gram drafts; use drafts of a rate")
    machine, kind = machine_of(case.hardware), policy_class(case.policy)
    rate = case.hardware.speculation.acceptance.value
    drafting: Drafting = NgramReplay() if case.ngram else RateAcceptance(rate, case.seed)
    policy = kind(setting_of(case, kind, machine, trace))
    return Engine(machine, policy, drafting, free_drafts=case.ngram).run(replayed)


def divided(trace: Trace, most_tokens: int) -> tuple[list[Generation], list[Generation]]:
    """The sequences to replay, loops and the shortest left out, and all others that are fit for profiles."""
    usable = [s for s in trace.sequences if not s.repetition and len(s.ids) >= SHORTEST]
    if not usable:
        raise BadTrace(f"{trace.name}: no sequence of at least {SHORTEST} tokens that is no loop; give another trace")
    left, replayed = most_tokens or sum(len(s.ids) for s in usable), []
    while left > 0 and len(replayed) < len(usable):
        sequence = usable[len(replayed)]
        replayed.append(replace(sequence, ids=sequence.ids[:left], token_ids=sequence.token_ids[:left]))
        left -= len(sequence.ids)
    return replayed, usable[len(replayed) :]


def setting_of(case: Case, kind: type[OffloadPolicy], machine: Machine, trace: Trace) -> Setting:
    """What the policy is told; profile and learned state are those of the sequences not replayed."""
    model = case.hardware.model
    layers, n_experts = len(trace.layer_ids), trace.n_experts
    shape = ModelShape(
        trace.layer_ids, n_experts, trace.top_k, model.hidden_size, model.intermediate_size, machine.expert_bytes
    )
    return Setting(
        shape=shape,
        slots=int(case.cache_ratio * layers * n_experts),
        device=machine.device,
        cpu=machine.cpu,
        cpu_call_s=machine.cpu_call_s + machine.remote_call_s * kind.separate_workers,
        transfer_s=machine.transfer_s(kind.pageable),
        contention=machine.contention,
        trunk_layer_s=machine.trunk_layer_s,
        draft_token_s=0.0 if case.ngram else machine.draft_token_s,
        draft_kind=NGRAM if case.ngram else "model",
        gamma=case.gamma,
        profile=_profile(case.trace, case.most_tokens),
        learned=_learned(case.trace, case.most_tokens) if kind.learns else {},
        plan_s=machine.plan_s,
        refresh_s=machine.refresh_s,
        tell_s=machine.remote_step_s,
        gate_accuracy=case.hardware.speculation.gate_accuracy.value,
    )


def sweep(cases: Sequence[Case], done: Callable[[int], None], processes: int = 0) -> list[Tally]:
    """All runs, in the order of `cases`, on `processes` processes (0: one a core); `done` is told how many are over."""
    workers = min(processes or len(os.sched_getaffinity(0)), len(cases))
    if workers <= 1:
        results = []
        for case in cases:
            results.append(simulate(case))
            done(len(results))
        return results
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(simulate, case): i for i, case in enumerate(cases)}
        tallies: dict[int, Tally] = {}
        try:
            for future in as_completed(futures):
                tallies[futures[future]] = future.result()
                done(len(tallies))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [tallies[i] for i in range(len(cases))]


@lru_cache(maxsize=8)
def _trace(path: Path) -> Trace:
    return read_trace(path)


@lru_cache(maxsize=16)
def _profile(path: Path, most_tokens: int) -> np.ndarray:
    trace = _trace(path)
    layers, n_experts = len(trace.layer_ids), trace.n_experts
    profile = np.zeros((layers, n_experts), dtype=np.int64)
    for sequence in divided(trace, most_tokens)[1]:
        profile += routing_counts(sequence.ids, n_experts)
    return profile


@lru_cache(maxsize=16)
def _learned(path: Path, most_tokens: int) -> dict[str, np.ndarray]:
    trace, seen = _trace(path), 0
    # Sizes are no concern of the estimator's.
    shape = ModelShape(trace.layer_ids, trace.n_experts, trace.top_k, 1, 1, 1)
    estimator = make_estimator("best", shape)
    for sequence in divided(trace, most_tokens)[1]:
        for start in range(0, len(sequence.ids), LEARNED_WINDOW):
            ids = sequence.ids[start : start + LEARNED_WINDOW]
            tokens = np.array(sequence.token_ids[start : start + LEARNED_WINDOW], dtype=np.int64)
            counts = routing_counts(ids, trace.n_experts)
            token_ids = tokens if len(tokens) else None
            estimator.observe(RoutingWindow(len(ids), counts, token_ids=token_ids, ids=ids, request=sequence.name))
        seen += len(sequence.ids)
        if seen >= LEARNED_TOKENS:
            break
    return estimator.state() if seen else {}
