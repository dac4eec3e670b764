"""Seconds that work takes on a `Hardware`, and the lanes it queues in."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from ...actors.core import ExpertKey
from ...actors.policy.rivals.interface import Roofline
from .hardware import Hardware


@dataclass(frozen=True)
class Machine:
    """Times of one hardware file; seconds, bytes and bytes per second."""

    expert_bytes: int
    device: Roofline
    cpu: Roofline
    cpu_call_s: float
    trunk_layer_s: float
    head_s: float
    draft_token_s: float
    link_bandwidth: float
    pageable_bandwidth: float
    link_latency_s: float
    contention: float
    """Bytes per second of the link's over the CPU's that the CPU loses while the link is busy; below 1."""
    disk_bandwidth: float
    host_experts: int
    remote_call_s: float
    remote_step_s: float
    plan_s: float
    refresh_s: float

    def transfer_s(self, pageable: bool) -> float:
        """One expert's time on the link."""
        return self.link_latency_s + self.expert_bytes / (self.pageable_bandwidth if pageable else self.link_bandwidth)

    def cpu_end(self, start: float, work_s: float, link_busy_until: float) -> float:
        """When CPU work that takes `work_s` alone is done, if the link takes its share of memory until then."""
        rate = 1.0 - self.contention
        shared = max(0.0, link_busy_until - start)
        return start + work_s / rate if work_s <= shared * rate else start + shared + work_s - shared * rate


def machine_of(hardware: Hardware) -> Machine:
    """What a hardware file's constants amount to."""
    model, device, cpu, link, draft = hardware.model, hardware.device, hardware.cpu, hardware.link, hardware.draft
    pair_flops = 2 * 3 * model.hidden_size * model.intermediate_size
    size, memory = model.expert_bytes.value, device.memory_bandwidth.value * device.memory_efficiency.value
    lost = link.host_contention.value * link.bandwidth.value / cpu.memory_bandwidth.value
    return Machine(
        expert_bytes=int(size),
        device=Roofline(size / memory, pair_flops / device.flops.value),
        cpu=Roofline(size / cpu.memory_bandwidth.value, pair_flops / cpu.flops.value),
        cpu_call_s=cpu.layer_call.value,
        trunk_layer_s=model.trunk_layer_bytes.value / memory + device.layer_overhead.value,
        head_s=model.head_bytes.value / memory,
        draft_token_s=draft.token_bytes.value / memory + draft.token_overhead.value,
        link_bandwidth=link.bandwidth.value,
        pageable_bandwidth=link.pageable_bandwidth.value,
        link_latency_s=link.latency.value,
        # A CPU always gets a tenth of its memory: controllers share.
        contention=min(lost, 0.9),
        disk_bandwidth=hardware.disk.bandwidth.value,
        host_experts=int(hardware.disk.host_memory.value // size),
        remote_call_s=hardware.remote.call.value,
        remote_step_s=hardware.remote.step.value,
        plan_s=hardware.planner.solve.value,
        refresh_s=hardware.planner.refresh.value,
    )


class HostMemory:
    """Experts that lie in host memory; the least recently wanted is dropped for one read from disk."""

    def __init__(self, machine: Machine, keys: list[ExpertKey]) -> None:
        self._read_s = machine.expert_bytes / machine.disk_bandwidth
        self._room = machine.host_experts
        self._all_fit = len(keys) <= self._room
        self._held: OrderedDict[ExpertKey, None] = OrderedDict.fromkeys(keys[: self._room])
        self._free_at = 0.0
        self.reads = 0

    def ready_at(self, now: float, key: ExpertKey) -> float:
        """When the bytes of `key`, wanted from `now` on, are in host memory."""
        if self._all_fit:
            return now
        if key in self._held:
            self._held.move_to_end(key)
            return now
        self._free_at = max(self._free_at, now) + self._read_s
        self.reads += 1
        if self._room:
            if len(self._held) >= self._room:
                self._held.popitem(last=False)
            self._held[key] = None
        return self._free_at
