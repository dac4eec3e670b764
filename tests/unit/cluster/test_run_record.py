"""Names of services on this machine: taken once, given back, not held by the dead."""

import json
import os
import subprocess
import sys

import pytest

from moespac.cluster import run_record
from moespac.cluster.stopping import StopFailed, stop_recorded


@pytest.fixture(autouse=True)
def _state(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))


def claim(name: str, **changes) -> run_record.RunRecord:
    settings = {"ray_address": None, "namespace": f"moespac-{name}", "detached": False, "drain_s": 5.0}
    return run_record.claim(name, **(settings | changes))


def test_a_name_is_taken_once_and_given_back():
    first = claim("a")
    with pytest.raises(run_record.NameTaken, match=r"being started already.*moespac stop a"):
        claim("a")
    run_record.announce(first, "127.0.0.1:1")
    with pytest.raises(run_record.NameTaken, match=r"served already at 127.0.0.1:1"):
        claim("a")
    claim("b")
    assert [record.name for record in run_record.records()] == ["a", "b"]
    run_record.release(first)
    claim("a")


def _rewrite(record: run_record.RunRecord, **values) -> None:
    path = run_record.state_dir() / f"{record.name}.json"
    path.write_text(json.dumps({**vars(record), **values}))


def test_a_dead_launcher_holds_no_name():
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    _rewrite(claim("a"), pid=dead.pid)
    assert run_record.records() == []
    claim("a")


def test_a_pid_that_is_somebody_elses_by_now_is_not_the_launcher():
    _rewrite(claim("a"), created=1.0)
    assert run_record.records() == []


def test_damaged_records_are_cleared_away():
    claim("a")
    path = run_record.state_dir() / "a.json"
    path.write_text("{")
    assert run_record.records() == [] and not path.exists()


def test_detached_services_outlive_their_launcher_but_not_before_they_serve():
    record = claim("a", detached=True, ray_address="127.0.0.1:1")
    _rewrite(record, created=1.0)
    assert run_record.records() == [], "its launcher died while starting"
    record = claim("a", detached=True, ray_address="127.0.0.1:1")
    _rewrite(record, created=1.0, server="127.0.0.1:2")
    (found,) = run_record.records()
    with pytest.raises(StopFailed, match=r"cluster.*is gone"):
        stop_recorded(found)
    assert run_record.records() == [], "what cannot be stopped any more does not block its name"


def test_stopping_ends_the_launcher_and_says_when_it_does_not():
    program = "import time, sys; print('up', flush=True); time.sleep(60)"
    polite = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    stubborn = subprocess.Popen(
        [sys.executable, "-c", "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + program],
        stdout=subprocess.PIPE,
    )
    try:
        for process, name in ((polite, "polite"), (stubborn, "stubborn")):
            process.stdout.readline()
            created = run_record.psutil.Process(process.pid).create_time()
            _rewrite(claim(name), pid=process.pid, created=created, server="127.0.0.1:1")
        records = {record.name: record for record in run_record.records()}
        stop_recorded(records["polite"], 10)
        assert polite.wait(5) != 0
        with pytest.raises(StopFailed, match=r"stubborn.*0 s"):
            stop_recorded(records["stubborn"], 0.3)
    finally:
        stubborn.kill()
        stubborn.wait()


def test_only_the_name_of_the_file_matters_not_other_files(tmp_path):
    claim("a")
    (run_record.state_dir() / "notes.txt").write_text("x")
    assert len(run_record.records()) == 1
    assert os.listdir(run_record.state_dir())
