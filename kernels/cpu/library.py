"""The shared library of CPU kernels: finding it, the instruction sets that run here, and its threads."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Sequence
from functools import cache

import torch

from ...errors import UserError
from .build import HERE, LIBRARY, digest, sources

ABI_VERSION = 2
"""As in abi.h."""
ISAS = ("portable", "avx2", "avx512", "avx512-vnni", "avx512-bf16", "neon")
"""By their numbers in isa.h; of those that one CPU has, a later one is faster."""
FORMATS = {"float32": 0, "bfloat16": 1, "float16": 2, "int8": 3, "int4-g32": 4, "int4-g128": 5}
"""Numbers in abi.h of the layouts' formats."""
COMPUTE = {torch.float32: 0, torch.bfloat16: 1}
"""Numbers in abi.h of the compute types."""
ISA_VARIABLE = "MOESPAC_CPU_ISA"
"""Environment variable that forces an instruction set."""
REMEDY = "build it with `python -m moespac.kernels.cpu.build`"


class LibraryError(UserError):
    """There is no usable library, or it cannot do what was asked."""


@cache
def load() -> ctypes.CDLL:
    """The library, its pool as wide as torch's; raises LibraryError that says why there is none."""
    path = HERE / LIBRARY
    if not path.exists():
        raise LibraryError(
            f"{path} is missing: no C++ compiler was found at installation, or it failed; install g++ and {REMEDY}"
        )
    try:
        library = ctypes.CDLL(str(path))
        version = library.moespac_abi()
        library.moespac_source_digest.restype = ctypes.c_char_p
        made_from = library.moespac_source_digest().decode()
    except (OSError, AttributeError) as error:
        raise LibraryError(f"{path} cannot be loaded ({error}): {REMEDY}") from error
    if version != ABI_VERSION:
        raise LibraryError(f"{path} has ABI version {version}, this moespac needs {ABI_VERSION}: {REMEDY}")
    if sources() and made_from != digest():
        raise LibraryError(f"{path} is older than its C++ sources: {REMEDY}")
    pointer, long, integer = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
    library.moespac_isas.restype = ctypes.c_uint32
    library.moespac_experts.argtypes = (integer, pointer, integer, pointer, long, pointer, long, pointer)
    library.moespac_linear.argtypes = (
        *(integer, integer, integer, pointer, pointer, long, long),
        *(integer, pointer, long, pointer, pointer),
    )
    library.moespac_attention.argtypes = (integer, pointer)
    library.moespac_read.argtypes = (pointer, long, integer)
    library.moespac_read.restype = long
    library.moespac_configure.argtypes = (integer, pointer)
    library.moespac_configure(torch.get_num_threads(), None)
    return library


def unavailable() -> str | None:
    """Why there is no usable library; None: there is one."""
    try:
        load()
    except LibraryError as error:
        return str(error)
    return None


def available() -> tuple[str, ...]:
    """Instruction sets that this CPU and the library have, best first."""
    found = load().moespac_isas()
    return tuple(name for number, name in reversed(list(enumerate(ISAS))) if found >> number & 1)


def choose(isa: str | None = None) -> str:
    """`isa`, else what the environment names, else the best; raises LibraryError for one that cannot run here."""
    wanted, source = isa or os.environ.get(ISA_VARIABLE), "isa" if isa else ISA_VARIABLE
    runs = available()
    if not wanted:
        return runs[0]
    if wanted not in ISAS:
        raise LibraryError(f"{source}: {wanted!r} is no instruction set: one of {', '.join(ISAS)}")
    if wanted not in runs:
        raise LibraryError(f"{source}: this CPU cannot run {wanted!r}: use one of {', '.join(runs)}")
    return wanted


def configure(threads: int, cpus: Sequence[int] | None = None) -> None:
    """Threads of this process's pool, the caller's among them; `cpus`: one for each to be pinned to.

    Raises LibraryError for what cannot be had.
    """
    mask = os.sched_getaffinity(0)
    if threads < 1:
        raise LibraryError(f"threads: {threads} is too few: 1 or more, the calling thread among them")
    if cpus is not None and len(cpus) != threads:
        raise LibraryError(f"cpus: {len(cpus)} for {threads} threads: name one for each")
    if outside := [cpu for cpu in cpus or () if cpu not in mask]:
        raise LibraryError(f"cpus: {outside[0]} is none that this process may use: {', '.join(map(str, sorted(mask)))}")
    check(load().moespac_configure(threads, None if cpus is None else (ctypes.c_int32 * threads)(*cpus)))


def threads() -> int:
    """Of this process's pool, the caller's among them."""
    return load().moespac_threads()


def check(status: int) -> None:
    """Raises what a call's status, an errno, means."""
    if status == errno.ENOTSUP:
        raise LibraryError("the CPU kernels have none for this format and instruction set: choose another")
    if status == errno.ENOMEM:
        raise MemoryError("the CPU kernels could not get memory")
    if status:
        raise LibraryError(f"the CPU kernels failed: {os.strerror(status)}")
