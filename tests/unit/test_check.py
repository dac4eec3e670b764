"""`moespac check` finds what would keep a deployment from starting, and says what would be used."""

import json
import shutil
import socket
from pathlib import Path

import pytest
from tiny_models import make_qwen3_dense, make_qwen3_moe
from typer.testing import CliRunner

from moespac.cluster.check import check, run_check
from moespac.cluster.cli import app
from moespac.configs import ConfigError

DEPLOYMENT = """\
name: small
model:
  target: target
  draft: draft
  store: store
devices:
  - kind: gpu
    name: gpu-0
    torch_device: cpu
    expert_memory: 36KiB
    kv_memory: 1MiB
  - kind: cpu
    name: cpu-0
prefetcher:
  host_memory: 1MiB
service:
  port: 0
"""
EXPERT_BYTES = 3 * 32 * 16 * 2


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_qwen3_moe(folder / "target")
    make_qwen3_dense(folder / "draft")
    return folder


@pytest.fixture
def folder(models, tmp_path) -> Path:
    shutil.copytree(models, tmp_path, dirs_exist_ok=True)
    (tmp_path / "deployment.yaml").write_text(DEPLOYMENT)
    return tmp_path


def changed(folder: Path, old: str, new: str) -> Path:
    file = folder / "deployment.yaml"
    text = file.read_text()
    assert text.count(old) == 1
    file.write_text(text.replace(old, new))
    return file


INFEASIBLE = [
    ("expert_memory: 36KiB", "expert_memory: 1KiB", "devices[0].expert_memory"),
    ("kv_memory: 1MiB", "kv_memory: 0", "devices[0].kv_memory"),
    ("host_memory: 1MiB", "host_memory: 0", "prefetcher.host_memory"),
]


@pytest.mark.parametrize("old,new,key", INFEASIBLE)
def test_what_cannot_work_is_refused_before_anything_starts(folder, monkeypatch, old, new, key):
    monkeypatch.setattr("moespac.cluster.serve.Service.start", lambda self: pytest.fail("started"))
    made = CliRunner().invoke(app, ["serve", str(changed(folder, old, new))])
    assert made.exit_code == 1 and isinstance(made.exception, ConfigError)
    assert made.exception.key == key and made.exception.line and "set it to" in made.exception.remedy


def only_problem(file: Path):
    report = check(file)
    assert not report.ok and len(report.problems) == 1, report.problems
    assert run_check(file) == 1
    return report.problems[0]


def test_a_deployment_fit_to_start(folder, capsys):
    file = folder / "deployment.yaml"
    before = sorted(folder.rglob("*"))
    assert run_check(file) == 0
    assert "fit to start" in capsys.readouterr().out
    uses = {what: (value, remark) for what, value, remark in check(file).uses}
    assert uses["gpu-0: slots"] == ("36 KiB", f"{36 * 1024 // EXPERT_BYTES} of 24 experts (50%)")
    assert uses["experts"][1] == "3 KiB each, stored"
    assert uses["expert store"] == (str(folder / "store"), "to be converted at the first start")
    assert sorted(folder.rglob("*")) == before


def test_errors_of_the_file_come_with_their_line(folder, capsys):
    problem = only_problem(changed(folder, "kv_memory: 1MiB", "kv_memory: 1"))
    assert (problem.key, problem.line) == ("devices[0].kv_memory", 11)
    assert "line 11: devices[0].kv_memory: 1" in capsys.readouterr().out


@pytest.mark.parametrize(("port", "status"), [("0", 0), ("many", 1)])
def test_the_commands_exit_status(folder, port, status):
    file = changed(folder, "port: 0", f"port: {port}")
    assert CliRunner().invoke(app, ["check", str(file)]).exit_code == status


def test_missing_model_directory(folder):
    problem = only_problem(changed(folder, "target: target", "target: absent"))
    assert (problem.key, problem.line) == ("model.target", 3)
    assert "no such model directory" in problem.problem and problem.value == str(folder / "absent")


def test_missing_draft_directory(folder):
    shutil.rmtree(folder / "draft")
    problem = only_problem(folder / "deployment.yaml")
    assert (problem.key, problem.line) == ("model.draft", 4)


@pytest.mark.parametrize("model", ["target", "draft"])
def test_truncated_safetensors(folder, model):
    weights = folder / model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    problem = only_problem(folder / "deployment.yaml")
    assert problem.key == f"model.{model}" and problem.value == str(weights)
    assert "truncated" in problem.problem and problem.remedy


def test_tokenizers_of_target_and_draft_differ(folder):
    file = folder / "draft" / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = list(vocabulary)[:2]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    file.write_text(json.dumps(tokenizer))
    problem = only_problem(folder / "deployment.yaml")
    assert (problem.key, problem.line) == ("model.draft", 4)
    assert "another tokenizer" in problem.problem and "use a draft made with the target's tokenizer" in problem.remedy


@pytest.mark.parametrize(
    ("old", "new", "key", "line", "problem", "remedy"),
    [
        (
            "expert_memory: 36KiB",
            "expert_memory: 3071B",
            "devices[0].expert_memory",
            10,
            "one expert",
            "3KiB or more, or",
        ),
        ("host_memory: 1MiB", "host_memory: 4095B", "prefetcher.host_memory", 15, "one expert", "4KiB or more"),
        ("name: cpu-0", "name: cpu-0\n    memory: 1KiB", "devices[1].memory", 14, "one expert", "4KiB or more"),
        ("kv_memory: 1MiB", "kv_memory: 1KiB", "devices[0].kv_memory", 11, "the 18 tokens of the", "or more"),
    ],
)
def test_budgets_too_small_for_the_model(folder, old, new, key, line, problem, remedy):
    found = only_problem(changed(folder, old, new))
    assert (found.key, found.line) == (key, line)
    assert problem in found.problem and remedy in found.remedy


def test_no_slots_at_all_are_allowed(folder):
    assert check(changed(folder, "expert_memory: 36KiB", "expert_memory: 0")).ok


def test_the_remedy_for_a_budget_is_enough(folder):
    file = changed(folder, "kv_memory: 1MiB", "kv_memory: 1KiB")
    enough = only_problem(file).remedy.removeprefix("set it to ").removesuffix(" or more")
    assert check(changed(folder, "kv_memory: 1KiB", f"kv_memory: {enough}")).ok


@pytest.mark.parametrize(("field", "line"), [("port", 17), ("metrics_port", 18)])
def test_port_in_use(folder, field, line):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        written = f"port: {port}" if field == "port" else f"port: 0\n  metrics_port: {port}"
        problem = only_problem(changed(folder, "port: 0", written))
    assert (problem.key, problem.value, problem.line) == (f"service.{field}", str(port), line)
    assert "in use" in problem.problem and "another port" in problem.remedy


@pytest.mark.parametrize("host", ["192.0.2.1", "no such host"])
def test_address_of_another_machine(folder, host):
    problem = only_problem(changed(folder, "port: 0", f"host: {host}\n  port: 50051"))
    assert (problem.key, problem.value) == ("service.host", host)
    assert "address of this machine" in problem.remedy


@pytest.mark.parametrize(
    ("old", "new", "warning"),
    [
        ("host_memory: 1MiB", "host_memory: 100TiB", "of host memory in all"),
        ("name: cpu-0", "name: cpu-0\n    threads: 4096", "usable cores"),
        ("name: cpu-0", "name: cpu-0\n    placement: far", "cpu-0 may be placed on another host"),
        ("port: 0", "port: 0\n  host: 0.0.0.0", "reachable from the network"),
        ("torch_device: cpu", "torch_device: cuda:77", "no cuda:77"),
    ],
)
def test_what_is_doubtful_is_a_warning(folder, old, new, warning, capsys):
    file = changed(folder, old, new)
    assert run_check(file) == 0
    assert any(warning in text for text in check(file).warnings)
    assert warning in capsys.readouterr().out.replace("\n", " ")
