"""Bias and penalties: transformers' rules where it has them, OpenAI's where it does not."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import RepetitionPenaltyLogitsProcessor, SequenceBiasLogitsProcessor

from moespac.actors.core import Sampling
from moespac.actors.policy.penalties import penalise

VOCAB = 12
tokens = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=20)
rows = st.lists(st.floats(-9, 9, width=32), min_size=VOCAB, max_size=VOCAB).map(lambda row: np.array(row, np.float32))
biases = st.dictionaries(st.integers(0, VOCAB - 1), st.floats(-5, 5).filter(bool), max_size=4)


@given(rows, tokens, biases, st.floats(0.25, 4))
def test_bias_and_repetition_penalty_are_transformers(logits, before, bias, repetition):
    ids, scores = torch.tensor([before]), torch.from_numpy(logits).double()[None]
    if bias:
        processor = SequenceBiasLogitsProcessor([[[token], value] for token, value in bias.items()])
        scores = scores + processor(ids, torch.zeros_like(scores))
    if repetition != 1.0:
        scores = RepetitionPenaltyLogitsProcessor(repetition)(ids, scores)
    sampling = Sampling(repetition_penalty=repetition, logit_bias=tuple(bias.items()))
    ours = penalise(logits, sampling, before, prompt_tokens=len(before))
    np.testing.assert_allclose(ours, scores[0].numpy(), rtol=1e-5, atol=1e-5)


@given(rows, tokens, st.data(), st.floats(-2, 2), st.floats(-2, 2))
def test_presence_and_frequency_count_the_output_only(logits, before, data, presence, frequency):
    prompt = data.draw(st.integers(0, len(before)))
    ours = penalise(logits, Sampling(presence_penalty=presence, frequency_penalty=frequency), before, prompt)
    output = before[prompt:]
    for token in range(VOCAB):
        count = output.count(token)
        expected = float(logits[token]) - (presence * (count > 0) + frequency * count)
        assert ours[token] == pytest.approx(expected, abs=1e-12)


def test_without_any_the_logits_are_untouched_and_with_some_copied():
    logits = np.arange(4, dtype=np.float32)
    assert penalise(logits, Sampling(temperature=0.5), [1], 0) is logits
    penalise(logits, Sampling(presence_penalty=1.0, logit_bias=((0, 5.0),)), [1], 0)
    assert logits.tolist() == [0, 1, 2, 3]


def test_repetition_penalty_follows_bias():
    # −1 + 3 = 2, then halved; the other way round it would be −2 + 3 = 1.
    scores = penalise(np.array([-1.0, 0.0]), Sampling(repetition_penalty=2.0, logit_bias=((0, 3.0),)), [0], 1)
    assert scores.tolist() == [1.0, 0.0]


@given(st.lists(st.floats(0, 3), min_size=2, max_size=5, unique=True).map(sorted))
def test_a_larger_penalty_never_raises_a_seen_token(penalties):
    logits = np.array([1.0, -1.0, 2.0])
    scores = [penalise(logits, Sampling(presence_penalty=p, frequency_penalty=p), [0, 2, 2], 1) for p in penalties]
    assert all(b[2] <= a[2] and b[0] == a[0] for a, b in pairwise(scores))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0"),
        ({"repetition_penalty": float("inf")}, "repetition_penalty is inf"),
        ({"presence_penalty": float("nan")}, "presence_penalty is nan"),
        ({"frequency_penalty": float("-inf")}, "frequency_penalty is -inf"),
        ({"logit_bias": ((1, float("inf")),)}, "logit_bias of token 1"),
        ({"logit_bias": ((4, 1.0),)}, "logit_bias has tokens 4 to 4; the vocabulary has 4"),
    ],
)
def test_invalid_parameters_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        penalise(np.zeros(4), Sampling(**changed), [1], 0)
    with pytest.raises(ValueError, match="tokens has tokens 1 to 7"):
        penalise(np.zeros(4), Sampling(presence_penalty=1.0), [1, 7], 0)
