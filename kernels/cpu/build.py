"""Compiles the kernels: `python -m moespac.kernels.cpu.build`, and what `pip install` runs.

Imports nothing but the standard library: it runs before anything is installed.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
LIBRARY = "_kernels" + (sysconfig.get_config_var("EXT_SUFFIX") or ".so")
# Where there is fused multiply-add, compilers fuse in one loop and not in another: sums would differ.
COMMON = ["-std=c++17", "-O3", "-ffp-contract=off", "-fPIC", "-fvisibility=hidden", "-pthread"]
COMMON += ["-Wno-ignored-attributes"]
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c"]
UNITS: tuple[tuple[str, str, list[str]], ...] = (
    ("experts", "experts.cpp", []),
    ("attention", "attention.cpp", []),
    ("isa", "isa.cpp", []),
    ("pool", "pool.cpp", []),
    ("stream", "stream.cpp", []),
    ("portable", "isa_portable.cpp", []),
    ("neon", "isa_neon.cpp", []),
    ("avx2", "isa_avx2.cpp", ["-mavx2", "-mfma", "-mf16c"]),
    *(
        (name, "isa_avx512.cpp", [*flags, f"-DMOESPAC_KERNELS=moespac_kernels_{name}"])
        for name, flags in (
            ("avx512", AVX512),
            ("avx512_vnni", [*AVX512, "-mavx512vnni"]),
            ("avx512_bf16", [*AVX512, "-mavx512vnni", "-mavx512bf16"]),
        )
    ),
)
"""(object, source, flags): an object for each instruction set, chosen at run time; the others suit any CPU."""
X86 = {"x86_64", "amd64"}


class CannotCompile(RuntimeError):
    """There is no compiler, or it failed; the message says which and why."""


def sources() -> list[Path]:
    """Everything that the library is made from; none where only the library was installed."""
    return sorted(path for suffix in ("cpp", "h", "inc") for path in HERE.glob(f"*.{suffix}"))


def digest() -> str:
    """Of the sources' content: a library made from others is noticed."""
    state = hashlib.blake2b(digest_size=16)
    for path in sources():
        state.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return state.hexdigest()


def compiler() -> list[str]:
    """The C++ compiler's command: $CXX, or the first there is of the usual names. Raises CannotCompile."""
    if os.environ.get("CXX"):
        return shlex.split(os.environ["CXX"])
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name):
            return [name]
    raise CannotCompile("no C++ compiler found (looked for $CXX, c++, g++, clang++): install one, such as g++")


def compile_library(target: Path, cxx: list[str] | None = None, machine: str | None = None) -> Path:
    """Writes the shared library `target`, whole or not at all. `machine`: what to compile for, this one if None.

    Raises CannotCompile.
    """
    cxx, machine = cxx or compiler(), (machine or platform.machine()).lower()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:

        def one(unit: tuple[str, str, list[str]]) -> str:
            name, source, flags = unit
            if machine not in X86:
                # Without its flags, a file for instructions of another kind of CPU says that it has no kernels.
                flags = [flag for flag in flags if not flag.startswith("-m")]
            made = str(Path(folder) / f"{name}.o")
            marked = [*flags, f'-DMOESPAC_SOURCE_DIGEST="{digest()}"']
            _run([*cxx, *COMMON, *marked, "-c", str(HERE / source), "-o", made])
            return made

        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            objects = list(pool.map(one, UNITS))
        linked = Path(folder) / LIBRARY
        # With its own C++ runtime the library runs on systems that have an older one, or none.
        _run([*cxx, "-shared", "-pthread", "-static-libstdc++", "-static-libgcc", *objects, "-o", str(linked)])
        partial = target.with_name(f".{target.name}.{os.getpid()}")
        shutil.copy(linked, partial)
        partial.replace(target)
    return target


def _run(command: list[str]) -> None:
    try:
        made = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise CannotCompile(f"{command[0]} cannot be run: {error}") from error
    if made.returncode:
        raise CannotCompile(f"{shlex.join(command)} failed with status {made.returncode}:\n{made.stderr.strip()}")


def main() -> None:
    """Compiles the library into the package, where it is looked for."""
    try:
        print(compile_library(HERE / LIBRARY))
    except CannotCompile as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
