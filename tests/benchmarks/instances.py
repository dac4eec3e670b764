"""Planning problems made up with the skew of recorded routing; a function of the seed alone.

Per layer, the share of tokens that choose the expert of rank r is about (r + 1)^-a, capped at 0.9, with a drawn
per layer: sorted decayed demand (weight 0.02 a token) of Qwen3-30B-A3B and Gemma-4-26B-A4B has a = 1.1 ± 0.3,
of gpt-oss-20b 0.8 ± 0.3, of DeepSeek-V2-Lite 0.4 to 0.7 ± 0.1 over the upper half of the ranks. Residents are
those that demand wanted a while before: demand 40 tokens apart correlates with 0.73 to 0.94.
"""

from __future__ import annotations

import numpy as np

from moespac.actors.policy.assignment_problem import AssignmentProblem, Executor
from moespac.actors.policy.balancer import ThresholdProblem
from moespac.actors.policy.cost import Costs, WorkerCost

EXPERT_BYTES = 9_437_184
"""Qwen3-30B-A3B in F16: 3 · 2048 · 768 · 2."""
TOP_K = 8
LEVELS = 5
"""Utilities lie in 0..LEVELS: six thresholds a layer."""
CAP = 0.9
"""Largest share of tokens that choose one expert."""


def demand(rng: np.random.Generator, layers: int, experts: int, top_k: int) -> np.ndarray:
    """Probability that a token chooses an expert; float [layers, experts], rows sum to top_k."""
    exponents = np.clip(rng.normal(rng.choice([0.6, 0.8, 1.1]), 0.3, layers), 0.2, 2.0)
    share = np.arange(1.0, experts + 1.0) ** -exponents[:, None]
    cap = max(CAP, top_k / experts)
    for _ in range(60):
        share *= (top_k / np.minimum(share, cap).sum(axis=1))[:, None]
    return rng.permuted(np.minimum(share, cap), axis=1)


def drifted(rng: np.random.Generator, probability: np.ndarray) -> np.ndarray:
    """The same demand as it was a while before."""
    return probability * np.exp(rng.normal(0.0, 0.5, probability.shape))


def inertial_utilities(
    rng: np.random.Generator, probability: np.ndarray, tokens: int, promote: int, windows: int = 8
) -> np.ndarray:
    """Utilities 0..LEVELS after some windows: up where a count passes by `promote` or more, down where it is below."""
    utilities = np.zeros(probability.shape, dtype=np.int64)
    for _ in range(windows):
        over = rng.binomial(tokens, np.minimum(probability, 1.0)) - utilities
        utilities = np.clip(utilities + (over >= promote) - (over <= -1), 0, LEVELS)
    return utilities


def quantised_utilities(rng: np.random.Generator, probability: np.ndarray, slots: int) -> np.ndarray:
    """Utilities 0..LEVELS by rank of noisy demand, all layers together: between 2 and 0.2 times `slots` above 0."""
    order = np.argsort(-drifted(rng, probability), axis=None, kind="stable")
    rank = np.empty(order.size)
    rank[order] = np.arange(order.size)
    edges = slots * np.geomspace(2.0, 0.2, LEVELS)
    return (rank[:, None] < edges).sum(axis=1).reshape(probability.shape)


def held(wanted: np.ndarray, slots: int) -> np.ndarray:
    """bool, like `wanted`: the `slots` most wanted experts, all layers together."""
    resident = np.zeros(wanted.size, dtype=bool)
    resident[np.argsort(-wanted, axis=None, kind="stable")[:slots]] = True
    return resident.reshape(wanted.shape)


def machine_costs(rng: np.random.Generator) -> Costs:
    """An accelerator at 0.7 to 1.1 TB/s, a link at 12 to 25 GB/s, a processor at 20 to 80 GB/s."""
    device_s = EXPERT_BYTES / rng.uniform(0.7e12, 1.1e12)
    worker_s = EXPERT_BYTES / rng.uniform(20e9, 80e9)
    return Costs(
        device_call_s=device_s,
        device_pair_s=0.02 * device_s,
        worker_call_s=worker_s,
        worker_pair_s=rng.uniform(0.05, 0.25) * worker_s,
        transfer_s=EXPERT_BYTES / rng.uniform(12e9, 25e9),
        window_s=rng.uniform(0.2e-3, 2e-3),
    )


def threshold_instance(seed: int, layers: int = 48, experts: int = 128, tokens: int = 9) -> ThresholdProblem:
    """Slots for a tenth to a half of all experts, link for 1 to 30 % of the slots.

    Utilities are of the inertial kind, with any promotion boundary, or quantised demand: both are in use.
    """
    rng = np.random.default_rng(seed)
    now = demand(rng, layers, experts, min(TOP_K, max(1, experts // 4)))
    slots = int(rng.uniform(0.1, 0.5) * now.size)
    if rng.random() < 0.5:
        utilities = inertial_utilities(rng, now, tokens, promote=int(rng.integers(1, 6)))
    else:
        utilities = quantised_utilities(rng, now, slots)
    return ThresholdProblem(
        utilities=utilities,
        expected_counts=tokens * now,
        resident=held(drifted(rng, now), slots),
        slots=slots,
        link_experts=int(rng.uniform(0.01, 0.3) * slots),
        costs=machine_costs(rng),
    )


def assignment_instance(
    seed: int, layers: int = 48, experts: int = 128, devices: int = 2, tokens: int = 9
) -> AssignmentProblem:
    """The first half of the devices are accelerators, the rest processors; every second is on another machine.

    The last processor holds all experts. Accelerators together hold 10 to 50 % of the model; the other processors a
    third each.
    """
    rng = np.random.default_rng(seed)
    now = demand(rng, layers, experts, TOP_K)
    before, total = drifted(rng, now), now.size
    accelerators, share = max(1, devices // 2), rng.uniform(0.1, 0.5)
    executors, resident = [], np.zeros((devices, layers, experts), dtype=bool)
    free = np.ones((layers, experts), dtype=bool)
    for d in range(devices):
        fast, last = d < accelerators, d == devices - 1
        slots = total if last else int(share * total / accelerators if fast else total / 3)
        expert_s = EXPERT_BYTES / (rng.uniform(0.2e12, 1.1e12) if fast else rng.uniform(20e9, 80e9))
        executors.append(
            Executor(
                name=f"{'gpu' if fast else 'cpu'}-{d}",
                slots=slots,
                link_experts=0 if last else int(rng.uniform(0.02, 0.2) * slots),
                transfer_s=EXPERT_BYTES / (rng.uniform(12e9, 25e9) if d % 2 == 0 else 2.5e9),
                window_s=rng.uniform(0.2e-3, 1e-3),
                call_s=50e-6 if fast else 300e-6,
                delay_s=rng.uniform(100e-6, 400e-6) if d % 2 and not last else 0.0,
                expert_s=expert_s,
                pair_s=(0.02 if fast else rng.uniform(0.05, 0.25)) * expert_s,
            )
        )
        # Accelerators share the most wanted experts out between them; processors hold copies.
        resident[d] = (
            True if last else held(np.where(free | (not fast), before * rng.uniform(0.5, 1, now.shape), -1), slots)
        )
        if fast:
            free &= ~resident[d]
    return AssignmentProblem(tokens * now, resident, tuple(executors))


def reactive_instance(seed: int, experts: int = 64, devices: int = 4) -> tuple[dict[int, int], list[WorkerCost]]:
    """Active experts of one layer with their pairs, and executors of unequal speed: as `split_misses` takes them.

    Half of the experts have one pair, as in recorded windows. The last executor is the link: a transfer an expert,
    then next to nothing a pair.
    """
    rng = np.random.default_rng(seed)
    pairs = {e: int(min(9, rng.geometric(0.5))) for e in range(experts)}
    workers = []
    for d in range(devices - 1):
        expert_s = EXPERT_BYTES / rng.uniform(10e9, 200e9)
        workers.append(WorkerCost(f"w{d}", rng.uniform(20e-6, 600e-6), expert_s, rng.uniform(0.02, 0.3) * expert_s))
    link_s = EXPERT_BYTES / rng.uniform(12e9, 25e9)
    workers.append(WorkerCost("link", 20e-6, link_s, 0.02 * EXPERT_BYTES / 1e12))
    return pairs, workers
