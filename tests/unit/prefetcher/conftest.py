"""A small real checkpoint and its stores: made once, copied by those who damage them."""

import shutil

import pytest
from feeding import Rig
from tiny_models import make_qwen3_moe

from moespac.actors.prefetcher.convert import convert
from moespac.actors.prefetcher.store import ExpertStore


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Qwen3-MoE: 3 layers of 8 experts of 3,072 bytes, top-2, bfloat16."""
    return make_qwen3_moe(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="session")
def stores(checkpoint, tmp_path_factory):
    """Gives the path of `checkpoint`'s store in a format (None: its own)."""
    made = {}

    def store_in(format=None, scale_dtype="float16"):
        if (format, scale_dtype) not in made:
            path = made[format, scale_dtype] = tmp_path_factory.mktemp("stores") / "tiny"
            convert(checkpoint, path, None, format, scale_dtype)
        return made[format, scale_dtype]

    return store_in


@pytest.fixture(scope="session")
def store_path(stores):
    return stores()


@pytest.fixture
def store(store_path):
    store = ExpertStore.open(store_path)
    yield store
    store.close()


@pytest.fixture
def damaged_store(store_path, tmp_path):
    """A copy to be damaged."""
    return shutil.copytree(store_path, tmp_path / "damaged")


@pytest.fixture
def payloads(store):
    """Each expert's bytes."""
    found = {}
    for key in store.shape.keys():  # noqa: SIM118
        buffer = bytearray(store.shape.expert_bytes)
        store.read_into(key, memoryview(buffer))
        found[key] = bytes(buffer)
    return found


@pytest.fixture
def rig(store):
    rigs = []

    def make(blocks=24):
        rigs.append(Rig(store, blocks))
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.close()
