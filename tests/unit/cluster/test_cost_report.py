"""What `moespac profile` says of fitted costs, and of reading from disk."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console
from tiny_device import make_store
from tiny_models import make_qwen3_moe

from moespac.actors.core import CostSample, ModelShape
from moespac.actors.policy.cost import LINK, CostModel
from moespac.cluster.cost_report import cost_row, cost_table
from moespac.cluster.profile import DISK, READS, disk_costs

SHAPE = ModelShape((0, 1), 8, 2, 64, 32, expert_bytes=4_000_000)


def test_rows_give_back_what_was_measured():
    model = CostModel(SHAPE.expert_bytes, "gpu-0")
    for at in range(60):
        experts, pairs = 1 + at % 7, (1 + at % 7) * (1 + at % 3)
        model.observe(CostSample("cpu-0", experts, pairs, 2e-4 + 4e-4 * experts + 5e-5 * pairs))
        model.observe(CostSample(LINK, 1, 0, 1e-3))
    worker, link = cost_row(model, "cpu-0", 60, SHAPE), cost_row(model, LINK, 60, SHAPE)
    assert (worker.call_s, worker.expert_s, worker.pair_s) == pytest.approx((2e-4, 4e-4, 5e-5), rel=0.1)
    assert worker.bytes_per_s == pytest.approx(10e9, rel=0.1) and worker.error < 0.2 and worker.samples == 60
    assert link.bytes_per_s == pytest.approx(4e9, rel=0.01), "of a transfer as a whole"
    out = io.StringIO()
    Console(file=out, width=120).print(cost_table([worker, replace(link, bytes_per_s=None)], SHAPE))
    assert "3.8 MiB" in out.getvalue() and "GB/s" in out.getvalue() and "–" in out.getvalue()


def test_reads_from_disk_are_measured(tmp_path):
    store = make_store(make_qwen3_moe(tmp_path / "target"), tmp_path / "store")
    (row,) = disk_costs(store, 4, SHAPE)
    assert (row.actor, row.samples, row.pair_s) == (DISK, READS, 0.0)
    assert 0 < row.call_s + row.expert_s < 1 and (row.bytes_per_s is None or row.bytes_per_s > 0)
