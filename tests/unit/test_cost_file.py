"""Measured costs on disk: what is saved is found again, and what is of something else is left alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from moespac.actors.core import CostSample
from moespac.actors.cost_conditions import conditions, endpoints_of
from moespac.actors.cost_file import CostFile, CostFileUnreadable
from moespac.actors.policy.cost import LINK, CostModel
from moespac.actors.transport.endpoint import Endpoint, PeerUnknown
from moespac.configs import CpuDeviceConfig, Deployment, GpuDeviceConfig, LinkConfig, ModelConfig, PrefetcherConfig

HERE = {
    "gpu-0": {"hardware": "A, 2 cores"},
    "cpu-0": {"hardware": "A, 2 cores", "threads": "1"},
    LINK: {"link": "real"},
}
SAMPLES = [
    *(CostSample("gpu-0", n, 2 * n, 5e-5 + 3e-4 * n) for n in (1, 4, 7)),
    *(CostSample("cpu-0", n, n, 2e-4 + 8e-4 * n, 1e-3 * (n == 2)) for n in (1, 2, 9, 5)),
    *(CostSample(LINK, 1, 0, 4e-4) for _ in range(3)),
]


def of(samples: list[CostSample], actor: str) -> list[CostSample]:
    return [sample for sample in samples if sample.actor == actor]


def test_what_is_saved_is_loaded(tmp_path, capsys):
    file = CostFile(tmp_path / "new" / "store")
    assert file.load(HERE) == [] and capsys.readouterr().out == ""
    file.save(HERE, SAMPLES)
    assert CostFile(tmp_path / "new" / "store").load(HERE) == SAMPLES
    assert [path.name for path in file.path.parent.iterdir()] == ["store.costs.json"]
    assert "measured" in capsys.readouterr().out


def test_a_model_that_begins_with_it_predicts_as_the_one_that_measured(tmp_path):
    measured, fresh = CostModel(1 << 20, "gpu-0"), CostModel(1 << 20, "gpu-0")
    for _ in range(70):
        for sample in SAMPLES:
            measured.observe(sample)
    CostFile(tmp_path / "store").save(HERE, measured.samples())
    fresh.take_up(CostFile(tmp_path / "store").load(HERE))
    for actor in HERE:
        for size in ((1, 1), (3, 8), (16, 40)):
            assert fresh.predict(actor, *size) == pytest.approx(measured.predict(actor, *size), rel=1e-3)
        assert fresh.predict(actor, 3, 8) != pytest.approx(CostModel(1 << 20, "gpu-0").predict(actor, 3, 8), rel=0.1)
    assert fresh.worker_costs(["cpu-0"])[0].expert_s == pytest.approx(measured.worker_costs(["cpu-0"])[0].expert_s)
    assert fresh.error().keys() == HERE.keys()


def test_what_depends_on_something_else_is_left_and_said(tmp_path, capsys):
    file = CostFile(tmp_path / "store")
    file.save(HERE, SAMPLES)
    here = HERE | {"cpu-0": {"hardware": "A, 2 cores", "threads": "4"}, "cpu-1": {"hardware": "B"}}
    loaded = file.load(here)
    assert loaded == of(SAMPLES, "gpu-0") + of(SAMPLES, LINK)
    said = capsys.readouterr().out
    assert "something else" in said and "cpu-0" in said and "then 1, now 4" in said and "hardware" not in said


def test_other_actors_stay_and_those_without_conditions_are_left_out(tmp_path):
    file = CostFile(tmp_path / "store")
    file.save(HERE, SAMPLES)
    newer = CostSample("cpu-0", 3, 3, 1.0)
    file.save({"cpu-0": HERE["cpu-0"]}, [newer, CostSample("gpu-0", 1, 1, 1.0)])
    assert file.load(HERE) == [*of(SAMPLES, "gpu-0"), newer, *of(SAMPLES, LINK)]
    before = file.path.read_bytes()
    file.save(HERE, [])
    assert file.path.read_bytes() == before


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda text: text[: len(text) // 2], "Invalid JSON"),
        (lambda text: "", "Invalid JSON"),
        (lambda text: text.replace('"version":1', '"version":2'), "version"),
        (lambda text: text.replace("[1,1,", "[0,1,", 1), "actors.cpu-0.samples"),
        (lambda text: json.dumps(json.loads(text) | {"saved": "yesterday"}), "saved"),
    ],
)
def test_a_damaged_file_is_one_line_in_the_log_and_written_anew(tmp_path, capsys, damage, says):
    file = CostFile(tmp_path / "store")
    file.save(HERE, SAMPLES)
    file.path.write_text(damage(file.path.read_text()))
    assert file.load(HERE) == []
    said = capsys.readouterr().out
    assert "refused" in said and says in said and said.count("\n") == 1
    with pytest.raises(CostFileUnreadable, match=str(file.path)):
        file.read()
    assert file.described()[0] == "not readable"
    file.save(HERE, SAMPLES)
    assert file.load(HERE) == SAMPLES


def test_what_cannot_be_written_is_logged(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    CostFile(tmp_path / "file" / "store").save(HERE, SAMPLES)
    assert "not saved" in capsys.readouterr().out


def test_it_tells_people_of_when_it_is(tmp_path):
    file = CostFile(tmp_path / "store")
    assert file.described()[0] == "none" and "moespac profile" in file.described()[1]
    file.save(HERE, SAMPLES)
    when, whose = file.described()
    assert when == f"of {file.read().saved:%Y-%m-%d %H:%M} UTC" and whose == "cpu-0, gpu-0, link"


DEPLOYMENT = Deployment(
    model=ModelConfig(target=Path("target")),
    devices=(
        GpuDeviceConfig(
            name="gpu-0",
            torch_device="emulated",
            expert_memory=2**20,
            kv_memory=2**20,
            link=LinkConfig(bandwidth=4e9, latency=2e-5),
        ),
        CpuDeviceConfig(name="cpu-0"),
        CpuDeviceConfig(name="cpu-1", arena="own", memory=2**20),
    ),
    prefetcher=PrefetcherConfig(host_memory=2**20),
)
ENDPOINTS = {
    name: Endpoint(name, "", f"{host}:1", hardware="A, 2 cores")
    for name, host in (("prefetcher", "10.0.0.1"), ("gpu-0", "10.0.0.1"), ("cpu-0", "10.0.0.1"), ("cpu-1", "10.0.0.2"))
}


def changed(device: int, **fields) -> Deployment:
    devices = list(DEPLOYMENT.devices)
    devices[device] = devices[device].model_copy(update=fields)
    return DEPLOYMENT.model_copy(update={"devices": tuple(devices)})


def with_hardware(name: str, hardware: str) -> dict[str, Endpoint]:
    return ENDPOINTS | {name: replace(ENDPOINTS[name], hardware=hardware)}


@pytest.mark.parametrize(
    ("deployment", "fingerprint", "endpoints", "affected"),
    [
        (DEPLOYMENT, "other", ENDPOINTS, {"gpu-0", "cpu-0", "cpu-1", LINK}),
        (changed(0, threads=2), "store", ENDPOINTS, {"gpu-0"}),
        (changed(0, link=LinkConfig(bandwidth=8e9, latency=2e-5)), "store", ENDPOINTS, {LINK}),
        (changed(0, torch_device="cpu", link=None), "store", ENDPOINTS, {"gpu-0", LINK}),
        (changed(0, expert_memory=2**24, kv_memory=2**24), "store", ENDPOINTS, set()),
        (changed(1, threads=2, cores=(0, 1)), "store", ENDPOINTS, {"cpu-0"}),
        (changed(2, memory=2**24), "store", ENDPOINTS, set()),
        (DEPLOYMENT, "store", with_hardware("gpu-0", "H100; A, 2 cores"), {"gpu-0", LINK}),
        (DEPLOYMENT, "store", with_hardware("cpu-1", "B, 64 cores"), {"cpu-1"}),
        (DEPLOYMENT, "store", ENDPOINTS | {"cpu-1": replace(ENDPOINTS["cpu-1"], address="10.0.0.1:2")}, {"cpu-1"}),
        (
            DEPLOYMENT.model_copy(update={"model": ModelConfig(target=Path("t"), compute_dtype="bfloat16")}),
            "store",
            ENDPOINTS,
            {"gpu-0", "cpu-0", "cpu-1"},
        ),
    ],
)
def test_costs_depend_on_what_computes_and_not_on_how_much_it_holds(deployment, fingerprint, endpoints, affected):
    before = conditions(DEPLOYMENT, "store", ENDPOINTS, "prefetcher")
    after = conditions(deployment, fingerprint, endpoints, "prefetcher")
    assert before.keys() == after.keys() == {"gpu-0", "cpu-0", "cpu-1", LINK}
    assert {actor for actor in before if before[actor] != after[actor]} == affected


def test_who_is_not_up_has_no_conditions():
    def resolve(name: str) -> Endpoint:
        if name == "cpu-1":
            raise PeerUnknown(name)
        return ENDPOINTS[name]

    found = endpoints_of(ENDPOINTS, resolve)
    assert conditions(DEPLOYMENT, "store", found, "prefetcher").keys() == {"gpu-0", "cpu-0", LINK}
