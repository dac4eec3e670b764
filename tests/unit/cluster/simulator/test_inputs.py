"""Traces and hardware files: what is read, and one clear error for what cannot be used."""

import gzip
import json

import numpy as np
import pytest
from simulated import hardware, random_ids, write_hardware, write_trace

from moespac.cluster.simulator.command import HARDWARE
from moespac.cluster.simulator.hardware import BadHardware, load_hardware
from moespac.cluster.simulator.machine import machine_of
from moespac.cluster.simulator.run import divided
from moespac.cluster.simulator.traces import BadTrace, read_trace
from moespac.configs.errors import ConfigError

IDS = random_ids(6, 2, 4, 2)


def test_a_trace_with_texts(tmp_path):
    file = write_trace(tmp_path / "t.npz", IDS, 4, offsets=[0, 4, 6], layer_ids=[1, 2], seq_names=["x", "y"])
    lines = [
        {"full_text_tokens": ["p", "a", "b", "a", "c"], "first_pos": 1, "repetition": False},
        {"full_text_tokens": ["b", "p"], "first_pos": 0, "repetition": True},
    ]
    with gzip.open(tmp_path / "t.meta.jsonl.gz", "wt") as out:
        out.writelines(json.dumps(line) + "\n" for line in lines)
    trace = read_trace(file)
    assert (trace.layer_ids, trace.n_experts, trace.top_k, trace.tokens) == ((1, 2), 4, 2, 6)
    first, second = trace.sequences
    assert (first.prompt_ids, first.token_ids) == ((0,), (1, 2, 1, 3))
    assert second.token_ids == (2, 0) and second.repetition
    replayed, others = divided(trace, 3)
    assert [len(s.ids) for s in replayed] == [3] and len(replayed[0].token_ids) == 3 and others == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"offsets": [0, 5]}, "seq_offsets must rise from 0 to 6"),
        ({"offsets": [0, 4, 2, 6]}, "seq_offsets must rise"),
        ({"n_experts": 3}, r"ids holds 0\.\.3; expected experts 0\.\.2"),
        ({"ids": IDS[:, 0]}, r"ids is uint8 \(6, 2\); expected integers \[tokens, layers, k\]"),
        ({"layer_ids": [0, 1, 2]}, "layer_ids has shape"),
    ],
)
def test_bad_traces(tmp_path, change, message):
    arrays = {"ids": IDS, "seq_offsets": change.pop("offsets", [0, 6]), "n_experts": 4} | change
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(BadTrace, match=message) as error:
        read_trace(tmp_path / "bad.npz")
    assert "bad.npz" in str(error.value)


def test_traces_that_are_no_traces(tmp_path):
    with pytest.raises(BadTrace, match="there is no such file"):
        read_trace(tmp_path / "absent.npz")
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(BadTrace, match=r"text\.npz: cannot be read as an npz file"):
        read_trace(tmp_path / "text.npz")
    np.savez(tmp_path / "other.npz", x=[1])
    with pytest.raises(BadTrace, match="holds no array 'ids'"):
        read_trace(tmp_path / "other.npz")
    file = write_trace(tmp_path / "loops.npz", IDS[:1], 4)
    with pytest.raises(BadTrace, match="no sequence of at least 2 tokens"):
        divided(read_trace(file), 0)


def test_hardware_that_ships():
    files = sorted(HARDWARE.glob("*.yaml"))
    assert len(files) >= 3
    for file in files:
        loaded = load_hardware(file)
        machine = machine_of(loaded)
        assert machine.transfer_s(False) > machine.device.read_s > 0
        for name, (low, high) in loaded.uncertain().items():
            assert low <= loaded.value(name) <= high


def test_a_constant_can_be_changed():
    base = hardware()
    assert machine_of(base).cpu.read_s == pytest.approx(2e-3)
    assert machine_of(base.with_value("cpu.memory_bandwidth", 1e9)).cpu.read_s == pytest.approx(1e-3)
    assert base.value("cpu.memory_bandwidth") == 500e6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"link__bandwidth": "250MB"}, r"link\.bandwidth: has the unknown unit 'MB'; did you mean 250MB/s"),
        ({"cpu__flops": 3}, r"cpu\.flops: is not a rate of arithmetic; write a number of TFLOP/s"),
        ({"speculation__acceptance": 2}, r"speculation\.acceptance: is not a share; write a number from 0 to 1"),
        ({"model__hidden_size": 0}, r"model\.hidden_size 0: input should be greater than 0"),
        ({"disk__speed": 3}, r"disk\.speed: is not a known key"),
    ],
)
def test_bad_hardware(tmp_path, change, message):
    file = write_hardware(tmp_path / "h.yaml", **change)
    with pytest.raises(BadHardware, match=message) as error:
        load_hardware(file)
    assert str(error.value).startswith(f"{file}: line ")


def test_a_value_outside_its_range(tmp_path):
    file = write_hardware(tmp_path / "h.yaml")
    text = file.read_text().replace("value: 250MB/s", "value: 250MB/s\n    range: [1MB/s, 2MB/s]")
    file.write_text(text)
    with pytest.raises(BadHardware, match=r"link\.bandwidth.*value lies outside its range"):
        load_hardware(file)
    with pytest.raises(ConfigError, match="there is no such file"):
        load_hardware(tmp_path / "absent.yaml")
