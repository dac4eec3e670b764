"""moespac works where it is installed, as a wheel and editable, and not because the checkout happens to be near.

Each kind is installed without its dependencies into a fresh environment that borrows them from this one.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from moespac.version import __version__

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("actors", "cluster", "configs", "kernels", "protos")
LOOK = """
import json, pathlib, sys
from importlib.resources import files
import moespac, moespac.version
from moespac.configs import load_deployment
configs = pathlib.Path(str(files("moespac.configs")))
quickstart = load_deployment(configs / "quickstart" / "deployment.yaml")
for module in ("actors.core", "cluster.cli", "kernels.layout", "protos.v1.generation_pb2"):
    __import__("moespac." + module)
print(json.dumps({
    "file": moespac.__file__,
    "version": moespac.__version__,
    "prefix": sys.prefix,
    "yaml": sorted(str(p.relative_to(configs)) for p in configs.rglob("*.yaml")),
    "models": [p.is_file() for m in (quickstart.model.target, quickstart.model.draft)
               for p in (m / "config.json", m / "model.safetensors", m / "tokenizer.json")],
}))
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A copy of what is tracked or could be: building writes into the tree it builds from."""
    target = tmp_path_factory.mktemp("source")
    for file in [ROOT / "pyproject.toml", ROOT / "README.md", ROOT / "LICENSE", *ROOT.glob("*.py")]:
        shutil.copy(file, target)
    for room in ROOMS:
        shutil.copytree(ROOT / room, target / room, ignore=shutil.ignore_patterns("__pycache__", "build"))
    return target


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    # The build backend of this environment: an isolated build would fetch its own from the network.
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", out, source)
    (file,) = out.glob("moespac-*.whl")
    return file


def environment(folder: Path) -> Path:
    """A fresh virtual environment that sees this one's packages, except moespac; returns its Python."""
    venv.create(folder, with_pip=False, symlinks=True)
    site = next(folder.glob("lib/python*/site-packages"))
    borrowed = site / "_borrowed"
    borrowed.mkdir()
    for entry in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if "moespac" not in entry.name:
            (borrowed / entry.name).symlink_to(entry)
    (site / "borrowed.pth").write_text(f"{borrowed}\n")
    return folder / "bin" / "python"


def run(*command, cwd: Path | None = None) -> str:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PIP_"))}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=clean, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def install(python: Path, *what) -> None:
    run(python, "-m", "pip", "install", "--no-deps", "--no-index", "--no-build-isolation", *what)


def look(python: Path, empty: Path) -> dict:
    assert not any(empty.iterdir())
    return json.loads(run(python, "-c", LOOK, cwd=empty).splitlines()[-1])


def check_installed(python: Path, empty: Path) -> dict:
    found = look(python, empty)
    assert found["version"] == __version__
    assert found["yaml"] == sorted(str(p.relative_to(ROOT / "configs")) for p in (ROOT / "configs").rglob("*.yaml"))
    assert found["models"] == [True] * 6
    assert __version__ in run(python.parent / "moespac", "--version", cwd=empty)
    return found


def test_a_wheel_works_from_an_empty_directory(wheel, tmp_path):
    python = environment(tmp_path / "venv")
    install(python, wheel)
    empty = tmp_path / "empty"
    empty.mkdir()
    found = check_installed(python, empty)
    assert Path(found["file"]).is_relative_to(tmp_path / "venv")


def test_an_editable_installation_is_the_checkout(source, tmp_path):
    python = environment(tmp_path / "venv")
    install(python, "-e", source)
    empty = tmp_path / "empty"
    empty.mkdir()
    found = check_installed(python, empty)
    assert Path(found["file"]) == source / "__init__.py"
    version = source / "version.py"
    text = version.read_text()
    version.write_text(text.replace(__version__, "0.0.7"))
    try:
        assert look(python, empty)["version"] == "0.0.7"
    finally:
        version.write_text(text)


def test_the_wheel_has_the_package_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in names}
    assert top == {"moespac", f"moespac-{__version__}.dist-info"}
    rooms = {name.split("/")[1] for name in names if name.startswith("moespac/") and name.count("/") > 1}
    assert rooms == set(ROOMS)
    assert not [name for name in names if "__pycache__" in name]
    assert "moespac/protos/v1/generation.proto" in names
