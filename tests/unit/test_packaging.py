"""What is installed is what is there: package list, bundled files, tested versions, generated stubs."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from moespac.protos import generate
from moespac.version import __version__

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
NOT_PACKAGES = {"tests", "build", "dist"}


def room_files(pattern: str) -> list[Path]:
    """Files of the package's folders, relative to the root; the root's own environment and tests are none of it."""
    rooms = [f for f in ROOT.iterdir() if f.is_dir() and f.name not in NOT_PACKAGES and not f.name.startswith(".")]
    return [file.relative_to(ROOT) for room in rooms for file in room.rglob(pattern)]


def test_the_package_list_is_what_the_folders_are():
    listed = PROJECT["tool"]["setuptools"]["packages"]
    folders = {".".join(("moespac", *file.parent.parts)) for file in room_files("__init__.py")}
    assert set(listed) == folders | {"moespac"}
    assert len(listed) == len(set(listed))


def test_every_python_file_belongs_to_a_package():
    listed = set(PROJECT["tool"]["setuptools"]["packages"])
    files = room_files("*.py")
    stray = [str(f) for f in files if ".".join(("moespac", *f.parent.parts)) not in listed]
    assert files and stray == []


def test_every_data_file_pattern_finds_something():
    for package, patterns in PROJECT["tool"]["setuptools"]["package-data"].items():
        folder = ROOT.joinpath(*package.split(".")[1:])
        for pattern in patterns:
            assert list(folder.glob(pattern)), f"{package}: {pattern} matches nothing"


def constraints() -> dict[str, Version]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    pins = dict(re.fullmatch(r"([a-z0-9-]+)==([\w.!]+)", line).groups() for line in lines)
    assert len(pins) == len(lines)
    return {name: Version(version) for name, version in pins.items()}


@pytest.mark.parametrize("extra", [None, "dev"])
def test_constraints_pin_every_dependency_inside_its_range(extra):
    project = PROJECT["project"]
    pins = constraints()
    for text in project["optional-dependencies"][extra] if extra else project["dependencies"]:
        requirement = Requirement(text)
        name = canonicalize_name(requirement.name)
        assert name in pins, f"{name} has no version in constraints.txt"
        assert pins[name] in requirement.specifier, f"{name} {pins[name]} is outside {requirement.specifier}"


def test_every_dependency_has_both_bounds():
    for text in PROJECT["project"]["dependencies"]:
        operators = {specifier.operator for specifier in Requirement(text).specifier}
        assert operators == {">=", "<"}, text


def test_the_changelog_tells_of_this_version():
    assert f"## {__version__}\n" in (ROOT / "CHANGELOG.md").read_text()


def test_the_committed_stubs_are_what_the_protos_generate(tmp_path):
    made = generate.generate(tmp_path)
    committed = ROOT / "protos" / "v1"
    assert {p.name for p in made} == {p.name for p in committed.glob("*_pb2*")}
    for file in made:
        assert file.read_bytes() == (committed / file.name).read_bytes(), f"{file.name} is stale: run its generator"
