"""Small machines, traces and settings for tests of the simulator and of the policies it runs."""

import copy
from pathlib import Path

import numpy as np
import yaml

from moespac.actors.core import ModelShape
from moespac.actors.policy.rivals.interface import Layer, Roofline, Setting, Step
from moespac.cluster.simulator.hardware import Hardware
from moespac.cluster.simulator.run import Case, simulate

ROUND = {
    "name": "round numbers",
    "model": {
        "hidden_size": 10,
        "intermediate_size": 10,
        "expert_bytes": "1MB",
        "trunk_layer_bytes": "0B",
        "head_bytes": "0B",
    },
    "device": {"memory_bandwidth": "1GB/s", "memory_efficiency": 1, "flops": "1TFLOP/s", "layer_overhead": "1ms"},
    "cpu": {"memory_bandwidth": "500MB/s", "flops": "1TFLOP/s", "layer_call": "0.5ms"},
    "link": {"bandwidth": "250MB/s", "pageable_bandwidth": "125MB/s", "host_contention": 0, "latency": "0ms"},
    "disk": {"bandwidth": "100MB/s", "host_memory": "1GB"},
    "draft": {"token_bytes": "0B", "token_overhead": "10ms"},
    "remote": {"call": "0.25ms", "step": "0.125ms"},
    "planner": {"solve": "4ms", "refresh": "0.5ms"},
    "speculation": {"acceptance": 0.5, "gate_accuracy": 1.0},
}
"""An expert takes 1 ms on the device, 2 ms on the CPU (and 0.5 ms a layer), 4 ms over the link; a trunk layer 1 ms."""


def hardware_values(**changes: object) -> dict:
    """`ROUND` as a hardware file has it; `section__name=value` changes a constant."""
    values = copy.deepcopy(ROUND)
    for key, value in changes.items():
        section, name = key.split("__")
        values[section][name] = value
    for section, part in values.items():
        for name in part if isinstance(part, dict) else ():
            if name not in ("hidden_size", "intermediate_size"):
                part[name] = {"value": part[name], "source": f"made up for {section}"}
    return values


def hardware(**changes: object) -> Hardware:
    return Hardware.model_validate(hardware_values(**changes))


def write_hardware(path: Path, **changes: object) -> Path:
    path.write_text(yaml.safe_dump(hardware_values(**changes)))
    return path


def write_trace(path: Path, ids, n_experts: int, offsets=None, **arrays) -> Path:
    ids = np.asarray(ids, dtype=np.uint8)
    offsets = [0, len(ids)] if offsets is None else offsets
    np.savez(path, **{"ids": ids, "seq_offsets": offsets, "n_experts": n_experts, "top_k": ids.shape[2], **arrays})
    return path


def random_ids(tokens: int, layers: int, n_experts: int, top_k: int, seed: int = 0) -> np.ndarray:
    """Skewed routing with runs: a token keeps its predecessor's experts of a layer half of the time."""
    random = np.random.default_rng(seed)
    popularity = random.dirichlet(np.full(n_experts, 0.3), size=layers) + 0.01
    ids = np.empty((tokens, layers, top_k), dtype=np.uint8)
    for t in range(tokens):
        for layer in range(layers):
            share = popularity[layer] / popularity[layer].sum()
            fresh = random.choice(n_experts, top_k, replace=False, p=share)
            ids[t, layer] = ids[t - 1, layer] if t and random.random() < 0.5 else fresh
    return ids


def run(trace: Path, policy: str, machine: Hardware | None = None, ratio: float = 0.5, **options):
    return simulate(Case(trace, policy, machine or hardware(), ratio, **options))


def setting(layers=3, n_experts=8, top_k=2, slots=6, gamma=4, profile=None, accuracy=1.0, **changes) -> Setting:
    """The times of `ROUND`."""
    shape = ModelShape(tuple(range(layers)), n_experts, top_k, 10, 10, 10**6)
    values = {
        "shape": shape,
        "slots": slots,
        "device": Roofline(1e-3, 0.0),
        "cpu": Roofline(2e-3, 0.0),
        "cpu_call_s": 0.5e-3,
        "transfer_s": 4e-3,
        "contention": 0.0,
        "trunk_layer_s": 1e-3,
        "draft_token_s": 10e-3,
        "draft_kind": "model",
        "gamma": gamma,
        "profile": np.zeros((layers, n_experts), dtype=int) if profile is None else np.asarray(profile),
        "learned": {},
        "plan_s": 4e-3,
        "refresh_s": 0.5e-3,
        "tell_s": 0.125e-3,
        "gate_accuracy": accuracy,
    }
    return Setting(**values | changes)


def layer(row: int, pairs: dict[int, int], residents=(), ahead: dict[int, list[list[int]]] | None = None, cached=()):
    """A router has spoken; `ahead`: row → routing of later layers; `cached`: keys in slots."""
    misses = [e for e in pairs if e not in residents]
    return Layer(
        row,
        0.0,
        pairs,
        list(residents),
        misses,
        {},
        0.0,
        lambda key: key in cached,
        lambda r: np.array((ahead or {})[r]),
    )


def step(counts: np.ndarray, tokens: int, index: int = 0, cached=(), request: str = "r") -> Step:
    return Step(index, 0.0, tokens, (), request, lambda key: key in cached, lambda: np.asarray(counts))
