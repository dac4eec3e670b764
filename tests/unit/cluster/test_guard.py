"""The guard: what a killed launcher's cluster leaves behind is ended and removed, and nothing else is."""

import subprocess
import sys
import time
from pathlib import Path

import psutil

LAUNCHER = """
import os, subprocess, sys, time
from pathlib import Path
from moespac.cluster.guard import Guard
folder = Path(sys.argv[1])
guard = Guard(os.getpid(), folder)
# One process of the cluster, whose arguments name the session, with a child of its own; and one that has nothing to do with it.
body = "import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(120)']); print(p.pid, flush=True); time.sleep(120)"
cluster = subprocess.Popen([sys.executable, "-c", body, f"--session={folder}"], stdout=subprocess.PIPE, text=True)
other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"])
print(guard._process.pid, cluster.pid, cluster.stdout.readline().strip(), other.pid, flush=True)
if sys.argv[2] == "dismiss":
    time.sleep(2.5)
    cluster.kill(); cluster.wait()
    guard.dismiss()
    print("dismissed", flush=True)
time.sleep(120)
"""  # noqa: E501


def _started(folder: Path, mode: str) -> tuple[subprocess.Popen, list[psutil.Process]]:
    folder.mkdir()
    (folder / "log").write_text("x")
    process = subprocess.Popen([sys.executable, "-c", LAUNCHER, folder, mode], stdout=subprocess.PIPE, text=True)
    return process, [psutil.Process(int(pid)) for pid in process.stdout.readline().split()]


def test_a_killed_launcher(tmp_path):
    launcher, (guard, cluster, grandchild, other) = _started(tmp_path / "session", "die")
    try:
        time.sleep(2.5)  # the guard takes notes once a second
        launcher.kill()
        launcher.wait()
        _, alive = psutil.wait_procs([guard, cluster, grandchild], timeout=30)
        assert not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]
        assert not (tmp_path / "session").exists()
        assert other.is_running() and other.status() != psutil.STATUS_ZOMBIE
    finally:
        other.kill()


def test_a_launcher_that_cleaned_up_itself(tmp_path):
    launcher, (guard, _, grandchild, other) = _started(tmp_path / "session", "dismiss")
    try:
        assert launcher.stdout.readline().strip() == "dismissed"
        assert not guard.is_running() or guard.status() == psutil.STATUS_ZOMBIE
        assert not grandchild.is_running() or grandchild.status() == psutil.STATUS_ZOMBIE, "an orphan of the cluster"
        assert other.is_running()
        assert not (tmp_path / "session").exists()
    finally:
        launcher.kill()
        launcher.wait()
        other.kill()
