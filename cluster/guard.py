"""Watches over a launcher that starts a private Ray cluster, and cleans up after it if it is killed.

Ray ends most of its processes when their launcher dies, but its agents may stay. The guard is a process of its own: it
notes what the launcher has started, by id and creation time, and when the launcher is gone ends whatever of that is
still there. Run as `python -m moespac.cluster.guard LAUNCHER_PID SESSION_FOLDER`, with its standard input held open by
the launcher.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import subprocess
import sys
from pathlib import Path

import psutil

POLL_S = 1.0
RAYS_OWN_S = 10.0
"""Ray gets this long to end its processes by itself."""


class Guard:
    """Held by the launcher."""

    def __init__(self, launcher_pid: int, session_folder: Path):
        # A session of its own: Ctrl-C in the terminal is the launcher's business.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "moespac.cluster.guard", str(launcher_pid), str(session_folder)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )

    def dismiss(self) -> None:
        """The cluster has been shut down: waits until the guard has seen to it that nothing is left."""
        self._process.stdin.close()
        self._process.wait()


def _watch(launcher_pid: int, session_folder: Path) -> list[psutil.Process]:
    """Returns when standard input closes: what Ray had started. psutil compares creation times, not ids alone."""
    seen: set[psutil.Process] = set()
    while True:
        # When the launcher is gone its children are no longer known as such: notes are taken before.
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(launcher_pid).children():
                seen.update(_ray_tree(child, session_folder))
        seen = {process for process in seen if process.is_running()}
        readable, _, _ = select.select([sys.stdin], [], [], POLL_S)
        if readable:
            return list(seen)


def _ray_tree(child: psutil.Process, session_folder: Path) -> list[psutil.Process]:
    """`child` and all below it, if it is one of the cluster's own processes: their arguments name the session."""
    with contextlib.suppress(psutil.NoSuchProcess):
        if child.pid != os.getpid() and any(str(session_folder) in argument for argument in child.cmdline()):
            return [child, *child.children(recursive=True)]
    return []


def _end(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=RAYS_OWN_S)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=5.0)


def main() -> None:
    launcher_pid, session_folder = int(sys.argv[1]), Path(sys.argv[2])
    _end(_watch(launcher_pid, session_folder))
    shutil.rmtree(session_folder, ignore_errors=True)


if __name__ == "__main__":
    main()
