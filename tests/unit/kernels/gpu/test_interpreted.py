"""Runs interpreted.py, the checks of the Triton kernels, in a process in which Triton interprets."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed: `pip install -e .[dev]` on Linux")

CHECKS = Path(__file__).with_name("interpreted.py")


def run_checks(marker: str) -> None:
    # What lies between experts is NaN, of which numpy warns: nobody may read it, not even to throw it away.
    options = ["-q", "-p", "no:cacheprovider", "-W", "error::RuntimeWarning", "-m", marker]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(CHECKS)],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=CHECKS.parents[4],
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def test_kernels_interpreted():
    run_checks("not slow")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_everything_with_everything_interpreted():
    run_checks("slow")
