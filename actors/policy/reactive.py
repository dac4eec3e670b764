"""Once a layer's router has spoken: which worker computes which missing expert."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .cost import WorkerCost

__all__ = ["WorkerCost", "makespan", "split_misses"]


def split_misses(pairs: Mapping[int, int], workers: Sequence[WorkerCost]) -> list[list[int]]:
    """Shares the experts of one layer out to workers of unequal speed; all start at once.

    `pairs`: expert → tokens routed to it. Heaviest expert first, each to the worker that would finish it
    earliest (longest processing time first, Graham 1969); a worker's call overhead counts with its first
    expert. Ties go to the lower expert and to the worker named first, so the result is a function of the
    arguments alone. Returns the experts of each worker, ascending, aligned with `workers`; empty lists where
    a worker is not needed. Raises ValueError when there are experts but no worker.
    """
    if pairs and not workers:
        raise ValueError(f"{len(pairs)} experts to compute but no worker to compute them")
    shares: list[list[int]] = [[] for _ in workers]
    finish = [worker.call_s for worker in workers]
    for expert in sorted(pairs, key=lambda e: (-pairs[e], e)):
        ends = [end + w.expert_s + w.pair_s * pairs[expert] for end, w in zip(finish, workers, strict=True)]
        best = min(range(len(workers)), key=ends.__getitem__)
        shares[best].append(expert)
        finish[best] = ends[best]
    return [sorted(share) for share in shares]


def makespan(pairs: Mapping[int, int], workers: Sequence[WorkerCost], shares: Sequence[Sequence[int]]) -> float:
    """Seconds until the last worker of `shares` is done, by its own cost."""
    return max(
        (
            worker.call_s + sum(worker.expert_s + worker.pair_s * pairs[e] for e in share)
            for worker, share in zip(workers, shares, strict=True)
            if share
        ),
        default=0.0,
    )
