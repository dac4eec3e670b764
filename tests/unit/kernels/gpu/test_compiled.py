"""The Triton kernels compile for GPUs of today, within their limits; and nothing here needs Triton to be imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from moespac.kernels.gpu.experts import supports
from moespac.kernels.layout import ExpertLayout

SCRIPT = Path(__file__).with_name("compiled.py")
SHARED_MEMORY = 99 * 1024
"""Bytes a program may have on the consumer GPUs of 2020 and later; larger ones have more."""


def python(*arguments: str, **environment: str) -> str:
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**inherited, "OMP_NUM_THREADS": "1", **environment},
        cwd=SCRIPT.parents[4],
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.mark.slow
def test_kernels_compile_for_gpus_since_ampere(tmp_path):
    pytest.importorskip("triton", reason="Triton is not installed: `pip install -e .[dev]` on Linux")
    lines = python(str(SCRIPT), TRITON_CACHE_DIR=str(tmp_path)).splitlines()
    facts = [json.loads(line) for line in lines]
    assert len(facts) == 36
    for one in facts:
        assert one["shared_bytes"] <= SHARED_MEMORY, one
        assert one["spilled_bytes"] == 0, one
        # float32 must be float32, the others must use the matrix units.
        assert not one["tf32"] and (one["matrix_instructions"] > 0) == ("torch.float32" not in one["kernel"]), one
        assert one["wide_copies"] > 0, one


def test_importing_the_package_imports_no_triton():
    python("-c", "import sys, moespac.kernels.gpu.experts; assert 'triton' not in sys.modules")


def test_without_triton_there_is_a_reason():
    reason = python(
        "-c",
        "import sys; sys.modules['triton'] = None\n"
        "import torch\n"
        "from moespac.kernels.gpu.experts import supports\n"
        "from moespac.kernels.layout import ExpertLayout\n"
        "print(supports(ExpertLayout(64, 64, 'bfloat16', 'silu'), torch.bfloat16))",
    )
    assert reason.startswith("Triton cannot be imported") and "CUDA builds" in reason


@pytest.mark.parametrize(
    ("options", "dtype", "reason"),
    [
        ({"activation": "mish"}, torch.float32, "activation 'mish'"),
        ({"activation": "silu", "norm_eps": 1e-6}, torch.float32, "a norm after each expert"),
        ({"activation": "silu"}, torch.float64, "computing in torch.float64"),
    ],
)
def test_what_is_not_supported_is_said(options, dtype, reason):
    assert supports(ExpertLayout(64, 64, "bfloat16", **options), dtype).startswith(reason)


def test_without_a_gpu_the_arena_is_refused():
    pytest.importorskip("triton", reason="Triton is not installed: `pip install -e .[dev]` on Linux")
    python(
        "-c",
        "import torch\n"
        "from moespac.kernels.gpu.experts import TritonExperts\n"
        "from moespac.kernels.layout import ExpertLayout\n"
        "try: TritonExperts(ExpertLayout(64, 64, 'bfloat16', 'silu'), torch.float32, torch.zeros(1, 2**16).byte())\n"
        "except ValueError as error: assert 'need a CUDA device' in str(error), error\n"
        "else: raise SystemExit('accepted')",
    )
