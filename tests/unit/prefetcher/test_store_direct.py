"""Reading past the page cache where that is allowed, through it where it is not."""

import errno
import os
import shutil
import subprocess
import sys

import pytest

from moespac.actors.prefetcher.store import ExpertStore, aligned_buffer

# Opens each store, reads every expert, prints whether that was direct, and a checksum: `python -c … STORE…`.
READING = """
import sys, xxhash
from moespac.actors.prefetcher.store import ExpertStore, aligned_buffer
for path in sys.argv[1:]:
    store = ExpertStore.open(path)
    buffer, state = aligned_buffer(store.manifest.stride), xxhash.xxh3_64()
    for key in store.shape.keys():
        store.read_into(key, buffer)
        state.update(buffer[:store.shape.expert_bytes])
    print(store.direct, state.hexdigest())
"""
OWN_MOUNTS = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]


def allows_direct(folder):
    try:
        os.close(os.open(folder / "experts.safetensors", os.O_RDONLY | os.O_DIRECT))
    except OSError:
        return False
    return True


def test_aligned_reads_leave_the_page_cache_alone(store_path, tmp_path):
    if not allows_direct(store_path):
        pytest.skip("this file system refuses O_DIRECT")
    copy = shutil.copytree(store_path, tmp_path / "store")
    file = copy / "experts.safetensors"
    fd = os.open(file, os.O_RDONLY)
    os.fsync(fd)
    store = ExpertStore.open(copy)
    assert store.direct
    aligned, odd = aligned_buffer(store.manifest.stride), memoryview(bytearray(store.shape.expert_bytes))
    for key in store.shape.keys():  # noqa: SIM118
        store.read_into(key, aligned)
        store.read_into(key, odd)
        assert aligned[: store.shape.expert_bytes] == odd
    store.close()
    os.close(fd)


def test_a_file_system_that_refuses_o_direct_is_read_all_the_same(store_path, tmp_path):
    """ramfs knows no O_DIRECT: opening fails with EINVAL."""
    if shutil.which("unshare") is None or subprocess.run([*OWN_MOUNTS, "true"], capture_output=True).returncode:
        pytest.skip("this machine allows no mounts of one's own")
    folder = tmp_path / "ram"
    folder.mkdir()
    script = f"""set -e
        mount -t ramfs none {folder}
        cp -r {store_path} {folder}/store
        {sys.executable} -c '{READING}' {folder}/store {store_path}"""
    result = subprocess.run([*OWN_MOUNTS, script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    (on_ramfs, checksum), (here, expected) = (line.split() for line in result.stdout.splitlines())
    assert on_ramfs == "False" and here == str(allows_direct(store_path))
    assert checksum == expected


def test_a_file_system_that_opens_but_does_not_read_direct(store, payloads, monkeypatch):
    """Such as one on a disk with blocks larger than pages: the read fails with EINVAL, and is repeated without."""
    if not store.direct:
        pytest.skip("this file system refuses O_DIRECT")
    direct, preadv = store._direct, os.preadv
    refused = []

    def read(fd, buffers, offset):
        if fd == direct:
            refused.append(offset)
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return preadv(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", read)
    buffer = aligned_buffer(store.manifest.stride)
    for key, payload in payloads.items():
        store.read_into(key, buffer)
        assert buffer[: len(payload)] == payload
    assert len(refused) == 1 and not store.direct
