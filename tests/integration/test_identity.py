"""Token identity: whatever computes where, and however many tokens are drafted, the reference's tokens come out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from placements import placed
from tiny_device import Rig, make_draft_of, make_store, reference_tokens
from tiny_models import make_deepseek_v2, make_qwen3_moe
from tokenizers import Tokenizer

import moespac
from moespac.actors.core import Sampling

GAMMAS = (0, 4, 8)
PLACEMENTS = ("hot", "cold", "mixed", "fallback", "streamed")
PROMPT = (5, 17, 100, 3, 250, 9, 33, 12, 77)
TOKENS = 24
BUNDLED = Path(moespac.__file__).parent / "configs" / "quickstart"
PROMPTS = Path(__file__).parents[1] / "data" / "prompts.json"


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=["qwen3_moe", "deepseek_v2"])
def models(request, tmp_path_factory) -> tuple[Path, Path, Path]:
    """Target, a draft that is right now and then, and the target's expert store."""
    folder = tmp_path_factory.mktemp(request.param)
    make = {"qwen3_moe": make_qwen3_moe, "deepseek_v2": make_deepseek_v2}[request.param]
    target = make(folder / "target")
    return target, make_draft_of(target, folder / "draft", 0.05), make_store(target, folder / "store")


@pytest.fixture(scope="module", params=PLACEMENTS)
def device(request, models) -> Iterator[Rig]:
    yield from placed(request.param, *models)


def _check_placement(device: Rig, done) -> None:
    calls = sum(run.expert_calls for run in done.passes)
    fallbacks = sum(run.fallback_experts for run in done.passes)
    every = len(device.shape.keys())
    if device.slots.slots >= every:
        assert done.hits == done.uses and calls == fallbacks == 0
    elif device.slots.slots:
        assert 0 < done.hits < done.uses and calls > 0 and fallbacks == 0
    else:
        assert done.hits == 0 and (calls == 0) == (fallbacks == done.uses)
    streamed = sum(run.streamed_experts for run in done.passes)
    if device.decoder.executor.staging is not None:
        assert 0 < streamed < done.uses - done.hits
        device.decoder.executor.staging.check_integrity()
    else:
        assert streamed == 0
    device.slots.check_integrity()


def test_greedy_equals_the_reference(models, device):
    """One γ here; all of them in the slow matrix."""
    done = device.generate(PROMPT, TOKENS, gamma=4, prefill_chunk=4)
    assert done.tokens == reference_tokens(models[0], PROMPT, TOKENS)
    assert 0 < done.accepted < sum(step.proposed for step in done.steps)
    _check_placement(device, done)


def test_sampled_tokens_do_not_depend_on_gamma_or_placement(models, device):
    sampling = Sampling(temperature=0.8, top_p=0.95, top_k=50, seed=7)
    done = device.generate(PROMPT, TOKENS, gamma=8, sampling=sampling)
    assert done.tokens == reference_tokens(models[0], PROMPT, TOKENS, sampling)
    assert done.accepted > 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize(
    "sampling",
    [Sampling(), Sampling(temperature=1.0, seed=1), Sampling(temperature=0.7, top_p=0.9, seed=2**40)],
    ids=["greedy", "sampled", "top_p"],
)
def test_whole_matrix(models, device, gamma, sampling):
    for prompt in (PROMPT, PROMPT[:1], tuple(range(3, 60))):
        done = device.generate(prompt, 48, gamma, sampling, prefill_chunk=16)
        assert done.tokens == reference_tokens(models[0], prompt, 48, sampling)


@pytest.fixture(scope="module")
def bundled(tmp_path_factory) -> tuple[Path, Path, Path]:
    target, draft = BUNDLED / "target", BUNDLED / "draft"
    return target, draft, make_store(target, tmp_path_factory.mktemp("bundled") / "store")


@pytest.fixture(scope="module")
def prompts(bundled) -> list[tuple[int, ...]]:
    """The committed prompts as the bundled target's tokens."""
    tokenizer = Tokenizer.from_file(str(bundled[0] / "tokenizer.json"))
    return [tuple(tokenizer.encode(text).ids) for text in json.loads(PROMPTS.read_text(encoding="utf-8"))]


def _check_bundled(bundled, placement: str, gamma: int, prompts: list[tuple[int, ...]], n: int) -> None:
    for device in placed(placement, *bundled):
        for prompt in prompts:
            done = device.generate(prompt, n, gamma)
            assert done.tokens == reference_tokens(bundled[0], prompt, n)
            assert gamma == 0 or any(step.proposed for step in done.steps)
        _check_placement(device, done)


@pytest.mark.parametrize(("placement", "gamma"), [("hot", 8), ("cold", 4), ("mixed", 4), ("mixed", 0), ("streamed", 4)])
def test_bundled_pair(bundled, prompts, placement, gamma):
    """Text and real acceptance: the models that users start with. All prompts and pairings in the slow matrix."""
    first = 5 * GAMMAS.index(gamma)
    _check_bundled(bundled, placement, gamma, prompts[first : first + 2], 32)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("placement", ["hot", "cold", "mixed", "streamed"])
def test_bundled_pair_whole(bundled, prompts, placement, gamma):
    _check_bundled(bundled, placement, gamma, prompts, 128)
