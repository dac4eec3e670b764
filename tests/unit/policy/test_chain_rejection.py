"""Rejection sampling stays exact where a draft ends itself: by what it drew, never leaving out what it drew."""

from __future__ import annotations

import numpy as np
import pytest
from goodness import p_value

from moespac.actors.core import DraftChoice, Proposal, Sampling
from moespac.actors.policy.chain import EDGES, PLACES, Chain
from moespac.actors.policy.sampler import Sampler
from moespac.actors.policy.verification import verify

VOCAB, PROMPT, DRAWS = 4, [0], 6000
TARGET = np.log(
    np.array([[0.4, 0.3, 0.2, 0.1], [0.1, 0.6, 0.1, 0.2], [0.25, 0.25, 0.25, 0.25], [0.05, 0.05, 0.2, 0.7]])
)
DRAFT = np.log([[0.7, 0.1, 0.1, 0.1], [0.3, 0.3, 0.2, 0.2], [0.1, 0.1, 0.75, 0.05], [0.2, 0.2, 0.3, 0.3]])
"""Logits by the last token. The first draft token is sure where it is 0, and only then is another one wanted."""
ENDING = DraftChoice("model", 2, chances=tuple(float(e >= 0.5) for e in (0.0, *EDGES, 0.0)), floors=(0.0, 0.5))


def drafted(sampler: Sampler, leave_out: bool) -> Proposal:
    chain, whole, rows = Chain(ENDING, 9), list(PROMPT), []
    while chain.wants_more():
        rows.append(DRAFT[whole[-1]])
        token, confidence = sampler.draw(rows[-1], whole)
        whole.append(token)
        chain.add(confidence)
    if leave_out and not ENDING.chances[chain.places[-1]]:
        rows.pop()
    return Proposal(tuple(whole[1 : 1 + len(rows)]), tuple(rows))


def two_tokens(seed: int, leave_out: bool) -> int:
    """The first two tokens of a request, as one number."""
    sampler, tokens = Sampler(Sampling(1.0, seed=seed, verification="rejection"), 1), list(PROMPT)
    proposal = drafted(sampler.drafting(1), leave_out)
    logits = np.stack([TARGET[token] for token in (0, *proposal.tokens)])
    tokens += verify(sampler, tokens, proposal, logits).emitted
    while len(tokens) < 3:
        tokens += verify(sampler, tokens, Proposal(), TARGET[tokens[-1]][None]).emitted
    return VOCAB * tokens[1] + tokens[2]


@pytest.mark.parametrize(("leave_out", "exact"), [(False, True), (True, False)])
def test_two_tokens_follow_the_target(leave_out, exact):
    """The control leaves out the last token where the draft is not sure of it, which bears on what is left."""
    assert len(ENDING.chances) == PLACES
    first = np.exp(TARGET[0])
    law = (first[:, None] * np.exp(TARGET)).ravel()
    drawn = np.bincount([two_tokens(seed, leave_out) for seed in range(DRAWS)], minlength=VOCAB**2)
    assert (p_value(drawn, law) > 0.01) == exact
