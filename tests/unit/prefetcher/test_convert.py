"""What is converted, from what, to where."""

import json
import shutil
import threading

import numpy as np
import pytest
import torch
from tiny_models import make_qwen3_moe

from moespac.actors.core import ExpertKey
from moespac.actors.prefetcher import expert_blocks
from moespac.actors.prefetcher.checkpoint import CheckpointError, open_checkpoint
from moespac.actors.prefetcher.convert import UnknownFormat, convert, ensure_store, store_path_for
from moespac.actors.prefetcher.expert_blocks import Deviation, block_pieces
from moespac.actors.prefetcher.store import ExpertStore
from moespac.actors.prefetcher.store_format import OtherVersion, StoreCorrupt, canonical, digest
from moespac.kernels.layout import FORMATS, ExpertLayout

MANIFEST = "manifest.json"


def opened(path):
    store = ExpertStore.open(path)
    store.close()
    return store


def parts_of(layout, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows, hidden = layout.gate_up_rows, layout.hidden_size
    parts = {
        "gate_up": torch.randn(rows, hidden, generator=generator),
        "down": torch.randn(hidden, layout.intermediate_size, generator=generator),
        "gate_up_bias": torch.randn(rows, generator=generator),
        "down_bias": torch.randn(hidden, generator=generator),
        "norm": torch.randn(hidden, generator=generator),
    }
    return {name: part.bfloat16() for name, part in parts.items()}


@pytest.mark.parametrize("gate", ["glu", "none"])
@pytest.mark.parametrize("format", FORMATS)
def test_blocks_hold_every_part_and_zeros_between(format, gate):
    """Shapes that fill neither cache lines nor groups."""
    layout = ExpertLayout(40, 24, format, "silu", gate=gate, bias=True, norm_eps=1e-6)
    parts = parts_of(layout)
    block = np.concatenate(list(block_pieces(layout, parts, Deviation())))
    assert block.size == layout.expert_bytes
    weights = layout.weights(block)
    for name in ("gate_up_bias", "down_bias", "norm"):
        assert torch.equal(getattr(weights, name), parts[name].float())
    for name in ("gate_up", "down"):
        source, stored = parts[name].float(), getattr(weights, name).float()
        assert ((stored - source).abs().max() / source.abs().max()) < (0.08 if layout.quantised else 0.004)
    for part, following in zip(layout.parts, layout.parts[1:], strict=False):
        assert not block[part.offset + part.nbytes : following.offset].any()


@pytest.mark.parametrize("format", FORMATS)
def test_rows_at_a_time_or_all_at_once_is_the_same(format, monkeypatch):
    layout = ExpertLayout(40, 24, format, "silu", bias=True, norm_eps=1e-6)
    whole = np.concatenate(list(block_pieces(layout, parts_of(layout), Deviation())))
    monkeypatch.setattr(expert_blocks, "CHUNK_BYTES", 5 * 4 * 40)
    pieces = list(block_pieces(layout, parts_of(layout), Deviation()))
    assert len(pieces) > 12
    assert np.array_equal(np.concatenate(pieces), whole)


def test_progress_in_bytes(checkpoint, tmp_path):
    seen = []
    convert(checkpoint, tmp_path / "store", lambda done, total: seen.append((done, total)))
    assert seen[0] == (0, 24 * 3072) and seen[-1] == (24 * 3072, 24 * 3072)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_says_how_far_the_weights_moved(checkpoint, tmp_path):
    errors = {}
    for format in (None, "float32", "float16", "int8", "int4", "int4-g128"):
        made = convert(checkpoint, tmp_path / "store", None, format)
        assert (made.source_format, made.experts, made.taken_over) == ("bfloat16", 24, 0)
        assert list(made.weight_errors) == [0, 1, 2]
        errors[format] = sum(made.weight_errors.values()) / 3
    assert errors[None] == errors["float32"] == 0
    assert errors["float16"] < 1e-3 < errors["int8"] < 0.01 < 0.04 < errors["int4"] <= errors["int4-g128"] < 0.15


def test_float_formats_are_rounded_to_nearest(tmp_path):
    checkpoint = make_qwen3_moe(tmp_path / "checkpoint", dtype=torch.float32)
    made = convert(checkpoint, tmp_path / "store", None, "bfloat16")
    assert made.layout.format == "bfloat16" and 1e-4 < made.weight_errors[0] < 2**-8
    store, buffer = ExpertStore.open(tmp_path / "store"), bytearray(made.layout.expert_bytes)
    store.read_into(ExpertKey(1, 3), memoryview(buffer))
    weights = store.layout.weights(np.frombuffer(buffer, np.uint8))
    source = open_checkpoint(checkpoint).expert(ExpertKey(1, 3))
    assert torch.equal(weights.gate_up, source["gate_up"].bfloat16())
    store.close()


@pytest.mark.parametrize(
    "format,value,said",
    [
        ("float16", 1e5, "too large for float16"),
        ("int8", float("nan"), "NaN or infinity"),
        ("int4", float("inf"), "NaN or infinity"),
        ("int4", 1e9, "bfloat16 scales"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(tmp_path, format, value, said):
    import safetensors.torch

    checkpoint = make_qwen3_moe(tmp_path / "checkpoint")
    file = checkpoint / "model.safetensors"
    tensors = safetensors.torch.load_file(file)
    name = next(name for name in tensors if ".layers.1." in name and "experts" in name and "down" in name)
    if tensors[name].dim() == 3:
        tensors[name][5, 3, 2] = value
    else:
        tensors[name][3, 2] = value
    expert = 5 if tensors[name].dim() == 3 else int(name.split("experts.")[1].split(".")[0])
    safetensors.torch.save_file(tensors, file, {"format": "pt"})
    with pytest.raises(CheckpointError, match=f"layer 1, expert {expert}: down.* holds .*{said}"):
        convert(checkpoint, tmp_path / "store", None, format)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_unknown_names_are_refused_with_the_choices(checkpoint, tmp_path):
    with pytest.raises(UnknownFormat, match=r"'int3': choose one of .*int8, int4-g32, int4-g128, int4$"):
        convert(checkpoint, tmp_path / "store", None, "int3")
    with pytest.raises(UnknownFormat, match=r"'float32': choose one of float16, bfloat16"):
        ensure_store(checkpoint, tmp_path / "store", None, "int4", "float32")
    assert list(tmp_path.iterdir()) == []


def test_sharded_gives_the_same_experts(checkpoint, store, tmp_path):
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    convert(tmp_path / "sharded", tmp_path / "store")
    assert opened(tmp_path / "store").manifest.checksums == store.manifest.checksums


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
    opened(store)


def test_ensure_store_converts_only_when_needed(checkpoint, tmp_path):
    copy, store = shutil.copytree(checkpoint, tmp_path / "model"), tmp_path / "store"

    def ensured(*asked):
        ensure_store(copy, store, None, *asked)
        return (store / MANIFEST).stat().st_mtime_ns, opened(store).layout.format

    first = ensured()
    assert ensured() == ensured("bfloat16") == first and first[1] == "bfloat16"
    quantised = ensured("int4", "bfloat16")
    assert quantised[1] == "int4-g32" and opened(store).layout.scale_dtype == "bfloat16"
    assert ensured("int4-g32", "bfloat16") == quantised != ensured("int4", "float16")
    in_int8 = ensured("int8")
    assert ensured("int8", "bfloat16") == in_int8, "int8 has no choice of scales"
    assert ensured()[1] == "bfloat16"
    old = opened(store).fingerprint
    shutil.rmtree(copy)
    make_qwen3_moe(copy, seed=8)
    ensured()
    assert opened(store).fingerprint != old
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "store"]


def test_default_place_is_the_cache_one_a_format(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = ensure_store(checkpoint, None)
    assert path == store_path_for(checkpoint, None) == store_path_for(checkpoint, None, "bfloat16", "bfloat16")
    assert path.parent == tmp_path / "moespac" / "stores" and path.name.startswith("tiny-")
    asked = [("float16",), ("int8",), ("int4",), ("int4-g128",), ("int4", "bfloat16")]
    others = {store_path_for(checkpoint, None, *which).name for which in asked}
    assert len(others) == 5 and all(name.startswith(path.name + "-") for name in others)
    assert store_path_for(checkpoint, None, "int4") == store_path_for(checkpoint, None, "int4-g32")
    assert store_path_for(checkpoint, None, "int8") == store_path_for(checkpoint, None, "int8", "bfloat16")
    assert opened(ensure_store(checkpoint, None, None, "int8")).layout.format == "int8"
    assert opened(path).layout.format == "bfloat16"
    with pytest.raises(UnknownFormat):
        store_path_for(checkpoint, tmp_path / "store", "int3")


def outdate(store):
    """As the first version of the program wrote manifests."""
    body = json.loads((store / MANIFEST).read_text())
    body = {name: body[name] for name in ("format", "model", "shape", "fingerprint")} | {"version": 1}
    (store / MANIFEST).write_text(json.dumps(body | {"checksum": digest(canonical(body))}))


def test_a_store_of_another_version_is_replaced_in_the_cache_and_named_elsewhere(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cached, configured = ensure_store(checkpoint), ensure_store(checkpoint, tmp_path / "store")
    for store in (cached, configured):
        outdate(store)
    assert ensure_store(checkpoint) == cached
    opened(cached)
    with pytest.raises(OtherVersion, match=r"store/manifest.json: .*version 1, not .* 2; convert the checkpoint again"):
        ensure_store(checkpoint, configured)
    convert(checkpoint, configured)
    opened(configured)


def test_a_damaged_store_is_not_written_over(checkpoint, damaged_store):
    text = (damaged_store / MANIFEST).read_bytes()
    (damaged_store / MANIFEST).write_bytes(text.replace(b'"n_experts": 8', b'"n_experts": 9'))
    with pytest.raises(StoreCorrupt, match="manifest checksum differs"):
        ensure_store(checkpoint, damaged_store)
