"""Which services run on this machine: one small file each, so that `status` and `stop` find them."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil

from ..errors import UserError


class NameTaken(UserError):
    """Another service of that name runs on this machine."""


@dataclass(frozen=True)
class RunRecord:
    """One `serve`, from its start on."""

    name: str
    """Of the deployment."""
    server: str
    """host:port of the gateway; empty while it starts."""
    pid: int
    """Of the launcher; of detached services the launcher has ended."""
    created: float
    """The process's creation time, seconds since the epoch: a pid alone may be somebody else's by now."""
    ray_address: str | None
    """The joined cluster; None: a private one."""
    namespace: str
    detached: bool
    drain_s: float
    """Seconds that its requests get to finish when it is stopped."""

    @property
    def alive(self) -> bool:
        """The launcher still runs; a detached service counts as running until it is stopped."""
        return (self.detached and bool(self.server)) or launcher(self) is not None


def launcher(record: RunRecord) -> psutil.Process | None:
    """The launcher's process, if it is still that one."""
    try:
        process = psutil.Process(record.pid)
        return process if abs(process.create_time() - record.created) < 1.0 else None
    except psutil.NoSuchProcess:
        return None


def state_dir() -> Path:
    """$XDG_STATE_HOME/moespac/run, by default ~/.local/state/moespac/run."""
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "moespac" / "run"


def claim(name: str, ray_address: str | None, namespace: str, detached: bool, drain_s: float) -> RunRecord:
    """Takes the name for this process, atomically. Raises NameTaken while a service of that name runs."""
    running = {record.name: record for record in records()}
    me = psutil.Process()
    record = RunRecord(name, "", me.pid, me.create_time(), ray_address, namespace, detached, drain_s)
    path = _path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = _written(record)
    try:
        # A link, unlike a rename, refuses a name that is taken; and nobody ever reads half a record.
        os.link(scratch, path)
    except FileExistsError as error:
        where = running[name].server if name in running else ""
        state = f"served already at {where}" if where else "being started already"
        raise NameTaken(
            f"deployment {name!r} is {state}: stop it with `moespac stop {name}`, or give this one another `name`"
        ) from error
    finally:
        scratch.unlink()
    return record


def announce(record: RunRecord, server: str) -> RunRecord:
    """The service is up: notes where. Atomic."""
    record = replace(record, server=server)
    _written(record).replace(_path(record.name))
    return record


def release(record: RunRecord) -> None:
    """Gives the name back. To be called by whoever claimed it, or for a service that has ended."""
    _path(record.name).unlink(missing_ok=True)


def records() -> list[RunRecord]:
    """Of services that run or start. Those of launchers that were killed are cleared away."""
    found = []
    for path in sorted(state_dir().glob("*.json")):
        try:
            record = RunRecord(**json.loads(path.read_text()))
        except (json.JSONDecodeError, TypeError):
            path.unlink(missing_ok=True)
            continue
        except FileNotFoundError:
            continue  # its service has just ended
        if record.alive:
            found.append(record)
        else:
            path.unlink(missing_ok=True)
    return found


def _written(record: RunRecord) -> Path:
    """The record in a file of its own, to be put in place as a whole."""
    scratch = _path(record.name).with_suffix(f".{os.getpid()}.tmp")
    scratch.write_text(json.dumps(asdict(record), indent=2))
    return scratch


def _path(name: str) -> Path:
    return state_dir() / f"{name}.json"
