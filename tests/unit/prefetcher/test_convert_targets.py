"""Places that cannot take a store: one clear error, and nothing half-done."""

import shutil
import subprocess
import sys

import pytest

from moespac.actors.prefetcher.checkpoint import CheckpointError
from moespac.actors.prefetcher.convert import convert
from moespac.actors.prefetcher.store import StoreError

# Converts to every STORE in turn and prints the errors: `python -c … CHECKPOINT STORE…`.
REPORTING = """
import sys
from moespac.actors.prefetcher.convert import ensure_store
from moespac.actors.prefetcher.store import StoreError
for store in sys.argv[2:]:
    try:
        ensure_store(sys.argv[1], store)
    except StoreError as error:
        print(error)
"""


def contents(folder):
    return {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in folder.iterdir()}


def test_failed_conversion_leaves_nothing(checkpoint, tmp_path):
    target = tmp_path / "targets" / "store"

    def pull_the_plug(done, total):
        if done >= total // 2:
            raise InterruptedError("pulled")

    with pytest.raises(StoreError, match="pulled"):
        convert(checkpoint, target, pull_the_plug)
    assert list(target.parent.iterdir()) == []


def test_source_that_goes_away(checkpoint, tmp_path):
    copy, target = shutil.copytree(checkpoint, tmp_path / "checkpoint"), tmp_path / "targets" / "store"

    def take_away(done, total):
        (copy / "model.safetensors").unlink(missing_ok=True)

    with pytest.raises(CheckpointError, match="layer 0, expert 0: cannot be read"):
        convert(copy, target, take_away)
    assert list(target.parent.iterdir()) == []


def test_foreign_directory_is_not_touched(checkpoint, tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "diary.txt").write_text("dear diary")
    with pytest.raises(StoreError, match="exists and is no expert store; choose another path"):
        convert(checkpoint, tmp_path / "store")
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    assert (tmp_path / "store" / "diary.txt").read_text() == "dear diary"


def test_target_below_a_file(checkpoint, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        convert(checkpoint, tmp_path / "file" / "store")


def test_disk_full_and_read_only(checkpoint, tmp_path):
    """On file systems mounted for the purpose, in a mount namespace of their own."""
    full, fixed = tmp_path / "full", tmp_path / "fixed"
    full.mkdir()
    fixed.mkdir()
    before = contents(checkpoint)
    own = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if shutil.which("unshare") is None or subprocess.run([*own, "true"], capture_output=True).returncode:
        pytest.skip("this machine allows no mounts of one's own")
    script = f"""set -e
        mount -t tmpfs -o size=64k none {full}
        mount -t tmpfs -o ro none {fixed}
        {sys.executable} -c '{REPORTING}' {checkpoint} {full}/store {fixed}/store
        ls -A {full} {fixed}"""
    result = subprocess.run([*own, script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    on_full, on_fixed, *left = result.stdout.splitlines()
    assert on_full == f"{full}/store: the disk is full; free space or set `store` to another disk"
    assert on_fixed.startswith(f"{fixed}/store: cannot be written ([Errno 30]")
    assert left == [f"{fixed}:", "", f"{full}:"], "something half-done was left"
    assert contents(checkpoint) == before
