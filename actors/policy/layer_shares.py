"""Once a layer's router has spoken: who computes which missing expert, with a link and copies under way in view.

Fiddler (arXiv 2402.07033) asks of each expert whether computing it on the CPU or copying it is cheaper. Here copies and
CPU workers go on at the same time, so the question is how to share a layer out that all are done soonest.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from .cost import WorkerCost
from .reactive import makespan, split_misses

SILENT = 256
"""Layers in which whoever is not asked comes to be thought half as dear."""


def hopeful(cost: WorkerCost, samples: int, silent: int) -> WorkerCost:
    """`cost` as it is worth trying, `silent` layers after the last of `samples` samples.

    Costs are learned only of who is asked, so one unlucky sample could put somebody off for good. This way whoever is c
    times too dear is tried once in about SILENT·(c − 1) layers, which takes c − 1 times a layer's time longer: a share
    of 1/SILENT of all time whatever c is. After few samples sooner, as they may have been of a cold start.
    """
    scale = 1.0 / (1.0 + silent / min(SILENT, 8 * max(1, samples)))
    return WorkerCost(cost.name, cost.call_s * scale, cost.expert_s * scale, cost.pair_s * scale)


@dataclass(frozen=True)
class Here:
    """This device, for experts that are not in its slots; seconds."""

    free_s: float
    """Until it has computed its residents."""
    expert_s: float
    """Computing one expert, whatever its pairs."""
    pair_s: float
    """Computing one (token, expert) pair."""
    link_free_s: float = 0.0
    """Until the copies under way have left the link."""
    transfer_s: float = math.inf
    """One expert over the link; infinite: no copies for this layer alone."""

    def done_s(self, arrivals: Sequence[tuple[float, int]]) -> float:
        """When it has computed residents and `arrivals`, (when it is there, pairs) each, ascending."""
        now = self.free_s
        for there_s, pairs in arrivals:
            now = max(now, there_s) + self.expert_s + self.pair_s * pairs
        return now


@dataclass(frozen=True)
class Shares:
    """Every missing expert of a layer in one place."""

    workers: tuple[tuple[int, ...], ...]
    """Of each worker, ascending."""
    streamed: tuple[int, ...] = ()
    """To be copied in this order and computed here: most pairs first (Johnson 1954, equal copies), so that the last
    one to arrive is soon computed."""
    awaited: tuple[int, ...] = ()
    """On their way already and computed here, soonest first."""
    seconds: float = 0.0
    """Until all is computed, by the costs given."""


def time_left(expected_s: float, elapsed_s: float) -> float:
    """Seconds that a copy under way still takes: the rest of the usual time; once late, as long again as it is late."""
    return abs(expected_s - elapsed_s)


def share_layer(
    pairs: Mapping[int, int],
    workers: Sequence[WorkerCost],
    here: Here,
    arriving: Mapping[int, float] | None = None,
    uncopyable: Container[int] = (),
) -> Shares:
    """Shares out the experts of one layer, `pairs`: expert → tokens routed to it, so that the last is done soonest.

    `arriving`: seconds until an expert's bytes are on the device, of those on their way (0: there); they may be waited
    for, and are not copied again. `uncopyable`: may go to workers only. Without workers everything is copied or waited
    for. A function of the arguments alone, whatever the order of mappings. Raises ValueError where nobody can compute
    an expert.
    """
    soonest = sorted((left_s, e) for e, left_s in (arriving or {}).items() if e in pairs)
    best: Shares | None = None
    # What is waited for costs no worker anything, and what comes sooner is waited for rather than what comes later.
    for count in range(len(soonest) + 1):
        awaited, later = soonest[:count], {e for _, e in soonest[count:]}
        if (later and not workers) or (best and count and best.seconds <= awaited[-1][0]):
            continue
        chosen = tuple(e for _, e in awaited)
        arrivals = [(left_s, pairs[e]) for left_s, e in awaited]
        open_ = {e: n for e, n in pairs.items() if e not in chosen}
        bound = {e: n for e, n in open_.items() if e in later or (workers and e in uncopyable)}
        rest = {e: n for e, n in open_.items() if e not in bound}
        for shares, streamed in _splits(bound, rest, workers, here, arrivals, best.seconds if best else math.inf):
            copies = [(here.link_free_s + at * here.transfer_s, pairs[e]) for at, e in enumerate(streamed, 1)]
            seconds = max(makespan(pairs, workers, shares), here.done_s(sorted(arrivals + copies)))
            # Of equals the later: it waits for more.
            if best is None or seconds <= best.seconds:
                best = Shares(tuple(map(tuple, shares)), tuple(streamed), chosen, seconds)
    if best is None:
        raise ValueError(f"{len(pairs)} experts to compute but nobody to compute them")
    return best


def _splits(
    bound: Mapping[int, int],
    rest: Mapping[int, int],
    workers: Sequence[WorkerCost],
    here: Here,
    arrivals: Sequence[tuple[float, int]],
    beat_s: float,
) -> Iterator[tuple[list[list[int]], list[int]]]:
    """Promising (share of each worker, copies in their order); `bound` goes to workers, `rest` to anybody.

    Link and device are two stages of one line: the slower sets the pace. Both are tried as the pace of a worker, each
    an underestimate where the other is slower, so the better of the two is as good as knowing which it is.
    """
    fixed: list[list[int]] = []
    if workers:
        alone = split_misses({**bound, **rest}, workers)
        yield alone, []
        beat_s = min(beat_s, makespan({**bound, **rest}, workers, alone))
    elif not rest:
        yield [], []
    if not rest or not math.isfinite(here.transfer_s):
        return
    free_s, first_s = here.done_s(arrivals), here.link_free_s + here.transfer_s
    least_s, most_s = (here.expert_s + here.pair_s * n for n in (min(rest.values()), max(rest.values())))
    if workers and max(first_s, free_s) + least_s >= beat_s:
        return  # Not even one copy would be computed in time.
    if workers:
        fixed = split_misses(bound, workers)
        # Who has a share already starts on another when that is done.
        workers = [
            replace(worker, call_s=makespan(bound, [worker], [share]) if share else worker.call_s)
            for worker, share in zip(workers, fixed, strict=True)
        ]
    lanes = []
    if here.transfer_s >= least_s:
        lanes.append(WorkerCost("link", here.link_free_s + least_s, here.transfer_s, 0.0))
    if here.transfer_s < most_s or free_s > first_s:
        lanes.append(WorkerCost("device", max(first_s, free_s), here.expert_s, here.pair_s))
    for lane in lanes:
        *shares, streamed = split_misses(rest, [*workers, lane])
        if streamed:
            streamed.sort(key=lambda e: (-rest[e], e))
            yield [sorted([*a, *b]) for a, b in zip(fixed, shares, strict=True)], streamed
