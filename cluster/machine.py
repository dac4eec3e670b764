"""What this process may use of the machine: cores, memory, instruction sets, GPUs. Limits of containers count."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import psutil

from ..actors.hardware import cpuinfo

CGROUP = Path("/sys/fs/cgroup")
ISA_FLAGS = {
    "avx2": "AVX2",
    "avx512f": "AVX-512F",
    "avx512_bf16": "AVX-512-BF16",
    "avx512_vnni": "AVX-512-VNNI",
    "avx_vnni": "AVX-VNNI",
    "amx_tile": "AMX",
    "amx_bf16": "AMX-BF16",
    "amx_int8": "AMX-INT8",
    "asimd": "NEON",
    "bf16": "NEON-BF16",
    "i8mm": "NEON-I8MM",
    "sve": "SVE",
}
"""Flags of /proc/cpuinfo that arithmetic on experts can profit from, and their usual names."""


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU. `torch_device` is empty where this torch cannot use it."""

    torch_device: str
    name: str
    uuid: str
    memory_bytes: int


def isa() -> list[str]:
    """Names of the instruction sets in `ISA_FLAGS` that this CPU has."""
    fields = cpuinfo()
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    return [name for flag, name in ISA_FLAGS.items() if flag in flags]


def logical_cores() -> int:
    """Cores the operating system sees."""
    return os.cpu_count() or 1


def usable_cores() -> int:
    """Whole cores this process can keep busy: affinity and the container's CPU quota considered; at least 1."""
    quota = cpu_quota()
    cores = len(os.sched_getaffinity(0))
    return max(1, min(cores, int(quota))) if quota else cores


def cpu_quota(root: Path = CGROUP, membership: Path = Path("/proc/self/cgroup")) -> float | None:
    """Cores' worth of CPU time that the control group grants; None: no limit."""
    limits = []
    for folder in _groups(root, membership, "cpu"):
        v2 = _words(folder / "cpu.max")
        quota, period = (
            v2 if len(v2) == 2 else (_word(folder / "cpu.cfs_quota_us"), _word(folder / "cpu.cfs_period_us"))
        )
        if quota.isdigit() and period.isdigit() and int(period):
            limits.append(int(quota) / int(period))
    return min(limits, default=None)


def total_memory() -> int:
    """Bytes this process and its children can have: the machine's, or the container's limit if that is lower."""
    return min([psutil.virtual_memory().total, *memory_limits()])


def available_memory() -> int:
    """Bytes that can still be taken without swapping, within the container's limit."""
    return min([psutil.virtual_memory().available, *memory_limits(less_used=True)])


def memory_limits(
    root: Path = CGROUP, membership: Path = Path("/proc/self/cgroup"), less_used: bool = False
) -> list[int]:
    """Limits in bytes of the control groups this process is in; `less_used`: what is left of them."""
    limits = []
    for folder in _groups(root, membership, "memory"):
        limit = _word(folder / "memory.max") or _word(folder / "memory.limit_in_bytes")
        if limit.isdigit():
            used = _word(folder / "memory.current") or _word(folder / "memory.usage_in_bytes") if less_used else "0"
            limits.append(max(0, int(limit) - int(used or 0)))
    return limits


def gpus() -> list[Gpu]:
    """The GPUs torch can use; or, where torch cannot, those the driver knows."""
    import torch

    if torch.cuda.is_available():
        found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        return [Gpu(f"cuda:{i}", p.name, f"GPU-{p.uuid}", p.total_memory) for i, p in enumerate(found)]
    query = ["nvidia-smi", "--query-gpu=name,uuid,memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []  # no driver, or one that does not work: either way no GPU to be used
    rows = [[field.strip() for field in line.split(",")] for line in answer.splitlines() if line.strip()]
    return [Gpu("", name, uuid, int(float(mib)) << 20) for name, uuid, mib in rows]


def _groups(root: Path, membership: Path, controller: str) -> list[Path]:
    """Folders of this process's control group and of all that enclose it: the tightest limit counts."""
    folders = [root, root / controller]
    for line in _lines(membership):
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        base = root / controller if controllers else root
        group = base / path.lstrip("/")
        folders += [f for f in (group, *group.parents) if f.is_relative_to(base)]
    return list(dict.fromkeys(folders))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _words(path: Path) -> list[str]:
    return next(iter(_lines(path)), "").split()


def _word(path: Path) -> str:
    return next(iter(_words(path)), "")
