"""Coupled sampling through the engine is direct sampling with the same seed, token for token, with all transforms."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_device import Rig, make_draft_of, make_store, reference_model, reference_tokens, rig
from tiny_models import make_qwen3_moe

from moespac.actors.core import DraftChoice, Sampling

GAMMAS = (1, 4, 8)
TEMPERATURES = (0.5, 0.9, 1.3)
PROMPT = (5, 17, 100, 3, 250, 9, 33, 12, 77)
TOKENS = 32
LIMITS = {
    "top_p": {"top_p": 0.9},
    "penalties": {"repetition_penalty": 1.3, "presence_penalty": 0.4, "frequency_penalty": 0.3},
    "everything": {
        "top_p": 0.95,
        "top_k": 60,
        "min_p": 0.01,
        "repetition_penalty": 1.2,
        "presence_penalty": -0.2,
        "frequency_penalty": 0.5,
        "logit_bias": ((77, 1.5), (3, -1e4)),
    },
}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def target(tmp_path_factory) -> Path:
    return make_qwen3_moe(tmp_path_factory.mktemp("models") / "target")


@pytest.fixture(scope="module")
def device(target, tmp_path_factory) -> Iterator[Rig]:
    folder = tmp_path_factory.mktemp("device")
    draft = make_draft_of(target, folder / "draft", 0.05)
    with rig(target, make_store(target, folder / "store"), draft) as device:
        yield device


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS)
@pytest.mark.parametrize("gamma", GAMMAS)
def test_tokens_are_those_of_direct_sampling(device, target, gamma, limits, temperature):
    sampling = Sampling(temperature, seed=2**40 + gamma, **limits)
    done = device.generate(PROMPT, TOKENS, gamma, sampling)
    assert done.tokens == reference_tokens(target, PROMPT, TOKENS, sampling)
    assert done.accepted > 0


@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS)
def test_greedy_with_penalties_and_bias(device, target, limits):
    sampling = Sampling(**limits)
    assert device.generate(PROMPT, TOKENS, 4, sampling).tokens == reference_tokens(target, PROMPT, TOKENS, sampling)


def test_the_transforms_change_what_is_said(target):
    """Else the tests above would say nothing of them."""
    said = [
        reference_tokens(target, PROMPT, TOKENS, Sampling(0.9, seed=1, **limits)) for limits in ({}, *LIMITS.values())
    ]
    assert len(set(map(tuple, said))) == len(said)


def test_a_request_taken_up_again_is_penalised_for_its_own_output_only(device, target):
    """Presence and frequency count the output, which is in the resumed session's tokens from the start."""
    sampling = Sampling(0.9, seed=4, presence_penalty=1.5, frequency_penalty=0.7)
    whole = reference_tokens(target, PROMPT, TOKENS, sampling)
    for emitted in (1, 7, 20):
        tokens = [*PROMPT, *whole[:emitted]]
        session = device.decoder.open("resumed", tokens, 128, sampling, prompt_tokens=len(PROMPT))
        while len(session.tokens) < len(PROMPT) + TOKENS:
            device.decoder.step(session, [DraftChoice("model", 4)], 512, device.new_pass())
        assert session.tokens[len(PROMPT) :][:TOKENS] == whole


def test_log_probabilities_are_the_models_own(device, target):
    """Whatever was drawn from, and whether a token was a draft or the target's own."""
    sampling = replace(Sampling(0.7, seed=9), **LIMITS["everything"])
    session = device.decoder.open("r", PROMPT, 128, sampling, logprobs=3)
    reported, proposed, accepted = [], 0, 0
    while len(session.tokens) < len(PROMPT) + TOKENS:
        step = device.decoder.step(session, [DraftChoice("model", 4)], 4, device.new_pass())
        assert [entry.token for entry in step.logprobs] == list(step.emitted)
        reported += step.logprobs
        proposed, accepted = proposed + step.proposed, accepted + step.accepted
    assert 0 < accepted < proposed
    with torch.inference_mode():
        logits = reference_model(target)(torch.tensor([session.tokens])).logits[0, len(PROMPT) - 1 : -1]
    expected = logits.double().log_softmax(-1)
    for entry, row in zip(reported, expected, strict=True):
        assert entry.logprob == pytest.approx(float(row[entry.token]), abs=1e-4)
        best = torch.topk(row, 3)
        assert [token for token, _ in entry.top] == best.indices.tolist()
        np.testing.assert_allclose([logprob for _, logprob in entry.top], best.values.numpy(), atol=1e-4)


@pytest.mark.parametrize("gamma", [0, 8])
def test_the_context_can_be_filled_to_its_last_token(device, target, gamma):
    limit = device.decoder.target.context_length
    prompt, n = tuple(range(20, 220)), limit - 200
    done = device.generate(prompt, n, gamma, Sampling(0.9, seed=3))
    assert done.tokens == reference_tokens(target, prompt, n, Sampling(0.9, seed=3))
