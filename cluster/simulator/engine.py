"""A decode loop on a simulated clock: layer by layer; device, CPU and link beside each other; drafts first.

A layer starts when the one before it is joined. Its trunk part ends with the router's choice; then the device
computes its residents, the CPU its share, and fetched experts are computed as they arrive; the last of them ends it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

import numpy as np

from ...actors.core import CostSample, ExpertKey, RoutingWindow
from ...actors.policy.ngram import Found, judge
from ...actors.policy.rivals.interface import CPU, DEVICE, Decision, Layer, OffloadPolicy, Step
from .acceptance import Drafting, Window
from .lane import Lane, Pools
from .machine import HostMemory, Machine
from .tally import Tally
from .traces import Sequence


class Engine:
    """One policy on one machine. Residency and everything learned last from sequence to sequence."""

    def __init__(self, machine: Machine, policy: OffloadPolicy, drafting: Drafting, free_drafts: bool = False):
        """`free_drafts`: drafting takes no time, as with n-grams."""
        shape = policy.setting.shape
        self._machine, self._policy, self._drafting = machine, policy, drafting
        self._draft_token_s = 0.0 if free_drafts else machine.draft_token_s
        self._n_experts = shape.n_experts
        self._keys = [[ExpertKey(layer, e) for e in range(shape.n_experts)] for layer in shape.layer_ids]
        self._pools = Pools(policy, {layer: row for row, layer in enumerate(shape.layer_ids)})
        self.tally = Tally()
        self._host = HostMemory(machine, shape.keys())
        self._lane = Lane(machine, policy, self._pools, self._host, self.tally)
        self._lane.preload(policy.initial())
        self._now = 0.0

    def run(self, sequences: Iterable[Sequence]) -> Tally:
        """Decodes `sequences` one after the other; sums so far."""
        sequences = list(sequences)
        if self._policy.wants_future:
            self._policy.foresee(list(self._counts_of(sequences)))
        for sequence in sequences:
            at = 0
            while at < len(sequence.ids):
                at += self._step(sequence, at)
        self.tally.disk_reads = self._host.reads
        for pool in self._pools.all():
            pool.check_integrity()
        return self.tally

    def _counts_of(self, sequences: Iterable[Sequence]) -> Iterator[np.ndarray]:
        for sequence in sequences:
            at = 0
            while at < len(sequence.ids):
                window = self._window(sequence, at, self._drafting.look_up(sequence, at))
                at += window.accepted + 1
                yield window.counts(self._n_experts)

    def _window(self, sequence: Sequence, at: int, found: Found) -> Window:
        return self._drafting(sequence, at, self._policy.gamma(sequence.name, len(sequence.ids) - at, found.match))

    def _step(self, sequence: Sequence, at: int) -> int:
        policy, tally, began, thought = self._policy, self.tally, self._now, time.perf_counter()
        found = self._drafting.look_up(sequence, at)
        window = self._window(sequence, at, found)
        counts = window.counts(self._n_experts)
        self._lane.advance(began)
        step = Step(
            tally.steps, began, window.tokens, window.token_ids[:1], sequence.name, self._cached, lambda: counts
        )
        wishes = policy.begin(step)
        self._revalue()
        if wishes is not None:
            self._lane.wish(wishes)
        tally.planning_s += time.perf_counter() - thought
        gamma = window.tokens - 1
        if gamma:
            self._now += gamma * self._draft_token_s
            tally.draft_s += self._now - began
            self._lane.advance(self._now)
        for row in range(len(self._keys)):
            self._layer(row, window, counts[row])
        self._now += self._machine.head_s
        tally.trunk_s += self._machine.head_s
        if policy.separate_workers:
            self._now += self._machine.remote_step_s
            tally.remote_s += self._machine.remote_step_s
        thought = time.perf_counter()
        policy.judged(judge(found, sequence.token_ids[at + 1 : at + window.accepted + 2]))
        policy.end(self._routing(window, counts, sequence), window.accepted, self._now - began)
        tally.planning_s += time.perf_counter() - thought
        tally.steps += 1
        tally.tokens += window.accepted + 1
        tally.drafted += gamma
        tally.accepted += window.accepted
        tally.seconds += self._now - began
        return window.accepted + 1

    def _routing(self, window: Window, counts: np.ndarray, sequence: Sequence) -> RoutingWindow:
        token_ids = np.array(window.token_ids, dtype=np.int64) if window.token_ids else None
        return RoutingWindow(
            window.tokens,
            counts,
            token_ids=token_ids,
            ids=window.ids,
            request=sequence.name,
            accepted=window.accepted + 1,
        )

    def _revalue(self) -> None:
        if changed := self._policy.revalued():
            self._pools.revalue(changed)
            self._lane.readmit()

    def _layer(self, row: int, window: Window, counts: np.ndarray) -> None:
        machine, policy, tally, lane, keys = self._machine, self._policy, self.tally, self._lane, self._keys[row]
        started = self._now + machine.trunk_layer_s
        tally.trunk_s += machine.trunk_layer_s
        lane.advance(started)
        experts = np.flatnonzero(counts)
        pairs = dict(zip(experts.tolist(), counts[experts].tolist(), strict=True))
        pool = self._pools.of(keys[0])
        pinned = pool.pin([keys[e] for e in pairs])
        pool.touch(pinned)
        residents = [e for e in pairs if keys[e] in pinned]
        misses = [e for e in pairs if keys[e] not in pinned]
        arriving = {e: at - started for e in misses if (at := lane.arriving(keys[e])) is not None}
        at = Layer(row, started, pairs, residents, misses, arriving, lane.free_at() - started, self._cached,
                   lambda other: window.ids[:, other])  # fmt: skip
        thought = time.perf_counter()
        decision = policy.layer(at)
        tally.planning_s += time.perf_counter() - thought
        tally.uses += len(pairs)
        tally.hits += len(residents)
        tally.late += len(arriving)
        tally.fetched += len(decision.fetch) - sum(e in arriving for e in decision.fetch)
        tally.on_cpu += len(decision.cpu) + len(decision.resident_on_cpu)
        fetched = [keys[e] for e in decision.fetch]
        self._revalue()
        arrivals, slotted = lane.demand(started, fetched)
        if decision.wishes is not None:
            lane.wish(decision.wishes)
        lane.used([*pinned, *slotted])
        self._compute(started, at, decision, arrivals)
        lane.advance(self._now)
        pool.unpin([*pinned, *slotted])
        if policy.admits_late:
            lane.admit(fetched)
        self._revalue()

    def _compute(self, started: float, at: Layer, decision: Decision, arrivals: list[float]) -> None:
        """Moves the clock to the layer's end."""
        machine, policy, tally, pairs = self._machine, self._policy, self.tally, at.pairs
        cpu = [*decision.cpu, *decision.resident_on_cpu]
        local = sum(machine.device.seconds(pairs[e]) for e in at.residents if e not in decision.resident_on_cpu)
        device_free = device_end = started + local
        for arrival, expert in sorted(zip(arrivals, decision.fetch, strict=True)):
            device_end = max(device_end, arrival) + machine.device.seconds(pairs[expert])
        cpu_end, call_s = started, 0.0
        if cpu:
            call_s = machine.remote_call_s if policy.separate_workers else 0.0
            work = [machine.cpu.seconds(pairs[e]) for e in cpu]
            start = started + call_s + machine.cpu_call_s
            cpu_end = machine.cpu_end(start, sum(work), self._lane.busy_until(started))
            read = [self._host.ready_at(started, self._keys[at.row][e]) + s for e, s in zip(cpu, work, strict=True)]
            cpu_end = max(cpu_end, *read)
            policy.measured(CostSample(CPU, len(cpu), sum(pairs[e] for e in cpu), cpu_end - started))
        if local:
            kept = len(at.residents) - len(decision.resident_on_cpu)
            used = sum(pairs[e] for e in at.residents if e not in decision.resident_on_cpu)
            policy.measured(CostSample(DEVICE, kept, used, local))
        if policy.serial:
            end = device_end + cpu_end - started
            tally.link_wait_s += device_end - device_free
            waited = cpu_end - started
        else:
            end = max(device_end, cpu_end)
            waited = end - device_free if cpu_end >= device_end else 0.0
            tally.link_wait_s += 0.0 if cpu_end >= device_end else end - device_free
        tally.device_s += local
        tally.remote_s += min(call_s, waited)
        tally.cpu_wait_s += waited - min(call_s, waited)
        self._now = end

    def _cached(self, key: ExpertKey) -> bool:
        return self._lane.holds(key, self._pools.of(key))
