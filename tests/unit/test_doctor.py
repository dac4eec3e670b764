"""`moespac doctor`: facts about this machine, measured and not made up, and limits of containers respected."""

import contextlib
import io
import json
import os

import pytest

from moespac.actors.hardware import cpu_model
from moespac.cluster import machine, measure
from moespac.cluster.doctor import check_versions, run_doctor, split_threads


@pytest.fixture(scope="module")
def diagnosis(tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            status = run_doctor(json=True)
    assert list(cache.iterdir()) == []
    return status, json.loads(out.getvalue())


def test_it_prints_one_json_object_and_finds_this_environment_fit(diagnosis):
    status, said = diagnosis
    assert (status, said["problems"]) == (0, [])
    assert said["cpu"]["usable_cores"] == machine.usable_cores()
    assert said["cpu"]["model"] and said["cpu"]["isa"]
    assert 0 < said["memory"]["available"] <= said["memory"]["total"]
    assert said["shared_memory"]["memfd"] is True


def test_it_measures(diagnosis):
    said = diagnosis[1]
    assert 1e8 < said["memory"]["read_bytes_per_s"] < 1e13
    assert said["disk"]["bytes_read"] > 0 and said["disk"]["read_bytes_per_s"] > 1e5


def test_it_says_what_will_be_used_and_why(diagnosis):
    uses = {use["what"]: use for use in diagnosis[1]["uses"]}
    assert uses.keys() >= {"compute device", "CPU kernels", "threads", "link"}
    assert all(use["value"] and use["why"] for use in uses.values())


def test_it_names_what_matters_with_the_tested_range(diagnosis):
    versions = {v["name"]: v for v in diagnosis[1]["versions"]}
    assert versions.keys() >= {"torch", "ray", "transformers", "ortools", "protobuf", "grpcio"}
    assert all(v["tested"] and v["ok"] for v in versions.values())


def test_the_table_tells_the_same(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    assert run_doctor() == 0
    out = capsys.readouterr().out
    assert cpu_model() in out and "will be used" in out and "ortools" in out


def test_versions_outside_the_tested_range_are_found():
    found = check_versions(["ray<2", "torch>=2", "protobuf>=6; extra == 'x'", "unrelated>=1"])
    assert [(v.name, v.ok) for v in found] == [("ray", False), ("torch", True)]


@pytest.mark.parametrize(
    ("cores", "cuda", "split"), [(1, False, (1, 1)), (2, False, (1, 1)), (8, False, (4, 4)), (16, True, (2, 14))]
)
def test_threads_are_shared_out(cores, cuda, split):
    assert split_threads(cores, cuda) == split


def test_the_tightest_quota_of_nested_groups_counts(tmp_path):
    (tmp_path / "membership").write_text("0::/a/b\n")
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "cpu.max").write_text("150000 100000\n")
    (tmp_path / "a" / "b" / "cpu.max").write_text("max 100000\n")
    assert machine.cpu_quota(tmp_path, tmp_path / "membership") == 1.5


def test_quotas_of_the_older_interface_count(tmp_path):
    (tmp_path / "membership").write_text("4:memory:/x\n1:cpu,cpuacct:/x\n")
    group = tmp_path / "cpu" / "x"
    group.mkdir(parents=True)
    (group / "cpu.cfs_quota_us").write_text("300000\n")
    (group / "cpu.cfs_period_us").write_text("100000\n")
    assert machine.cpu_quota(tmp_path, tmp_path / "membership") == 3.0
    (group / "cpu.cfs_quota_us").write_text("-1\n")
    assert machine.cpu_quota(tmp_path, tmp_path / "membership") is None


@pytest.mark.parametrize(
    ("line", "group", "limit", "used"),
    [
        ("0::/x", "x", "memory.max", "memory.current"),
        ("4:memory:/x", "memory/x", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ],
)
def test_memory_limits_of_containers_count(tmp_path, line, group, limit, used):
    (tmp_path / "membership").write_text(line + "\n")
    folder = tmp_path / group
    folder.mkdir(parents=True)
    (folder / limit).write_text("1000\n")
    (folder / used).write_text("300\n")
    assert machine.memory_limits(tmp_path, tmp_path / "membership") == [1000]
    assert machine.memory_limits(tmp_path, tmp_path / "membership", less_used=True) == [700]


def test_a_folder_that_cannot_be_written_is_not_measured(tmp_path):
    speed = measure.disk_read_speed(tmp_path / "absent")
    assert speed.read_bytes_per_s is None and "not measured" in speed.note


def test_the_disk_is_read_whole(tmp_path):
    speed = measure.disk_read_speed(tmp_path, size=16 << 20)
    assert speed.bytes_read == 16 << 20 and speed.read_bytes_per_s > 0
    assert os.listdir(tmp_path) == []
