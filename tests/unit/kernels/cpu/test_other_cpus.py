"""Kernels made for CPUs that are not this one: NEON in an emulator, and what any C++ compiler makes without flags."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import pytest
import torch
from expert_arena import random_arena, random_call
from kernel_driver import Call, compile_driver, run

from moespac.kernels.cpu import build
from moespac.kernels.layout import FORMATS, GATES, ExpertLayout
from moespac.kernels.reference import TorchExperts

ARM_COMPILER, ARM_ROOT = "aarch64-linux-gnu-g++", "/usr/aarch64-linux-gnu"
EMULATOR = next(filter(None, map(shutil.which, ("qemu-aarch64", "qemu-aarch64-static"))), None)
SLOTS, SIZES = [1, 0, 2], [1, 7, 16]
# bfloat16: the first projection's result and the activations are rounded to 8 significant bits.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1e-2}


def layouts() -> list[ExpertLayout]:
    """Every format and gate; rows and columns that no vector divides."""
    plain = [ExpertLayout(136, 100, format, "silu") for format in FORMATS]
    scaled = [ExpertLayout(136, 100, f, "gelu", scale_dtype="bfloat16") for f in ("int4-g32", "int4-g128")]
    gates = [ExpertLayout(37, 70, "bfloat16", "relu2", g, 1.5, 1.7, bias=True, norm_eps=1e-5) for g in GATES]
    return plain + scaled + gates


def assert_rows_are_the_references(isa: str, command: list[Path | str], folder: Path, wanted: set[str]) -> None:
    """On one thread and on two the same bits, each token alone too."""
    cases = []
    for layout, dtype in itertools.product(layouts(), TOLERANCE):
        hidden, work = random_call(layout, dtype, random_arena(layout, 3), SLOTS, SIZES)
        alone = [type(w)(w.block, w.token_rows[-1:], w.router_weights[-1:]) for w in work]
        cases.append((layout, hidden, work, [(work, 1), (work, 2), (alone, 2)]))
    calls = [Call(isa, layout, hidden, work, n) for layout, hidden, _, kinds in cases for work, n in kinds]
    isas, rows = run(command, calls, folder)
    assert isas == wanted
    last = torch.tensor(SIZES).cumsum(0) - 1
    for number, (layout, hidden, work, _) in enumerate(cases):
        got = rows[3 * number : 3 * number + 3]
        expected = TorchExperts(layout, torch.float32).rows(hidden.float(), work)
        error = (got[0] - expected).norm() / expected.norm()
        assert error <= TOLERANCE[hidden.dtype], (layout, hidden.dtype, error)
        assert torch.equal(got[0], got[1]) and torch.equal(got[0][last], got[2]), (layout, hidden.dtype)


@pytest.fixture(scope="module")
def arm_driver(tmp_path_factory) -> Path:
    """Compiled as `pip install` does on such a machine, for the CPU that the emulator has."""
    if not shutil.which(ARM_COMPILER):
        pytest.skip(f"{ARM_COMPILER} is not installed (Debian, Ubuntu: apt install g++-aarch64-linux-gnu)")
    folder = tmp_path_factory.mktemp("arm")
    library = build.compile_library(folder / "libkernels.so", [ARM_COMPILER], "aarch64")
    return compile_driver([ARM_COMPILER], [library, f"-Wl,-rpath,{folder}"], folder / "driver")


@pytest.mark.slow
def test_the_library_compiles_for_arm(arm_driver):
    header = arm_driver.read_bytes()[:20]
    assert header[:4] == b"\x7fELF" and header[18] == 183  # EM_AARCH64


@pytest.mark.slow
@pytest.mark.parametrize("isa", ["neon", "portable"])
def test_rows_on_arm_are_the_references(isa, arm_driver, tmp_path):
    if EMULATOR is None:
        pytest.skip("no qemu-aarch64 (Debian, Ubuntu: apt install qemu-user)")
    command = [EMULATOR, "-L", ARM_ROOT, arm_driver]
    assert_rows_are_the_references(isa, command, tmp_path, {"portable", "neon"})


@pytest.mark.slow
def test_any_compiler_makes_the_portable_kernels_without_flags(tmp_path):
    try:
        cxx = build.compiler()
    except build.CannotCompile as error:
        pytest.skip(str(error))
    sources = []
    for name, source, flags in build.UNITS:
        # Definitions name things; they choose no instructions.
        defined = ['-DMOESPAC_SOURCE_DIGEST="none"', *(flag for flag in flags if flag.startswith("-D"))]
        sources.append((build.HERE / source, defined, tmp_path / f"{name}.o"))
    for source, defined, target in sources:
        build._run([*cxx, "-std=c++17", *defined, "-c", str(source), "-o", str(target)])
    driver = compile_driver(cxx, [target for *_, target in sources], tmp_path / "driver")
    assert_rows_are_the_references("portable", [driver], tmp_path, {"portable"})
