"""Every mistake in a deployment file gets an error that names file, line, key, value and remedy."""

import pickle

import pytest

from moespac.configs import ConfigError, load_deployment

GOOD = """\
name: small
model:
  target: target
  draft: draft
devices:
  - kind: gpu
    name: gpu-0
    torch_device: cpu
    expert_memory: 6MiB
    kv_memory: 64MiB
  - kind: cpu
    name: cpu-0
prefetcher:
  host_memory: 32MiB
scheduler:
  replan_every: 4
service:
  port: 50051
"""

# (written, instead of, line, key, value, problem, remedy)
MISTAKES = {
    "unknown key": (
        "    expert_memry: 6MiB", "    expert_memory: 6MiB", 9, "devices[0].expert_memry", "'6MiB'",
        "not a known key", "did you mean expert_memory?"),
    "unknown section": ("servise:", "service:", 17, "servise", "", "not a known key", "did you mean service?"),
    "unlike any key": (
        "  xyzzy: 4", "  replan_every: 4", 16, "scheduler.xyzzy", "4", "not a known key", "keys here are estimator"),
    "wrong unit": (
        "  host_memory: 32Mb", "  host_memory: 32MiB", 14, "prefetcher.host_memory", "'32Mb'", "unknown unit 'Mb'",
        "did you mean 32MB?"),
    "no unit": (
        "    kv_memory: 64", "    kv_memory: 64MiB", 10, "devices[0].kv_memory", "64", "without a unit", "64MiB or"),
    "duplicate key": (
        "  replan_every: 4\n  replan_every: 5", "  replan_every: 4", 17, "scheduler.replan_every", "",
        "given twice, first in line 16", "remove one"),
    "two gpu devices": (
        "  - kind: gpu\n    torch_device: cpu\n    expert_memory: 0\n    kv_memory: 1MiB", "  - kind: cpu", 11,
        "devices[1].kind", "'gpu'", "second device of kind gpu", "keep one"),
    "no gpu device": (
        "", GOOD[GOOD.index("  - kind: gpu") : GOOD.index("  - kind: cpu")], 5, "devices", "",
        "no device of kind gpu", "torch_device: cpu"),
    "unknown kind": (
        "  - kind: tpu", "  - kind: cpu", 11, "devices[1].kind", "'tpu'", "not a kind", "kind: gpu or kind: cpu"),
    "kind left out": (
        "  - threads: 2", "  - kind: cpu", 11, "devices[1].kind", "", "is missing", "kind: gpu or kind: cpu"),
    "same name twice": (
        "    name: gpu-0", "    name: cpu-0", 12, "devices[1].name", "'gpu-0'", "name of devices[0] too",
        "its own name"),
    "bad name": (
        "    name: Worker 1", "    name: cpu-0", 12, "devices[1].name", "'Worker 1'", "not a name", "lower-case"),
    "reserved name": (
        "    name: scheduler", "    name: cpu-0", 12, "devices[1].name", "'scheduler'", "no device", "do not use"),
    "negative number": (
        "  replan_every: -1", "  replan_every: 4", 16, "scheduler.replan_every", "-1", "at least 1", "Steps after"),
    "draft gamma beyond": (
        "  replan_every: 4\ndraft:\n  gamma: 17", "  replan_every: 4", 18, "draft.gamma", "17",
        "no number of draft tokens", "auto, or a whole number from 0 to 16"),
    "draft gamma as yes": (
        "  replan_every: 4\ndraft:\n  gamma: yes", "  replan_every: 4", 18, "draft.gamma", "True",
        "no number of draft tokens", "auto"),
    "draft unheard of": (
        "  replan_every: 4\ndraft:\n  kinds: [model, mtp]", "  replan_every: 4", 18, "draft.kinds[1]", "'mtp'",
        "none of the choices", "model, ngram, self"),
    "draft twice": (
        "  replan_every: 4\ndraft:\n  kinds: [ngram, ngram]", "  replan_every: 4", 18, "draft.kinds", "",
        "names a draft twice", "once"),
    "gamma without draft": (
        "draft:\n  kinds: []\n  gamma: 4\nservice:", "service:", 19, "draft.gamma", "4", "names nothing", "gamma: 0"),
    "draft model that is not there": (
        "  target: target\ndraft:\n  kinds: [model]", "  target: target\n  draft: draft", 5, "draft.kinds", "",
        "no draft model", "set model.draft"),
    "self-draft without slots": (
        "draft:\n  kinds: [self]\n"
        "devices:\n  - kind: gpu\n    name: gpu-0\n    torch_device: cpu\n    expert_memory: 0",
        GOOD[GOOD.index("devices:") : GOOD.index("\n    kv_memory")], 6, "draft.kinds", "", "no expert is resident",
        "expert_memory"),
    "prefetcher away from its device": (
        "  host_memory: 32MiB\n  placement: far", "  host_memory: 32MiB", 15, "prefetcher.placement", "'far'",
        "any node for the device gpu-0", "same placement"),
    "device away from its prefetcher": (
        "    kv_memory: 64MiB\n    placement: far", "    kv_memory: 64MiB", 14, "prefetcher.placement", "",
        "is any node, but far", "same placement"),
    "number as text": (
        "  replan_every: four", "  replan_every: 4", 16, "scheduler.replan_every", "'four'", "a whole number",
        "Steps after"),
    "port too high": ("  port: 65536", "  port: 50051", 18, "service.port", "65536", "at most 65535", "TCP port"),
    "metrics port taken": (
        "  port: 50051\n  metrics_port: 50051", "  port: 50051", 19, "service.metrics_port", "50051",
        "is service.port too", "choose another"),
    "port negative": ("  port: -1", "  port: 50051", 18, "service.port", "-1", "at least 0", "TCP port"),
    "torch device": (
        "    torch_device: cuda", "    torch_device: cpu", 8, "devices[0].torch_device", "'cuda'", "torch device",
        "did you mean cuda:0?"),
    "emulated without link": (
        "    torch_device: emulated", "    torch_device: cpu", 6, "devices[0].link", "", "needs a link",
        "bandwidth: 4GB/s"),
    "link of a real device": (
        "    kv_memory: 64MiB\n    link: {bandwidth: 4GB/s, latency: 1us}", "    kv_memory: 64MiB", 11,
        "devices[0].link", "", "whose link is real", "torch_device: emulated"),
    "own arena without memory": (
        "    name: cpu-0\n    arena: own", "    name: cpu-0", 11, "devices[1].memory", "", "needs memory",
        "arena: shared"),
    "shared arena with memory": (
        "    name: cpu-0\n    arena: shared\n    memory: 1GiB", "    name: cpu-0", 14, "devices[1].memory", "'1GiB'",
        "prefetcher's memory", "remove memory"),
    "no threads": (
        "    name: cpu-0\n    threads: 0", "    name: cpu-0", 13, "devices[1].threads", "0", "at least 1", "CPU"),
    "expert format": (
        "  draft: draft\n  expert_format: int4", "  draft: draft", 5, "model.expert_format", "'int4'",
        "none of the choices", "int4-g32, int4-g128"),
    "quantised trunk on a GPU": (
        "  draft: draft\n  trunk_format: int8\ndevices:\n  - kind: gpu\n    name: gpu-0\n    torch_device: cuda:0",
        GOOD[GOOD.index("  draft: draft") : GOOD.index("\n    expert_memory")], 5, "model.trunk_format", "'int8'",
        "computed on cuda:0", "stored"),
    "quantised trunk in float16": (
        "  draft: draft\n  compute_dtype: float16\n  trunk_format: int4-g32", "  draft: draft", 6, "model.trunk_format",
        "'int4-g32'", "compute_dtype is float16", "bfloat16 or float32"),
    "fewer cores than threads": (
        "    name: cpu-0\n    threads: 2\n    cores: [3]", "    name: cpu-0", 14, "devices[1].cores", "",
        "1 cores for 2 threads", "as many different cores"),
    "a core twice": (
        "    name: cpu-0\n    threads: 2\n    cores: [3, 3]", "    name: cpu-0", 14, "devices[1].cores", "",
        "1 cores for 2 threads", "as many different cores"),
    "resource of Ray's own": (
        "    name: cpu-0\n    placement: CPU", "    name: cpu-0", 13, "devices[1].placement", "'CPU'",
        "Ray defines itself", "moespac-worker"),
    "missing key": ("", "  target: target\n", 2, "model.target", "", "is missing", "add target: Folder"),
    "estimator": (
        "  estimator: as_descrbed", "  replan_every: 4", 16, "scheduler.estimator", "'as_descrbed'",
        "none of the choices", "did you mean as_described?"),
    "section as text": (
        "prefetcher: big", "prefetcher:\n  host_memory: 32MiB", 13, "prefetcher", "'big'", "a section", "disk"),
    "path as number": ("  target: 7", "  target: target", 3, "model.target", "7", "not a path", "write a path"),
    "broken YAML": ("  replan_every: [4", "  replan_every: 4", 17, "", "", "not valid YAML", "indentation"),
    "tab": ("\treplan_every: 4", "  replan_every: 4", 16, "", "", "not valid YAML", "indentation"),
    "alias of itself": (
        "  replan_every: &a [*a]", "  replan_every: 4", 16, "", "", "an alias that contains itself", "here"),
    "Python object": (
        "  replan_every: !!python/object:os.system {}", "  replan_every: 4", 16, "", "", "not valid YAML",
        "indentation"),
}  # fmt: skip


def error_of(tmp_path, text: str) -> ConfigError:
    file = tmp_path / "deployment.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_deployment(file)
    assert caught.value.file == file
    assert str(file) in str(caught.value)
    return caught.value


def test_without_mistakes_it_loads(tmp_path):
    file = tmp_path / "deployment.yaml"
    file.write_text(GOOD)
    assert load_deployment(file).name == "small"


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_with_its_place_and_remedy(tmp_path, mistake):
    written, instead_of, line, key, value, problem, remedy = MISTAKES[mistake]
    assert GOOD.count(instead_of) == 1
    error = error_of(tmp_path, GOOD.replace(instead_of, written))
    assert (error.line, error.key, error.value) == (line, key, value)
    assert problem in error.problem
    assert remedy in error.remedy
    assert f"line {line}" in str(error) and error.remedy in str(error)


def test_all_mistakes_are_reported_together_in_the_files_order(tmp_path):
    text = GOOD.replace("64MiB", "64").replace("replan_every", "replan_evry").replace("port: 50051", "port: 70000")
    error = error_of(tmp_path, text)
    assert [(p.line, p.key) for p in error.problems] == [
        (10, "devices[0].kv_memory"), (16, "scheduler.replan_evry"), (18, "service.port"),
    ]  # fmt: skip
    assert "3 problems" in str(error)


def test_a_misspelt_required_key_is_one_mistake(tmp_path):
    error = error_of(tmp_path, GOOD.replace("host_memory", "host_memroy"))
    assert [p.key for p in error.problems] == ["prefetcher.host_memroy"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is empty"),
        (b"# nothing\n", "is empty"),
        (b"- a\n- b\n", "should be a section"),
        (b"\xff\xfe", "not UTF-8"),
        (b"name: \x00\n", "not valid YAML"),
    ],
)
def test_files_that_are_no_deployment(tmp_path, content, problem):
    file = tmp_path / "deployment.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_deployment(file)
    assert problem in caught.value.problem and caught.value.remedy


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        load_deployment(tmp_path / "absent.yaml")
    with pytest.raises(ConfigError, match="is a folder"):
        load_deployment(tmp_path)


def test_the_error_travels_between_processes(tmp_path):
    error = error_of(tmp_path, GOOD.replace("64MiB", "64"))
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error) and again.problems == error.problems
