"""Rejection sampling through the engine: its law in closed form from recorded p and q, and 20,000 draws."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from goodness import p_value
from rejection_check import TOLERANCE, distance, first_token
from tiny_device import Rig, make_draft_of, make_store, reference_model, rig
from tiny_models import make_qwen3_moe
from tokenizers import Tokenizer

import moespac
from moespac.actors.core import DraftChoice, Sampling
from moespac.actors.policy import rejection, verification
from moespac.actors.policy.sampler import Sampler

BUNDLED = Path(moespac.__file__).parent / "configs" / "quickstart"
PROMPTS = Path(__file__).parents[1] / "data" / "prompts.json"
PROMPT = (5, 17, 100, 3, 250, 9, 33, 12, 77)
PENALTIES = {"repetition_penalty": 1.3, "presence_penalty": 0.5, "logit_bias": ((77, 1.0),)}
SETTINGS = {
    "plain": {"temperature": 1.0},
    "top_p": {"temperature": 0.7, "top_p": 0.9, "min_p": 0.01},
    "penalties": {"temperature": 1.2, "top_k": 50, **PENALTIES},
}
DRAWS = 20_000
LEVEL = 0.01 / (2 * len(SETTINGS))
"""Bonferroni: one per cent over all settings, two positions each."""


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def bundled(tmp_path_factory) -> Iterator[Rig]:
    store = make_store(BUNDLED / "target", tmp_path_factory.mktemp("bundled") / "store")
    with rig(BUNDLED / "target", store, BUNDLED / "draft", 2**30) as device:
        # Half of them: the self-draft, which uses residents only, is not the target then.
        every = device.shape.keys()
        device.make_resident([key for key in every if key.expert % 2])
        yield device


@pytest.mark.parametrize("options", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("kind", ["model", "ngram", "self"])
def test_the_law_of_recorded_steps_is_the_targets(bundled, monkeypatch, kind, options):
    recorded = []

    def record(draft, p, q, seed, position):
        recorded.extend(zip(p, q, strict=False))
        return rejection.accept_by_rejection(draft, p, q, seed, position)

    monkeypatch.setattr(verification, "accept_by_rejection", record)
    text = json.loads(PROMPTS.read_text(encoding="utf-8"))[0]
    prompt = Tokenizer.from_file(str(BUNDLED / "target" / "tokenizer.json")).encode(text * 2).ids
    done = bundled.generate(prompt, 24, 4, Sampling(seed=6, verification="rejection", **options), kind=kind)
    assert len(recorded) == sum(step.proposed for step in done.steps) >= 4
    assert max(distance(first_token(p, q), p) for p, q in recorded) < TOLERANCE
    for factor in (0.98, 1.02):
        assert max(distance(first_token(p, q, factor), p) for p, q in recorded) > 100 * TOLERANCE


@pytest.fixture(scope="module")
def target(tmp_path_factory) -> Path:
    # One layer: a step of it is short enough to be repeated 20,000 times.
    return make_qwen3_moe(tmp_path_factory.mktemp("models") / "target", num_hidden_layers=1)


@pytest.fixture(scope="module")
def tiny(target, tmp_path_factory) -> Iterator[Rig]:
    folder = tmp_path_factory.mktemp("tiny")
    draft = make_draft_of(target, folder / "draft", 0.1)
    with rig(target, make_store(target, folder / "store"), draft, 2**30) as device:
        device.make_resident(device.shape.keys())
        yield device


def _law(target: Path, tokens: tuple[int, ...], sampling: Sampling) -> np.ndarray:
    with torch.inference_mode():
        logits = reference_model(target)(torch.tensor([tokens])).logits[0, -1].numpy()
    return np.exp(Sampler(sampling, len(PROMPT)).log_probabilities(logits, tokens))


def _draw(device: Rig, sampling: Sampling, draws: int) -> list[tuple[int, ...]]:
    """What the first step after the prompt emits, under `draws` seeds."""
    session = device.open(PROMPT[:-1], 8, sampling)
    device.decoder.step(session, [], 512, device.new_pass())
    emitted = []
    for seed in range(draws):
        session.tokens[len(PROMPT) - 1 :] = [PROMPT[-1]]
        session.rollback()
        session.sampler = Sampler(replace(sampling, seed=seed), len(PROMPT))
        emitted.append(device.decoder.step(session, [DraftChoice("model", 2)], 512, device.new_pass()).emitted)
    return emitted


def _counts(tokens: list[int], vocab: int) -> np.ndarray:
    return np.bincount(tokens, minlength=vocab)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("options", SETTINGS.values(), ids=SETTINGS)
def test_draws_follow_the_target(tiny, target, options):
    """The first token of a step, and the second behind the most frequent first."""
    sampling = Sampling(verification="rejection", **options)
    law, emitted = _law(target, PROMPT, sampling), _draw(tiny, sampling, DRAWS)
    first = _counts([tokens[0] for tokens in emitted], len(law))
    assert p_value(first, law) > LEVEL
    often = int(np.argmax(_counts([tokens[0] for tokens in emitted if len(tokens) > 1], len(law))))
    second = [tokens[1] for tokens in emitted if len(tokens) > 1 and tokens[0] == often]
    assert len(second) > 500
    assert p_value(_counts(second, len(law)), _law(target, (*PROMPT, often), sampling)) > LEVEL


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_bias_of_twenty_per_cent_is_found(tiny, target, monkeypatch):
    honest = rejection.acceptance_probabilities
    monkeypatch.setattr(rejection, "acceptance_probabilities", lambda p, q: 0.8 * honest(p, q))
    sampling = Sampling(verification="rejection", **SETTINGS["plain"])
    law = _law(target, PROMPT, sampling)
    assert p_value(_counts([tokens[0] for tokens in _draw(tiny, sampling, DRAWS)], len(law)), law) < LEVEL
