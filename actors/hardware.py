"""What an actor computes on, in words: costs measured on other hardware are of no use."""

from __future__ import annotations

import os
import platform
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


def cpuinfo() -> dict[str, str]:
    """What the kernel says of the first core; empty where it does not."""
    try:
        first = CPUINFO.read_text().split("\n\n", 1)[0]
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in first.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def cpu_model() -> str:
    """Name of the CPU as the kernel gives it."""
    fields = cpuinfo()
    return fields.get("model name") or fields.get("Processor") or platform.processor() or platform.machine()


def host_hardware() -> str:
    """CPU and cores this process may use. No host name: containers change theirs at every start."""
    return f"{cpu_model()}, {len(os.sched_getaffinity(0))} cores"


def device_hardware(torch_device: str) -> str:
    """The same, with the GPU of a device that computes on one."""
    import torch

    if not torch_device.startswith("cuda"):
        return host_hardware()
    index = torch.device(torch_device).index or 0
    # One that is not there is no concern here: loading says so.
    there = torch.cuda.is_available() and index < torch.cuda.device_count()
    return f"{torch.cuda.get_device_name(index) if there else torch_device}; {host_hardware()}"
