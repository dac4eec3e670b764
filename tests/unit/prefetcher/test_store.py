"""What a store holds, and that it is found there by our reader and by safetensors alike."""

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
from moespac.actors.prefetcher.store_format import PAGE, OtherVersion, canonical, digest
from moespac.kernels.layout import FLOAT_FORMATS, FORMATS
from moespac.kernels.quantise import quantise

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
    for key in source.shape.keys():  # noqa: SIM118
        for buffer in (aligned_buffer(store.manifest.stride), memoryview(bytearray(store.shape.expert_bytes))):
            store.read_into(key, buffer)
            weights = store.layout.weights(np.frombuffer(buffer, np.uint8))
            for name, part in source.expert(key).items():
                assert torch.equal(getattr(weights, name), part)
    store.close()


@pytest.mark.parametrize("scale_dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("format", [None, *FORMATS])
def test_any_safetensors_reader_finds_what_ours_finds(checkpoint, stores, format, scale_dtype):
    source, store = open_checkpoint(checkpoint), ExpertStore.open(stores(format, scale_dtype))
    layout = store.layout
    assert layout.format == (format or "bfloat16")
    assert store.shape.expert_bytes == layout.expert_bytes
    buffer = aligned_buffer(store.manifest.stride)
    with safe_open(store.path / EXPERTS, framework="pt") as tensors:
        named = {name for name in tensors.keys() if not name.startswith("pad.")}  # noqa: SIM118
        assert len(named) == 24 * len(layout.parts)
        for key in source.shape.keys():  # noqa: SIM118
            store.read_into(key, buffer)
            ours, canonical_parts = layout.views(np.frombuffer(buffer, np.uint8)), source.expert(key)
            for part in layout.parts:
                theirs = tensors.get_tensor(f"layers.{key.layer}.experts.{key.expert}.{part.name}")
                assert (theirs.dtype, tuple(theirs.shape)) == (part.dtype, part.shape)
                assert torch.equal(theirs, ours[part.name])
            for name, weight in canonical_parts.items():
                if layout.quantised:
                    payload, scales = quantise(weight, layout.format, FLOAT_FORMATS[layout.scale_dtype])
                    assert torch.equal(ours[name], payload) and torch.equal(ours[f"{name}_scales"], scales)
                else:
                    assert torch.equal(ours[name], weight.to(ours[name].dtype))
    store.close()


@pytest.mark.parametrize("format", FORMATS)
def test_an_expert_is_one_range_on_pages_and_its_parts_on_cache_lines(stores, format):
    path = stores(format)
    store = ExpertStore.open(path)
    start, header = header_of(path / EXPERTS)
    del header["__metadata__"]
    spans = sorted((entry["data_offsets"], name) for name, entry in header.items())
    assert start % PAGE == 0 and store.manifest.stride % PAGE == 0
    for index, key in enumerate(store.shape.keys()):
        for part in store.layout.parts:
            first, end = header[f"layers.{key.layer}.experts.{key.expert}.{part.name}"]["data_offsets"]
            assert first == index * store.manifest.stride + part.offset and first % 64 == 0
            assert end - first == part.nbytes
    ends = [0] + [end for (_, end), _ in spans]
    assert [first for (first, _), _ in spans] == ends[:-1], "safetensors allows no holes"
    data = (path / EXPERTS).read_bytes()
    assert len(data) == start + ends[-1] == store.manifest.file_bytes
    for (first, end), name in spans:
        if name.startswith("pad."):
            assert not any(data[start + first : start + end])
    store.close()


def test_manifest_tells_other_tools_what_is_where(stores):
    body = json.loads((stores("int4-g32") / MANIFEST).read_text())
    assert (body["format"], body["version"]) == ("moespac-experts", 2)
    assert body["source"]["format"] == "bfloat16"
    assert body["layout"]["format"] == "int4-g32" and body["layout"]["scale_dtype"] == "float16"
    assert [(part["name"], part["dtype"], part["shape"]) for part in body["parts"]] == [
        ("gate_up", "U8", [32, 16]),
        ("down", "U8", [32, 16]),
        ("gate_up_scales", "F16", [32, 1]),
        ("down_scales", "F16", [32, 1]),
    ]


def test_fingerprint_is_of_the_weights(store, store_path, stores, checkpoint, tmp_path):
    import transformers

    moved = ExpertStore.open(shutil.copytree(store_path, tmp_path / "elsewhere"))
    renamed = shutil.copytree(checkpoint, tmp_path / "another-name")
    convert(renamed, tmp_path / "store")
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    convert(tmp_path / "sharded", tmp_path / "store-of-shards", None, "bfloat16")
    convert(make_qwen3_moe(tmp_path / "other", seed=9), tmp_path / "other-store")
    same = [moved, ExpertStore.open(tmp_path / "store"), ExpertStore.open(tmp_path / "store-of-shards")]
    assert {one.fingerprint for one in same} == {store.fingerprint}
    different = [tmp_path / "other-store", *map(stores, ["float32", "int8", "int4-g32", "int4-g128"])]
    different.append(stores("int4-g32", "bfloat16"))
    fingerprints = {ExpertStore.open(path).fingerprint for path in different}
    assert len(fingerprints | {store.fingerprint}) == 7


def test_counts_what_it_reads(store):
    store.read_into(ExpertKey(0, 0), memoryview(bytearray(store.shape.expert_bytes)))
    assert store.bytes_read == store.shape.expert_bytes


def test_wrong_use(store):
    with pytest.raises(KeyError):
        store.read_into(ExpertKey(0, 8), aligned_buffer(store.manifest.stride))
    with pytest.raises(ValueError):
        store.read_into(ExpertKey(0, 0), memoryview(bytearray(100)))


def test_missing_and_foreign_stores(tmp_path, damaged_store):
    with pytest.raises(StoreError, match="moespac convert"):
        ExpertStore.open(tmp_path / "nowhere")
    body = json.loads((damaged_store / MANIFEST).read_text()) | {"version": 99}
    del body["checksum"]
    (damaged_store / MANIFEST).write_text(json.dumps(body | {"checksum": digest(canonical(body))}))
    with pytest.raises(OtherVersion, match=r"version 99.*convert the checkpoint again"):
        ExpertStore.open(damaged_store)


@pytest.mark.parametrize(
    "error", [StoreError(Path("f"), "is odd", "look"), StoreCorrupt(Path("f"), "is odd", ExpertKey(1, 2))]
)
def test_errors_survive_a_process_boundary(error):
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error) and str(again) == str(error) and again.file == error.file
