"""No damaged byte is ever taken for a weight."""

import json
import shutil

import numpy as np
import pytest
import torch
from transformers import GptOssConfig, GptOssForCausalLM

from moespac.actors.core import ExpertKey
from moespac.actors.prefetcher.checkpoint import open_checkpoint
from moespac.actors.prefetcher.convert import convert
from moespac.actors.prefetcher.store import ExpertStore, StoreCorrupt, aligned_buffer
from moespac.actors.prefetcher.store_format import PAGE

EXPERTS, MANIFEST = "experts.safetensors", "manifest.json"


def flip(file, offset, bit):
    with file.open("r+b") as stream:
        stream.seek(offset)
        value = stream.read(1)[0]
        stream.seek(offset)
        stream.write(bytes([value ^ (1 << bit)]))


def check_only_broken(store, key):
    """Reading `key` fails, by name, into any buffer; all other experts are well."""
    for buffer in (aligned_buffer(store.manifest.stride), memoryview(bytearray(store.shape.expert_bytes))):
        with pytest.raises(StoreCorrupt) as caught:
            store.read_into(key, buffer)
        assert caught.value.key == key and caught.value.file == store.path / EXPERTS
        assert f"{EXPERTS}: layer {key.layer}, expert {key.expert}: checksum differs" in str(caught.value)
    for other in store.shape.keys():  # noqa: SIM118
        if other != key:
            store.read_into(other, aligned_buffer(store.manifest.stride))


@pytest.mark.parametrize("format", ["bfloat16", "int8", "int4-g32"])
@pytest.mark.parametrize("key", [ExpertKey(0, 0), ExpertKey(1, 5), ExpertKey(2, 7)])
def test_flipped_bit_in_any_part_of_an_expert_is_caught_and_named(stores, tmp_path, format, key):
    path = shutil.copytree(stores(format), tmp_path / "store")
    store = ExpertStore.open(path)
    start = store.manifest.data_offset + store.shape.keys().index(key) * store.manifest.stride
    for part in store.layout.parts:
        for at, bit in ((0, 0), (part.nbytes // 2, 7), (part.nbytes - 1, 3)):
            flip(path / EXPERTS, start + part.offset + at, bit)
            check_only_broken(store, key)
            flip(path / EXPERTS, start + part.offset + at, bit)
    store.read_into(key, aligned_buffer(store.manifest.stride))
    store.close()


def test_padding_within_an_expert_is_watched_and_after_it_means_nothing(stores, tmp_path):
    path = shutil.copytree(stores("int4-g32"), tmp_path / "store")
    store = ExpertStore.open(path)
    key, size = ExpertKey(2, 7), store.shape.expert_bytes
    last = store.manifest.file_bytes - store.manifest.stride
    before = aligned_buffer(store.manifest.stride)
    store.read_into(key, before)
    flip(path / EXPERTS, last + size, 4)
    after = aligned_buffer(store.manifest.stride)
    store.read_into(key, after)
    assert before[:size] == after[:size]
    store.close()


@pytest.mark.parametrize("offset", [0, 7, 8, 500, 4_000])
def test_flipped_bit_in_the_header(damaged_store, offset):
    flip(damaged_store / EXPERTS, offset, 2)
    with pytest.raises(StoreCorrupt, match="header checksum differs") as caught:
        ExpertStore.open(damaged_store)
    assert caught.value.file == damaged_store / EXPERTS and caught.value.key is None


def test_every_flipped_bit_in_the_manifest_is_caught(damaged_store):
    text = (damaged_store / MANIFEST).read_bytes()
    step = 37  # coprime to 8: every bit position comes up
    for position in range(0, len(text) * 8, step):
        damaged = bytearray(text)
        damaged[position // 8] ^= 1 << position % 8
        (damaged_store / MANIFEST).write_bytes(damaged)
        with pytest.raises(StoreCorrupt) as caught:
            ExpertStore.open(damaged_store)
        assert caught.value.file == damaged_store / MANIFEST


def test_a_manifest_that_was_rewritten_is_not_taken(damaged_store):
    """The same content, laid out otherwise: not what a conversion wrote."""
    (damaged_store / MANIFEST).write_text(json.dumps(json.loads((damaged_store / MANIFEST).read_text())))
    with pytest.raises(StoreCorrupt, match="contradicts itself"):
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
    store.close()


@pytest.mark.parametrize("format", [None, "int8"])
def test_biases_lie_with_their_expert_and_are_watched(tmp_path, format):
    """gpt-oss: transposed, interleaved, with biases."""
    torch.manual_seed(0)
    config = GptOssConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=16,
        num_hidden_layers=2,
        num_local_experts=4,
        num_experts_per_tok=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
    )
    model = GptOssForCausalLM(config)
    for name, parameter in model.named_parameters():
        if "experts" in name:
            torch.nn.init.normal_(parameter)  # biases begin as zeros
    model.save_pretrained(tmp_path / "checkpoint")
    convert(tmp_path / "checkpoint", tmp_path / "store", None, format)
    source, store = open_checkpoint(tmp_path / "checkpoint"), ExpertStore.open(tmp_path / "store")
    key, buffer = ExpertKey(1, 2), aligned_buffer(store.manifest.stride)
    store.read_into(key, buffer)
    views = store.layout.views(np.frombuffer(buffer, np.uint8))
    start = store.manifest.data_offset + store.shape.keys().index(key) * store.manifest.stride
    for name in ("gate_up_bias", "down_bias"):
        assert torch.equal(views[name], source.expert(key)[name]) and views[name].any()
        part = next(part for part in store.layout.parts if part.name == name)
        flip(store.path / EXPERTS, start + part.offset + 5, 6)
        check_only_broken(store, key)
        flip(store.path / EXPERTS, start + part.offset + 5, 6)
    store.close()
