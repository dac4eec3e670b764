"""The shared library: what is said when it cannot be made or used, and torch in its place."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from moespac.kernels.choose import choose_kernel
from moespac.kernels.cpu import build, library
from moespac.kernels.layout import ExpertLayout
from moespac.kernels.reference import TorchExperts

LAYOUT = ExpertLayout(32, 16, "bfloat16", "silu")
# Compiled in a moment, and loadable; whose digest and version it has is for the definitions to say.
SMALL = """
extern "C" const char* moespac_source_digest() { return DIGEST; }
extern "C" int moespac_abi() { return VERSION; }
"""


@pytest.fixture
def at(tmp_path, monkeypatch):
    """The path where the library is looked for, where nothing is yet."""
    monkeypatch.setattr(library, "HERE", tmp_path)
    library.load.cache_clear()
    yield tmp_path / library.LIBRARY
    monkeypatch.undo()
    library.load.cache_clear()


def compile_small(target: Path, digest: str, version: int) -> None:
    try:
        cxx = build.compiler()
    except build.CannotCompile as error:
        pytest.skip(str(error))
    source = target.with_suffix(".cpp")
    source.write_text(SMALL)
    flags = ["-shared", "-fPIC", f'-DDIGEST="{digest}"', f"-DVERSION={version}"]
    subprocess.run([*cxx, *flags, str(source), "-o", str(target)], check=True)


def assert_torch_stands_in(reason: str) -> None:
    choice = choose_kernel(LAYOUT, torch.bfloat16, torch.device("cpu"))
    assert isinstance(choice.kernel, TorchExperts) and reason in choice.reason


def test_without_a_compiler_building_says_what_to_install(tmp_path):
    bare = {"PATH": str(tmp_path), "HOME": os.environ.get("HOME", "/")}
    made = subprocess.run([sys.executable, build.__file__], env=bare, capture_output=True, text=True)
    assert made.returncode == 1 and "Traceback" not in made.stderr
    assert made.stderr.startswith("error: no C++ compiler found (looked for $CXX, c++, g++, clang++): install one")


def test_a_compiler_that_cannot_be_run_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", str(tmp_path / "no-such-compiler"))
    with pytest.raises(build.CannotCompile, match=r"no-such-compiler cannot be run"):
        build.compile_library(tmp_path / "out" / library.LIBRARY)
    assert not list((tmp_path / "out").iterdir())


def test_a_failing_compiler_leaves_the_library_that_was_there(tmp_path):
    target = tmp_path / library.LIBRARY
    target.write_bytes(b"as before")
    with pytest.raises(build.CannotCompile, match=r"failed with status 1"):
        build.compile_library(target, [shutil.which("false")])
    assert target.read_bytes() == b"as before" and list(tmp_path.iterdir()) == [target]


def test_a_missing_library_is_told_with_its_remedy_and_torch_computes(at):
    reason = library.unavailable()
    assert str(at) in reason and "is missing" in reason and library.REMEDY in reason
    assert_torch_stands_in("is missing")


def test_a_library_that_cannot_be_loaded_is_told_with_its_remedy(at):
    at.write_bytes(b"no machine code")
    assert "cannot be loaded" in library.unavailable() and library.REMEDY in library.unavailable()
    assert_torch_stands_in("cannot be loaded")


@pytest.mark.parametrize(
    ("digest", "version", "problem"),
    [
        ("of other sources", library.ABI_VERSION, "is older than its C++ sources"),
        (build.digest(), library.ABI_VERSION + 1, f"has ABI version {library.ABI_VERSION + 1}"),
    ],
    ids=["stale", "of another version"],
)
def test_a_library_of_other_sources_is_refused_with_the_remedy(digest, version, problem, at):
    compile_small(at, digest, version)
    with pytest.raises(library.LibraryError, match=re.escape(problem)) as caught:
        library.load()
    assert str(caught.value).endswith(library.REMEDY)
    assert_torch_stands_in(problem)


def test_the_digest_follows_the_content_and_names_of_the_sources(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "HERE", tmp_path)
    (tmp_path / "one.cpp").write_text("int one;")
    seen = [build.digest()]
    (tmp_path / "one.cpp").write_text("int two;")
    seen.append(build.digest())
    (tmp_path / "one.cpp").rename(tmp_path / "two.cpp")
    seen.append(build.digest())
    (tmp_path / "no-source.txt").write_text("text")
    assert len(set(seen)) == 3 and build.digest() == seen[-1]
