"""Sharing one layer's experts between device and CPU by greedy rules of rival systems."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from .interface import Setting


@dataclass(frozen=True)
class Split:
    """Experts on either side and when the later side is done, in seconds from the router's choice."""

    device: list[int]
    cpu: list[int]
    makespan_s: float


def two_ended(setting: Setting, pairs: Mapping[int, int], residents: Collection[int], link_free_s: float) -> Split:
    """HybriMoE's: residents by load, then the others by load; the device takes from the head, the CPU from the tail.

    The side that would be done earlier with its next expert takes it. `pairs`: expert → pairs; `link_free_s`: when a
    first fetch can start.
    """
    order = sorted(pairs, key=lambda e: (e not in residents, -pairs[e], e))
    sides: tuple[list[int], list[int]] = ([], [])
    device, cpu, link = 0.0, setting.cpu_call_s, link_free_s
    head, tail = 0, len(order) - 1
    while head <= tail:
        expert = order[head]
        arrival = 0.0 if expert in residents else link + setting.transfer_s
        device_then = max(device, arrival) + setting.device.seconds(pairs[expert])
        cpu_then = cpu + setting.cpu.seconds(pairs[order[tail]])
        if device_then <= cpu_then:
            device, link, head = device_then, max(link, arrival), head + 1
            sides[0].append(expert)
        else:
            cpu, tail = cpu_then, tail - 1
            sides[1].append(order[tail + 1])
    return Split(*sides, max(device, cpu if sides[1] else 0.0))


def by_difference(setting: Setting, pairs: Mapping[int, int], residents: Collection[int], link_free_s: float) -> Split:
    """DALI's: experts by |t_cpu − t_device| descending, each to the side that would be done with it earlier."""
    on_device = {
        e: setting.device.seconds(n) + (0.0 if e in residents else setting.transfer_s) for e, n in pairs.items()
    }
    on_cpu = {e: setting.cpu.seconds(n) for e, n in pairs.items()}
    sides: tuple[list[int], list[int]] = ([], [])
    device, cpu = 0.0, setting.cpu_call_s
    for expert in sorted(pairs, key=lambda e: (-abs(on_cpu[e] - on_device[e]), e)):
        start = device if expert in residents else max(device, link_free_s)
        if start + on_device[expert] <= cpu + on_cpu[expert]:
            device = start + on_device[expert]
            sides[0].append(expert)
        else:
            cpu += on_cpu[expert]
            sides[1].append(expert)
    return Split(*sides, max(device, cpu if sides[1] else 0.0))


def shares(split: Split, residents: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
    """(fetched, misses on the CPU, residents on the CPU) of a split."""
    held = set(residents)
    return (
        [e for e in split.device if e not in held],
        [e for e in split.cpu if e not in held],
        [e for e in split.cpu if e in held],
    )
