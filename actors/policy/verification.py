"""One verification: the target's logits of a window against the draft."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..core import Proposal
from .acceptance import Acceptance, accept
from .rejection import accept_by_rejection, point_mass
from .sampler import Sampler


def verify(sampler: Sampler, tokens: Sequence[int], proposal: Proposal, logits: np.ndarray) -> Acceptance:
    """What to emit after `tokens`, given a draft of γ tokens to follow them.

    `logits`: the target's, float [γ+1, vocab]; row i follows `tokens` and the first i drafts. Raises ValueError when
    the lengths do not fit.
    """
    draft = proposal.tokens
    if len(logits) != len(draft) + 1:
        raise ValueError(f"{len(logits)} rows of logits; a draft of {len(draft)} needs {len(draft) + 1}")
    known = len(tokens)
    whole = np.array([*tokens, *draft], dtype=np.int64)
    sampling = sampler.sampling
    if sampling.greedy or sampling.verification == "coupled" or not draft:
        return accept(draft, lambda i: sampler.choose(logits[i], whole[: known + i]))
    p, q = step_distributions(sampler, whole, proposal, logits)
    return accept_by_rejection(draft, p, q, sampling.seed, known)


def step_distributions(
    sampler: Sampler, whole: Sequence[int], proposal: Proposal, logits: np.ndarray
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """p of the γ+1 rows and q of the γ drafts, float64 [vocab] each, under the same transforms.

    `whole`: the tokens before the draft, then the draft.
    """
    known = len(whole) - len(proposal.tokens)
    p = [np.exp(sampler.log_probabilities(row, whole[: known + i])) for i, row in enumerate(logits)]
    if proposal.logits is None:
        return p, [point_mass(token, len(p[0])) for token in proposal.tokens]
    q = [np.exp(sampler.log_probabilities(row, whole[: known + i])) for i, row in enumerate(proposal.logits)]
    return p, q
