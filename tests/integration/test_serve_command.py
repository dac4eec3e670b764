"""`moespac serve` as a user runs it: started, used, ended in every way, with nothing left behind."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from scraping import scrape
from services import PROMPTS, QUICKSTART, process_tree

from moespac import Client

MOESPAC = Path(sys.executable).with_name("moespac")
START_S = 240


class Serving:
    """One `moespac serve` process."""

    def __init__(self, folder: Path, config: Path, *options: str, before: str = ""):
        """`before`: a shell command run in the process first."""
        self.environment = {
            **os.environ,
            "XDG_STATE_HOME": str(folder / "state"),
            "XDG_CACHE_HOME": str(folder / "cache"),
            "TMPDIR": str(folder / "tmp"),
        }
        (folder / "tmp").mkdir(exist_ok=True)
        self.temp = folder / "tmp"
        self.log = folder / "serve.log"
        with self.log.open("w") as output:
            self.process = subprocess.Popen(
                ["sh", "-c", f'{before}\nexec "$@"', "sh", MOESPAC, "serve", config, *options],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self.environment,
                start_new_session=True,
            )

    def address(self) -> str:
        """Waits until it serves."""
        give_up = time.monotonic() + START_S
        while time.monotonic() < give_up:
            found = re.search(r"serving \S+ at (\S+)", self.log.read_text())
            if found:
                return found[1]
            if self.process.poll() is not None:
                break
            time.sleep(0.2)
        pytest.fail(f"did not come up:\n{self.log.read_text()[-4000:]}")

    def run(self, *arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run([MOESPAC, *arguments], capture_output=True, text=True, env=self.environment, timeout=120)


def deployment(folder: Path, name: str, **changes: str) -> Path:
    """The quickstart's file with absolute model paths and some lines changed."""
    text = QUICKSTART.read_text()
    values = {
        "name: quickstart": f"name: {name}",
        "target: target": f"target: {QUICKSTART.parent / 'target'}",
        "draft: draft": f"draft: {QUICKSTART.parent / 'draft'}",
        "port: 50051": "port: 0",
        **changes,
    }
    for old, new in values.items():
        assert old in text, old
        text = text.replace(old, new)
    path = folder / "deployment.yaml"
    path.write_text(text)
    return path


def all_gone(processes: list[psutil.Process], within_s: float) -> list[psutil.Process]:
    """Those still there after the time."""
    _, alive = psutil.wait_procs(processes, timeout=within_s)
    return [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]


@pytest.fixture
def folder() -> Iterator[Path]:
    # Ray's socket paths must stay short: pytest's own folders have long names.
    with tempfile.TemporaryDirectory(prefix="m", dir="/tmp") as path:
        yield Path(path)


def test_generate_status_stop(folder):
    with_metrics = {"drain_timeout: 30s": "metrics_port: 0\n  drain_timeout: 30s"}
    serving = Serving(folder, deployment(folder, "cli-stop", **with_metrics))
    server = serving.address()
    shared_before = set(os.listdir("/dev/shm"))
    listening = {
        socket_.laddr.ip
        for process in process_tree(serving.process.pid)
        for socket_ in process.net_connections("tcp")
        if socket_.status == psutil.CONN_LISTEN
    }
    assert {ip.removeprefix("::ffff:") for ip in listening} == {"127.0.0.1"}, "nothing is open to the network"
    trace = folder / "trace.json"
    made = serving.run("generate", "def add(a, b):", "--server", server, "--max-tokens", "16", "--trace", str(trace))
    assert made.returncode == 0 and made.stdout.strip(), made.stderr
    assert "acceptance rate" in made.stderr and trace.stat().st_size > 1000
    status = serving.run("status", "--server", server)
    assert status.returncode == 0 and "gpu-0" in status.stdout and "steps by draft" in status.stdout
    metrics = scrape(re.search(r"metrics at (http://127\.0\.0\.1:\d+/metrics)", serving.log.read_text())[1])
    assert metrics["moespac_tokens_total"] == 16
    second = Serving(folder, folder / "deployment.yaml")
    assert second.process.wait(START_S) == 1
    assert "moespac stop cli-stop" in second.log.read_text(), "a second one of the same name is refused with a remedy"
    processes = process_tree(serving.process.pid)
    with Client(server) as client:
        in_flight = client.generate(PROMPTS[0], max_tokens=300, ignore_eos=True)
        stream = iter(in_flight)
        next(stream)
        stopped = serving.run("stop", "cli-stop")
        assert stopped.returncode == 0, stopped.stderr
        assert sum(1 for _ in stream) and in_flight.statistics.tokens == 300, "running requests are finished first"
    assert serving.process.wait(30) == 0, serving.log.read_text()[-2000:]
    assert not all_gone(processes, 10)
    assert not list(serving.temp.glob("moespac-ray-*"))
    assert set(os.listdir("/dev/shm")) <= shared_before
    assert serving.run("stop").returncode == 1


def test_a_killed_launcher_leaves_nothing_running(folder):
    shared_before = set(os.listdir("/dev/shm"))
    serving = Serving(folder, deployment(folder, "cli-crash"))
    serving.address()
    processes = process_tree(serving.process.pid)
    assert len(processes) > 6
    os.kill(serving.process.pid, signal.SIGKILL)
    serving.process.wait(10)
    assert not all_gone(processes, 60), "Ray's processes and the actors end with their launcher"
    assert set(os.listdir("/dev/shm")) <= shared_before
    assert not list(serving.temp.glob("moespac-ray-*"))
    assert serving.run("stop", "cli-crash").returncode == 1, "its record does not pass for a running service"


@pytest.mark.slow
@pytest.mark.parametrize(
    "number, inherited",
    # Shells start commands in the background of a script with SIGINT ignored.
    [(signal.SIGINT, "trap - INT"), (signal.SIGINT, "trap '' INT"), (signal.SIGTERM, "trap - TERM")],
)
def test_signals_while_starting_leave_nothing(folder, number, inherited):
    serving = Serving(folder, deployment(folder, "cli-early"), before=inherited)
    give_up = time.monotonic() + 60
    while len(process_tree(serving.process.pid)) < 6:
        assert time.monotonic() < give_up and serving.process.poll() is None
        time.sleep(0.1)
    processes = process_tree(serving.process.pid)
    os.kill(serving.process.pid, number)
    assert serving.process.wait(60) != 0
    assert not all_gone(processes, 10)
    assert not list(serving.temp.glob("moespac-ray-*"))


@pytest.mark.slow
def test_port_in_use(folder):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        serving = Serving(folder, deployment(folder, "cli-port"), "--port", str(port))
        assert serving.process.wait(START_S) == 1
    assert f"port {port}" in serving.log.read_text()
    assert "Traceback" not in serving.log.read_text()


def test_missing_model_directory(folder):
    path = deployment(folder, "cli-missing")
    path.write_text(path.read_text().replace("quickstart/target", "quickstart/no-such-model"))
    made = subprocess.run([MOESPAC, "serve", path], capture_output=True, text=True, timeout=120)
    assert made.returncode == 1
    assert "no-such-model" in made.stderr and "Traceback" not in made.stderr
