"""Whoever drafts, and however many tokens: the reference's tokens come out."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from placements import placed
from tiny_device import Rig, make_draft_of, make_store, reference_tokens
from tiny_models import make_deepseek_v2, make_qwen3_moe
from tokenizers import Tokenizer

import moespac
from moespac.actors.core import DRAFT_KINDS, DraftChoice, Sampling
from moespac.actors.policy.chain import PLACES
from moespac.actors.policy.drafting_facts import RequestDrafts, StepSeen
from moespac.actors.policy.governor import Governor

PROMPT = (5, 17, 100, 3, 250, 9, 33, 12, 5, 17, 100, 3)
"""It ends as it began, so that n-grams find something."""
TOKENS = 32
SAMPLED = Sampling(temperature=0.7, top_p=0.9, seed=2**33)
TURNS = ([("model", 3)], [], [("ngram", 4), ("self", 2)], [("self", 8)], [("model", 8)], [("ngram", 2), ("model", 1)])
ENDING = {"chances": tuple(np.linspace(0.3, 0.9, PLACES)), "floors": (0.0, 0.3, 0.2, 0.1)}
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


@pytest.fixture(scope="module", params=["mixed", "cold"])
def device(request, models) -> Iterator[Rig]:
    yield from placed(request.param, *models)


@pytest.mark.parametrize("kind", DRAFT_KINDS)
@pytest.mark.parametrize("gamma", [1, 4, 8])
@pytest.mark.parametrize("sampling", [Sampling(), SAMPLED], ids=["greedy", "sampled"])
def test_every_kind_gives_the_references_tokens(models, device, kind, gamma, sampling):
    done = device.generate(PROMPT, TOKENS, gamma, sampling, kind=kind)
    assert done.tokens == reference_tokens(models[0], PROMPT, TOKENS, sampling)
    assert {step.draft_kind for step in done.steps if step.proposed} == {kind}


@pytest.mark.parametrize("ends", [{}, ENDING], ids=["given", "ending"])
def test_kinds_that_take_turns_give_them_too(models, device, ends):
    """A step may have any draft, whatever the caches of the others hold and wherever it ends itself."""
    turns = itertools.cycle(TURNS)
    kinds = set()
    for sampling in (Sampling(), SAMPLED):
        session = device.open(PROMPT, TOKENS, sampling)
        while len(session.tokens) < len(PROMPT) + TOKENS:
            room = len(PROMPT) + TOKENS - len(session.tokens) - 1
            choices = [DraftChoice(kind, min(gamma, room), **ends) for kind, gamma in next(turns)]
            kinds.add(device.decoder.step(session, choices, 512, device.new_pass()).draft_kind)
        assert session.tokens[len(PROMPT) :] == reference_tokens(models[0], PROMPT, TOKENS, sampling)
    assert kinds == {"", *DRAFT_KINDS}


def test_a_restart_in_the_middle_changes_nothing(models, device):
    """Caches, texts and what the governor knew are gone: the same tokens follow."""
    whole = reference_tokens(models[0], PROMPT, TOKENS, SAMPLED)
    for kept in (1, 9, 20):
        tokens = _governed(device, (*PROMPT, *whole[:kept]), TOKENS - kept, SAMPLED)
        assert tokens == whole[kept:]


def _governed(device: Rig, prompt: tuple[int, ...], n: int, sampling: Sampling) -> list[int]:
    governor, request, session = (
        Governor(tuple(device.decoder.drafts)),
        RequestDrafts(),
        device.open(prompt, n, sampling),
    )
    while len(session.tokens) < len(prompt) + n:
        decision = governor.decide(request, len(prompt) + n - len(session.tokens))
        run = device.new_pass()
        step = device.decoder.step(session, decision.choices, 512, run)
        if not step.prefill:
            seconds = (step.draft_s, step.draft_s + step.verify_s)
            drafted = (step.draft_kind, step.proposed, step.accepted)
            seen = StepSeen(*drafted, *seconds, places=step.places, ngrams=step.ngrams)
            governor.observe(request, decision, seen)
    return session.tokens[len(prompt) :]


@pytest.fixture(scope="module")
def bundled(tmp_path_factory) -> tuple[Path, Path, Path]:
    target, draft = BUNDLED / "target", BUNDLED / "draft"
    return target, draft, make_store(target, tmp_path_factory.mktemp("bundled") / "store")


@pytest.fixture(scope="module")
def prompts(bundled) -> list[tuple[int, ...]]:
    """The committed prompts as the bundled target's tokens."""
    tokenizer = Tokenizer.from_file(str(bundled[0] / "tokenizer.json"))
    return [tuple(tokenizer.encode(text).ids) for text in json.loads(PROMPTS.read_text(encoding="utf-8"))]


def _check_bundled(bundled, placement: str, kind: str, gamma: int, prompts: list[tuple[int, ...]], n: int) -> None:
    for device in placed(placement, *bundled):
        accepted = 0
        for prompt in prompts:
            done = device.generate(prompt, n, gamma, kind=kind)
            assert done.tokens == reference_tokens(bundled[0], prompt, n)
            accepted += done.accepted
        assert accepted > 0


@pytest.mark.parametrize(
    ("kind", "placement", "gamma"), [("ngram", "cold", 8), ("self", "mixed", 4), ("self", "hot", 8)]
)
def test_bundled_target(bundled, prompts, kind, placement, gamma):
    """Text and real acceptance; the draft model's turn is in `test_identity.py`. All of it in the slow matrix."""
    _check_bundled(bundled, placement, kind, gamma, prompts[7:9], 32)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("gamma", [4, 8])
@pytest.mark.parametrize("placement", ["hot", "cold", "mixed"])
@pytest.mark.parametrize("kind", ["ngram", "self"])
def test_bundled_target_whole(bundled, prompts, kind, placement, gamma):
    _check_bundled(bundled, placement, kind, gamma, prompts, 128)
