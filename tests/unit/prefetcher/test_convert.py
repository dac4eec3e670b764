import shutil
import signal
import subprocess
import sys
import threading

import pytest
from tiny_models import make_qwen3_moe

from moespac.actors.prefetcher.convert import convert, ensure_store, store_path_for
from moespac.actors.prefetcher.store import ExpertStore, StoreError

# Converts to every STORE at once, each conversion halting after its fifth expert: `python -c … CHECKPOINT STORE…`.
HALTING = """
import os, sys, threading
from moespac.actors.prefetcher.convert import convert

def progress(done, total):
    if done == 5 * total // 24:
        os.write(1, b"half-way\\n")  # whole, whatever the other thread writes
        threading.Event().wait()

for store in sys.argv[2:]:
    threading.Thread(target=convert, args=(sys.argv[1], store, progress)).start()
"""
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


def bytes_of(store):
    return {file.name: file.read_bytes() for file in store.iterdir()}


def test_progress_in_bytes(checkpoint, tmp_path):
    seen = []
    convert(checkpoint, tmp_path / "store", lambda done, total: seen.append((done, total)))
    assert seen[0] == (0, 24 * 3072) and seen[-1] == (24 * 3072, 24 * 3072)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_sharded_gives_the_same_experts(checkpoint, store, tmp_path):
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    convert(tmp_path / "sharded", tmp_path / "store")
    assert ExpertStore.open(tmp_path / "store").manifest.checksums == store.manifest.checksums


def test_killed_conversion_leaves_what_was_there_and_the_next_one_succeeds(checkpoint, store_path, tmp_path):
    new, old = tmp_path / "new", tmp_path / "old"
    convert(make_qwen3_moe(tmp_path / "checkpoint", seed=5), old)
    before = bytes_of(old)
    child = subprocess.Popen([sys.executable, "-c", HALTING, checkpoint, new, old], stdout=subprocess.PIPE, text=True)
    assert [child.stdout.readline() for _ in range(2)] == ["half-way\n"] * 2
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert not new.exists()
    assert bytes_of(old) == before
    for store in (new, old):
        assert ensure_store(checkpoint, store) == store
        assert bytes_of(store) == bytes_of(store_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "new", "old"]


def test_failed_conversion_leaves_nothing(checkpoint, tmp_path):
    """The source ends in the middle: an error, and no trace of the target."""
    copy = shutil.copytree(checkpoint, tmp_path / "checkpoint")
    target = tmp_path / "targets" / "store"

    def pull_the_plug(done, total):
        if done >= total // 2:
            raise InterruptedError("pulled")

    with pytest.raises(StoreError, match="pulled"):
        convert(copy, target, pull_the_plug)
    assert list(target.parent.iterdir()) == []


def test_two_at_once_convert_once(checkpoint, tmp_path):
    store, half_way, go_on = tmp_path / "store", threading.Event(), threading.Event()
    written = []

    def halt(done, total):
        half_way.set()
        assert go_on.wait(60)

    first = threading.Thread(target=ensure_store, args=(checkpoint, store, halt))
    second = threading.Thread(target=ensure_store, args=(checkpoint, store, lambda done, total: written.append(done)))
    first.start()
    assert half_way.wait(60)
    second.start()
    go_on.set()
    first.join()
    second.join()
    assert written == []
    ExpertStore.open(store).close()


def test_ensure_store_converts_only_when_needed(checkpoint, tmp_path):
    copy, store = shutil.copytree(checkpoint, tmp_path / "model"), tmp_path / "store"
    ensure_store(copy, store)
    made = (store / "manifest.json").stat().st_mtime_ns
    ensure_store(copy, store)
    assert (store / "manifest.json").stat().st_mtime_ns == made
    old = ExpertStore.open(store).fingerprint
    shutil.rmtree(copy)
    make_qwen3_moe(copy, seed=8)
    ensure_store(copy, store)
    assert ExpertStore.open(store).fingerprint != old
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "store"]


def test_default_place_is_the_cache(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = ensure_store(checkpoint, None)
    assert path == store_path_for(checkpoint, None)
    assert path.parent == tmp_path / "moespac" / "stores" and path.name.startswith("tiny-")
    ExpertStore.open(path).close()


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
