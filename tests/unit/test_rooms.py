"""Who may know whom: dependencies point one way, and decisions stay pure."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import moespac

ROOT = Path(moespac.__file__).parent
MAY_IMPORT = {
    "kernels": set(),
    "protos": set(),
    "configs": set(),
    "actors": {"kernels", "protos", "configs"},
    "cluster": {"actors", "kernels", "protos", "configs"},
}
IMPURE = {"ray", "grpc", "threading", "asyncio", "time", "random", "socket", "torch"}


def imports(path: Path) -> set[str]:
    """Absolute dotted names of what a module imports, wherever in it."""
    package = ("moespac", *path.relative_to(ROOT).parent.parts)
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_rooms_know_only_those_below(room):
    files = list((ROOT / room).rglob("*.py"))
    assert files
    for path in files:
        rooms = {name.split(".")[1] for name in imports(path) if name.startswith("moespac.")} & set(MAY_IMPORT)
        assert rooms <= MAY_IMPORT[room] | {room}, path


def test_policies_are_pure():
    files = list((ROOT / "actors" / "policy").rglob("*.py"))
    assert files
    for path in files:
        used = imports(path)
        assert not {name.split(".")[0] for name in used} & IMPURE, path
        own = {name for name in used if name.startswith("moespac.")}
        assert all(name.startswith(("moespac.actors.policy", "moespac.actors.core")) for name in own), (path, own)


def test_only_what_sits_on_ray_knows_ray():
    allowed = {"actors/ray_context.py"}
    for path in (ROOT / "actors").rglob("*.py"):
        if "ray" in {name.split(".")[0] for name in imports(path)}:
            assert str(path.relative_to(ROOT)) in allowed, path
