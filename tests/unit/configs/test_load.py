"""A deployment file becomes a frozen `Deployment` with plain units and absolute paths."""

import pickle
from pathlib import Path

import pytest
from pydantic import ValidationError

from moespac.configs import GpuDeviceConfig, LinkConfig, load_deployment, schema

TEXT = """\
name: small
model: {target: models/target, draft: ../draft}
devices:
  - kind: gpu
    name: gpu-0
    torch_device: emulated
    expert_memory: 6MiB
    kv_memory: 1.5GB
    link: {bandwidth: 4GB/s, latency: 20us}
  - {kind: cpu, name: cpu-0, arena: own, memory: 1GiB, placement: moespac-worker}
  - {kind: cpu, name: cpu-1, threads: 3}
prefetcher: {host_memory: 0.5GiB}
scheduler: {plan_deadline: 5ms}
"""


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(TEXT)
    return path


def test_values_arrive_in_plain_units(file):
    deployment = load_deployment(file)
    assert deployment.gpu.expert_memory == 6 * 2**20
    assert deployment.gpu.kv_memory == 1_500_000_000
    assert deployment.gpu.link == LinkConfig(bandwidth=4e9, latency=2e-5)
    assert deployment.prefetcher.host_memory == 2**29
    assert deployment.scheduler.plan_deadline == 0.005
    assert [(w.name, w.threads, w.memory) for w in deployment.workers] == [("cpu-0", 1, 2**30), ("cpu-1", 3, None)]


def test_what_is_left_out_has_its_default(file):
    deployment = load_deployment(str(file))
    assert deployment.draft.gamma == "auto" and deployment.draft_kinds == ("model", "ngram", "self")
    assert deployment.prefetcher.readers == 8
    assert deployment.service.port == 50051
    assert deployment.service.host == "127.0.0.1"
    assert deployment.model.store is None


def test_relative_paths_start_at_the_files_folder(file, monkeypatch, tmp_path_factory):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    model = load_deployment(file).model
    assert model.target == file.parent.resolve() / "models/target"
    assert model.draft == file.parent.resolve().parent / "draft"


def test_home_and_absolute_paths_are_kept(file, monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    file.write_text(TEXT.replace("models/target", "~/target").replace("../draft", "/models/draft"))
    model = load_deployment(file).model
    assert (model.target, model.draft) == (Path("/somewhere/target"), Path("/models/draft"))


def test_deployments_are_immutable_and_travel_between_processes(file):
    deployment = load_deployment(file)
    with pytest.raises(ValidationError):
        deployment.gpu.threads = 8
    assert pickle.loads(pickle.dumps(deployment)) == deployment


def test_code_may_build_sections_with_plain_numbers_or_units():
    plain = GpuDeviceConfig(name="g", torch_device="cpu", expert_memory=1024, kv_memory=0)
    assert plain == GpuDeviceConfig(name="g", torch_device="cpu", expert_memory="1KiB", kv_memory="0")


def test_every_field_says_its_unit_and_effect():
    sections = [section for section in vars(schema).values() if isinstance(section, type)]
    found = [section for section in sections if issubclass(section, schema.Section) and section is not schema.Section]
    assert len(found) == 9
    silent = [f"{s.__name__}.{n}" for s in found for n, f in s.model_fields.items() if not f.description]
    assert silent == []
