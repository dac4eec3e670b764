import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from tiny_models import make_qwen3_moe

from moespac.actors.core import ExpertKey
from moespac.actors.prefetcher.checkpoint import open_checkpoint
from moespac.actors.prefetcher.convert import convert
from moespac.actors.prefetcher.store import ExpertStore, StoreCorrupt, StoreError, aligned_buffer
from moespac.actors.prefetcher.store_format import PAGE

EXPERTS, MANIFEST = "experts.safetensors", "manifest.json"


def header_of(file):
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        return 8 + length, json.loads(stream.read(length))


@pytest.mark.parametrize("inner", [16, 64])  # 3,072 bytes an expert: padded; 12,288: three whole pages
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_round_trip_bit_for_bit(tmp_path, inner, dtype):
    checkpoint = make_qwen3_moe(tmp_path / "checkpoint", dtype=dtype, moe_intermediate_size=inner)
    convert(checkpoint, tmp_path / "store")
    source, store = open_checkpoint(checkpoint), ExpertStore.open(tmp_path / "store")
    assert (store.shape, store.layout) == (source.shape, source.layout)
    with safe_open(store.path / EXPERTS, framework="pt") as tensors:
        for key in source.shape.keys():  # noqa: SIM118
            gate, up, down = source.expert(key)
            name = f"layers.{key.layer}.experts.{key.expert}"
            assert torch.equal(tensors.get_tensor(f"{name}.gate_up"), torch.cat([gate, up]))
            assert torch.equal(tensors.get_tensor(f"{name}.down"), down)
            for buffer in (aligned_buffer(store.manifest.stride), memoryview(bytearray(store.shape.expert_bytes))):
                store.read_into(key, buffer)
                weights = store.layout.weights(np.frombuffer(buffer, np.uint8))
                assert torch.equal(weights.gate_up, torch.cat([gate, up]))
                assert torch.equal(weights.down, down)
    store.close()


def test_experts_are_contiguous_and_page_aligned(store):
    start, header = header_of(store.path / EXPERTS)
    assert start % PAGE == 0
    for key in store.shape.keys():  # noqa: SIM118
        name = f"layers.{key.layer}.experts.{key.expert}"
        first, middle = header[f"{name}.gate_up"]["data_offsets"]
        again, end = header[f"{name}.down"]["data_offsets"]
        assert (start + first) % PAGE == 0 and middle == again and end - first == store.shape.expert_bytes
    assert (store.path / EXPERTS).stat().st_size % PAGE == 0


def test_fingerprint_is_of_the_weights(store, store_path, checkpoint, tmp_path):
    moved = ExpertStore.open(shutil.copytree(store_path, tmp_path / "elsewhere"))
    renamed = shutil.copytree(checkpoint, tmp_path / "another-name")
    convert(renamed, tmp_path / "store")
    convert(make_qwen3_moe(tmp_path / "other", seed=9), tmp_path / "other-store")
    again, other = ExpertStore.open(tmp_path / "store"), ExpertStore.open(tmp_path / "other-store")
    assert moved.fingerprint == again.fingerprint == store.fingerprint != other.fingerprint


def test_counts_what_it_reads(store):
    store.read_into(ExpertKey(0, 0), memoryview(bytearray(store.shape.expert_bytes)))
    assert store.bytes_read == store.shape.expert_bytes


def test_wrong_use(store):
    with pytest.raises(KeyError):
        store.read_into(ExpertKey(0, 8), aligned_buffer(store.manifest.stride))
    with pytest.raises(ValueError):
        store.read_into(ExpertKey(0, 0), memoryview(bytearray(100)))


def flip(file, offset, bit):
    with file.open("r+b") as stream:
        stream.seek(offset)
        value = stream.read(1)[0]
        stream.seek(offset)
        stream.write(bytes([value ^ (1 << bit)]))


@pytest.mark.parametrize("key", [ExpertKey(0, 0), ExpertKey(1, 5), ExpertKey(2, 7)])
@pytest.mark.parametrize("at,bit", [(0, 0), (1_234, 7), (3_071, 3)])
def test_flipped_bit_in_an_expert_is_caught_and_named(damaged_store, key, at, bit):
    store = ExpertStore.open(damaged_store)
    index = store.shape.keys().index(key)
    flip(damaged_store / EXPERTS, store.manifest.data_offset + index * store.manifest.stride + at, bit)
    for buffer in (aligned_buffer(store.manifest.stride), memoryview(bytearray(store.shape.expert_bytes))):
        with pytest.raises(StoreCorrupt) as caught:
            store.read_into(key, buffer)
        assert caught.value.key == key and caught.value.file == damaged_store / EXPERTS
        assert f"layer {key.layer}, expert {key.expert}: checksum differs" in str(caught.value)
    others = [other for other in store.shape.keys() if other != key]  # noqa: SIM118
    for other in others:
        store.read_into(other, aligned_buffer(store.manifest.stride))


@pytest.mark.parametrize("offset", [0, 7, 8, 500, 4_000])
def test_flipped_bit_in_the_header(damaged_store, offset):
    flip(damaged_store / EXPERTS, offset, 2)
    with pytest.raises(StoreCorrupt, match="header checksum differs") as caught:
        ExpertStore.open(damaged_store)
    assert caught.value.file == damaged_store / EXPERTS


def test_every_flipped_bit_in_the_manifest_matters(damaged_store):
    text = (damaged_store / MANIFEST).read_bytes()
    step = 37  # coprime to 8: every bit position comes up
    for position in range(0, len(text) * 8, step):
        damaged = bytearray(text)
        damaged[position // 8] ^= 1 << position % 8
        try:
            same = json.loads(damaged) == json.loads(text)  # white space may change
        except ValueError:
            same = False
        (damaged_store / MANIFEST).write_bytes(damaged)
        if not same:
            with pytest.raises(StoreError):
                ExpertStore.open(damaged_store)


def test_truncated_store(damaged_store):
    size = (damaged_store / EXPERTS).stat().st_size
    with (damaged_store / EXPERTS).open("r+b") as stream:
        stream.truncate(size - PAGE)
    with pytest.raises(StoreCorrupt, match=f"{size - PAGE:,} bytes instead of {size:,}"):
        ExpertStore.open(damaged_store)


def test_truncated_while_open(damaged_store):
    store = ExpertStore.open(damaged_store)
    with (damaged_store / EXPERTS).open("r+b") as stream:
        stream.truncate(store.manifest.data_offset)
    with pytest.raises(StoreCorrupt, match="layer 2, expert 7: ends after 0"):
        store.read_into(ExpertKey(2, 7), aligned_buffer(store.manifest.stride))


def test_missing_and_foreign_stores(tmp_path, damaged_store):
    with pytest.raises(StoreError, match="moespac convert"):
        ExpertStore.open(tmp_path / "nowhere")
    body = json.loads((damaged_store / MANIFEST).read_text()) | {"version": 99}
    (damaged_store / MANIFEST).write_text(json.dumps(body))
    with pytest.raises(StoreError, match=r"version 99.*convert the checkpoint again"):
        ExpertStore.open(damaged_store)


@pytest.mark.parametrize(
    "error", [StoreError(Path("f"), "is odd", "look"), StoreCorrupt(Path("f"), "is odd", ExpertKey(1, 2))]
)
def test_errors_survive_a_process_boundary(error):
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error) and str(again) == str(error) and again.file == error.file
