"""`moespac profile` on the bundled models, and who knows of it afterwards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from services import QUICKSTART

from moespac.actors.cost_file import CostFile
from moespac.actors.policy.cost import RING

MOESPAC = Path(sys.executable).with_name("moespac")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_profile(tmp_path):
    environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path / "state"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    environment["COLUMNS"] = "200"

    def run(*arguments: str | Path) -> subprocess.CompletedProcess:
        return subprocess.run([MOESPAC, *arguments], capture_output=True, text=True, env=environment, timeout=400)

    assert "none" in next(line for line in run("doctor").stdout.splitlines() if "measured costs" in line)
    made = run("profile", QUICKSTART, "--json")
    assert made.returncode == 0, made.stderr
    (line,) = made.stdout.splitlines()
    said = json.loads(line)
    rows = {row["actor"]: row for row in said["actors"]}
    assert rows.keys() == {"gpu-0", "cpu-0", "link", "disk"} and said["expert_bytes"] == 98_304
    for row in rows.values():
        assert min(row["call_s"], row["expert_s"], row["pair_s"]) >= 0 and 0 <= row["error"] < 2
        assert 0 < row["call_s"] + row["expert_s"] + row["pair_s"] < 1
    # The emulated link's own figures: 20 µs and 4 GB/s, and what sleeping and copying add.
    assert 98_304 / 4e9 + 20e-6 <= rows["link"]["call_s"] + rows["link"]["expert_s"] < 5e-3
    assert rows["gpu-0"]["samples"] == rows["cpu-0"]["samples"] == RING
    assert all(word in made.stderr for word in ("gpu-0", "a call", "GB/s", said["path"]))
    path = Path(said["path"])
    assert path.is_relative_to(tmp_path / "cache") and len(list(path.parent.glob("*.npz"))) == 0
    kept = CostFile(path.with_name(path.name.removesuffix(".costs.json"))).read()
    assert kept.actors.keys() == {"gpu-0", "cpu-0", "link"}
    for command in (("doctor",), ("check", QUICKSTART)):
        about = next(line for line in run(*command).stdout.splitlines() if "measured costs" in line)
        assert f"{kept.saved:%Y-%m-%d}" in about and "cpu-0, gpu-0, link" in about
