"""`moespac doctor`: what this machine has, how fast it is, and what moespac will use of it and why."""

from __future__ import annotations

import json as json_format
import os
import platform
import shutil
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..actors.hardware import cpu_model
from ..configs.units import show_size
from ..version import __version__
from . import machine, measure

MATTER = ("torch", "ray", "transformers", "safetensors", "ortools", "protobuf", "grpcio", "numpy")
"""Dependencies whose versions decide whether moespac works."""


@dataclass(frozen=True)
class Version:
    """An installed dependency. `tested`: the range that was; `ok` is False outside it or where it is missing."""

    name: str
    installed: str
    tested: str
    ok: bool


@dataclass(frozen=True)
class Use:
    """What will be used, and why."""

    what: str
    value: str
    why: str


@dataclass(frozen=True)
class Diagnosis:
    """Everything `moespac doctor` says; bytes and bytes per second. `problems`: what keeps moespac from working."""

    moespac: str
    python: str
    system: str
    cpu: dict
    memory: dict
    disk: dict
    shared_memory: dict
    gpus: list[dict]
    versions: list[Version]
    uses: list[Use]
    problems: list[str]


def run_doctor(json: bool = False) -> int:
    """Prints the diagnosis, as one JSON object if `json`. Exit status 0 where moespac can work, else 1."""
    diagnosis = diagnose()
    if json:
        print(json_format.dumps(asdict(diagnosis), ensure_ascii=False))
    else:
        _show(diagnosis, Console())
    return 1 if diagnosis.problems else 0


def diagnose() -> Diagnosis:
    """Looks and measures; takes about four seconds and leaves nothing behind."""
    gpus = [asdict(g) for g in machine.gpus()]
    for gpu in gpus:
        gpu["link_bytes_per_s"] = measure.gpu_link_bandwidth(gpu["torch_device"]) if gpu["torch_device"] else None
    folder = _existing(cache_folder())
    shared_memory, versions = _shared_memory(), check_versions()
    problems = [
        f"{v.name} {v.installed or 'is missing'}: moespac was tested with {v.tested}; pip install '{v.name}{v.tested}'"
        for v in versions
        if not v.ok
    ]
    if not shared_memory["memfd"]:
        problems.append("memfd does not work here: processes cannot share the host arena; Linux 3.17 or newer has it")
    return Diagnosis(
        moespac=__version__,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        cpu={
            "model": cpu_model(),
            "isa": machine.isa(),
            "cores": machine.logical_cores(),
            "usable_cores": machine.usable_cores(),
            "quota": machine.cpu_quota(),
        },
        memory={
            "total": machine.total_memory(),
            "available": machine.available_memory(),
            "read_bytes_per_s": measure.memory_read_bandwidth(),
        },
        disk={
            "folder": str(folder),
            "free": shutil.disk_usage(folder).free,
            **asdict(measure.disk_read_speed(folder)),
        },
        shared_memory=shared_memory,
        gpus=gpus,
        versions=versions,
        uses=_uses(gpus, machine.usable_cores()),
        problems=problems,
    )


def cache_folder() -> Path:
    """Where converted experts go unless a deployment says otherwise."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "moespac"


def check_versions(requirements: list[str] | None = None) -> list[Version]:
    """Installed versions of what matters against the ranges that moespac's own metadata gives as tested."""
    if requirements is None:
        try:
            requirements = metadata.requires("moespac") or []
        except metadata.PackageNotFoundError:
            return [Version("moespac", "", f"=={__version__}", False)]
    found = []
    for text in requirements:
        requirement = Requirement(text)
        if canonicalize_name(requirement.name) not in MATTER or requirement.marker is not None:
            continue
        try:
            installed = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            installed = ""
        ok = bool(installed) and requirement.specifier.contains(installed, prereleases=True)
        found.append(Version(requirement.name, installed, str(requirement.specifier), ok))
    return found


def split_threads(cores: int, cuda: bool) -> tuple[int, int]:
    """Threads for the gpu device and for one CPU worker: a CUDA device needs two, a CPU one half of what there is."""
    device = min(2, max(1, cores // 2)) if cuda else max(1, cores // 2)
    return device, max(1, cores - device)


def _existing(folder: Path) -> Path:
    while not folder.exists():
        folder = folder.parent
    return folder


def _shared_memory() -> dict:
    try:
        fd = os.memfd_create("moespac-doctor")
    except (OSError, AttributeError):
        works = False
    else:
        try:
            os.write(fd, b"moespac")
            # The way another process takes: through /proc, read-only.
            with open(f"/proc/{os.getpid()}/fd/{fd}", "rb") as same:
                works = same.read() == b"moespac"
        except OSError:
            works = False
        finally:
            os.close(fd)
    shm = Path("/dev/shm")
    return {"memfd": works, "dev_shm_free": shutil.disk_usage(shm).free if shm.is_dir() else 0}


def _uses(gpus: list[dict], cores: int) -> list[Use]:
    import torch

    usable = next((g for g in gpus if g["torch_device"]), None)
    device, worker = split_threads(cores, usable is not None)
    if usable:
        compute = Use(
            "compute device", usable["torch_device"], f"{usable['name']}, {show_size(usable['memory_bytes'])}"
        )
        link = Use("link", f"{usable['link_bytes_per_s'] / 1e9:.1f} GB/s", "measured, page-locked memory to the GPU")
    else:
        why = (
            f"{gpus[0]['name']} is there, but this torch ({torch.__version__}) cannot use it: "
            "install the CUDA build of torch"
            if gpus
            else "no NVIDIA GPU found; torch_device: emulated exercises slots and transfers on the CPU"
        )
        compute = Use("compute device", "cpu", why)
        link = Use("link", "none", "expert slots of a CPU are host memory; an emulated device states its own link")
    return [
        compute,
        _cpu_kernels(),
        Use("torch on the CPU", torch.backends.cpu.get_cpu_capability(), "for what has no kernel of its own"),
        Use(
            "threads", f"gpu device {device}, cpu worker {worker}", f"{cores} usable cores shared out; set as `threads`"
        ),
        link,
        Use("between processes", "gRPC; weights, expert calls in shared memory", "one memfd, read by workers; lanes"),
        Use("expert store", str(cache_folder() / "stores"), "unless a deployment sets model.store"),
        *_measured_costs(cache_folder() / "stores"),
    ]


def _measured_costs(stores: Path) -> list[Use]:
    """Of the stores in the usual place; `moespac check` says it of a deployment's own."""
    from ..actors.cost_file import SUFFIX, CostFile

    names = [path.name.removesuffix(SUFFIX) for path in sorted(stores.glob(f"*{SUFFIX}"))]
    if not names:
        return [Use("measured costs", *CostFile(stores / "any").described())]
    described = ((name, *CostFile(stores / name).described()) for name in names)
    return [Use("measured costs", when, f"{name}: {whose}") for name, when, whose in described]


def _cpu_kernels() -> Use:
    from ..kernels.cpu import library

    try:
        isa = library.choose()
    except library.LibraryError as error:
        return Use("CPU kernels", "torch", str(error))
    return Use("CPU kernels", f"C++, {isa}", "the best that this CPU has; for experts and the trunk's linear layers")


def _show(diagnosis: Diagnosis, console: Console) -> None:
    cpu, memory, disk, shm = diagnosis.cpu, diagnosis.memory, diagnosis.disk, diagnosis.shared_memory
    has = Table("this machine", "", title=f"moespac {diagnosis.moespac}, Python {diagnosis.python}")
    quota = f", CPU quota {cpu['quota']:.1f}" if cpu["quota"] else ""
    read = disk["read_bytes_per_s"]
    rows = [
        ("system", diagnosis.system),
        ("CPU", cpu["model"]),
        ("instruction sets", ", ".join(cpu["isa"]) or "none of those that matter"),
        ("cores", f"{cpu['cores']}, usable {cpu['usable_cores']}{quota}"),
        ("memory", f"{show_size(memory['total'])}, available {show_size(memory['available'])}"),
        ("memory speed", f"{memory['read_bytes_per_s'] / 1e9:.1f} GB/s read"),
        ("disk", f"{show_size(disk['free'])} free at {disk['folder']}"),
        ("disk speed", f"{read / 1e6:.0f} MB/s read ({disk['note']})" if read else disk["note"]),
        ("shared memory", f"memfd {'works' if shm['memfd'] else 'does not work'}, {show_size(shm['dev_shm_free'])} "
                          "free in /dev/shm (Ray's object store)"),
    ]  # fmt: skip
    for gpu in diagnosis.gpus:
        rows.append(("GPU", f"{gpu['name']}, {show_size(gpu['memory_bytes'])}, {gpu['uuid']}"))
    if not diagnosis.gpus:
        rows.append(("GPU", "none"))
    for version in diagnosis.versions:
        state = f"{version.installed or 'missing'} (tested {version.tested})" + ("" if version.ok else ": NOT TESTED")
        rows.append((version.name, state))
    uses = Table("will be used", "", "why")
    for row in rows:
        has.add_row(*map(Text, row))
    for use in diagnosis.uses:
        uses.add_row(Text(use.what), Text(use.value), Text(use.why))
    console.print(has, uses)
    for problem in diagnosis.problems:
        console.print(Text(f"problem: {problem}", style="red"), soft_wrap=True)
