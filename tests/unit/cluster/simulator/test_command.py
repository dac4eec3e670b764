"""`moespac simulate`: what it prints and writes, and its errors."""

import json
from xml.etree import ElementTree

import pytest
from simulated import hardware, random_ids, run, write_hardware, write_trace
from typer.testing import CliRunner

from moespac.cluster.cli import app
from moespac.cluster.simulator import paper
from moespac.cluster.simulator.command import BadRequest, progress
from moespac.cluster.simulator.picture import UnwritablePicture
from moespac.cluster.simulator.run import Case, without_irrelevant
from moespac.cluster.simulator.traces import BadTrace


@pytest.fixture
def files(tmp_path):
    """A trace with two sequences and a hardware file."""
    trace = write_trace(tmp_path / "t.npz", random_ids(20, 3, 6, 2), 6, offsets=[0, 12, 20])
    return trace, write_hardware(tmp_path / "h.yaml")


def invoke(*arguments):
    return CliRunner().invoke(app, ["simulate", *map(str, arguments)])


def test_json_of_policies_and_ratios(files, tmp_path):
    trace, machine = files
    result = invoke(
        "--trace", trace, "--policy", "llama.cpp, moespac", "--hardware", machine, "--window", 4,
        "--cache-ratio", 0.2, "--cache-ratio", 0.5, "--json", "--picture", tmp_path / "p.svg",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    runs = json.loads(result.stdout.splitlines()[-1])["runs"]
    assert [(r["policy"], r["cache_ratio"]) for r in runs] == [
        (policy, ratio) for ratio in (0.2, 0.5) for policy in ("llama.cpp", "moespac")
    ]
    expected = run(trace, "moespac", hardware(), 0.5, gamma=3).summary()
    assert {key: runs[3][key] for key in expected} == expected
    picture = ElementTree.parse(tmp_path / "p.svg")
    texts = [element.text for element in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert "llama.cpp" in texts and "cache 50%" in texts and f"{runs[3]['tokens_per_s']:.1f}" in texts


def test_a_table_without_json(files):
    trace, machine = files
    result = invoke("--trace", trace, "--policy", "fiddler", "--hardware", machine)
    assert result.exit_code == 0 and "fiddler" in result.stdout and "useful" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--policy", "lru"], "--policy: policy 'lru' is unknown; choose among"),
        (["--policy", ","], "--policy names no policy"),
        (["--window", 0], "--window is 0; give 1"),
        (["--tokens", -1], "--tokens is -1"),
        (["--cache-ratio", 1.5], r"--cache-ratio is 1\.5; give a share"),
        (["--drafts", "psychic"], "--drafts is 'psychic'; give rate or ngram"),
    ],
)
def test_bad_options(files, arguments, message):
    result = invoke("--trace", files[0], *arguments)
    assert isinstance(result.exception, BadRequest)
    with pytest.raises(BadRequest, match=message):
        raise result.exception


def test_other_bad_input(files, tmp_path):
    trace, machine = files
    assert isinstance(invoke("--policy", "fiddler").exception, BadRequest)
    assert isinstance(invoke("--trace", tmp_path / "absent.npz").exception, BadTrace)
    assert isinstance(invoke("--trace", trace, "--drafts", "ngram").exception, BadTrace)
    png = invoke("--trace", trace, "--policy", "fiddler", "--hardware", machine, "--picture", tmp_path / "p.png")
    assert isinstance(png.exception, UnwritablePicture)
    with pytest.raises(BadTrace, match="no trace of at least 1000 tokens among 1"):
        paper.paper_traces([trace])


def test_equal_runs_are_recognised(files):
    base = hardware()
    other = base.with_value("remote.call", 1.0).with_value("speculation.acceptance", 0.9)
    assert without_irrelevant(Case(files[0], "fiddler", other, 0.5), base).hardware == base
    own = without_irrelevant(Case(files[0], "moespac", other, 0.5), base).hardware
    assert own.value("remote.call") == 1.0 and own.value("speculation.acceptance") == 0.9


def test_the_papers_comparison(files, monkeypatch):
    monkeypatch.setattr(paper, "ACCEPTANCES", (0.5,))
    monkeypatch.setattr(paper, "sweep", lambda cases, done: [run_case(case) for case in cases])
    result = paper.compare([files[0]], hardware(), 10, progress)
    assert all(result[key] > 0 for key in paper.KEYS)
    assert result["by_acceptance"]["0.5"] == result["nominal_on_fewer_tokens"]
    assert len(result["tokens_per_s"]) == 13
    assert {table.row_count for table in paper.paper_tables(result)} == {13, 3}


def run_case(case):
    return run(case.trace, case.policy, case.hardware, case.cache_ratio, gamma=case.gamma, most_tokens=case.most_tokens)
