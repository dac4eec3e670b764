"""Which draft tokens stand, for traces that hold the accepted path alone.

A trace says nothing of tokens that were drafted and rejected. From the first rejection on, a window's routing is
therefore a run of consecutive tokens from another place of the same sequence: the same text's experts with a token's
usual likeness to its neighbours, but not the coming tokens' own. Every choice is a function of seed, sequence and
position, so all policies and draft lengths meet the same drafts.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ...actors.policy.chain import LONGEST
from ...actors.policy.ngram import Found, continuation, latest_suffix
from .traces import Sequence


def routing_counts(ids: np.ndarray, n_experts: int) -> np.ndarray:
    """Pairs routed to each expert, int64 [layers, n_experts], of `ids` [tokens, layers, k]."""
    layers = ids.shape[1]
    flat = ids + np.arange(layers)[None, :, None] * n_experts
    return np.bincount(flat.ravel(), minlength=layers * n_experts).reshape(layers, n_experts)


NO_HISTORY = np.empty(0, dtype=np.uint32)
"""Texts before the sequence's own."""


@dataclass(frozen=True)
class Window:
    """The tokens of one verification: the last emitted one, then the draft."""

    ids: np.ndarray
    """int64 [W, layers, k]; of rejected tokens assumed."""
    token_ids: tuple[int, ...]
    """W token ids; empty where the trace has no strings."""
    accepted: int
    """Draft tokens that stand; the step emits one more."""

    @property
    def tokens(self) -> int:
        return len(self.ids)

    def counts(self, n_experts: int) -> np.ndarray:
        """Pairs routed to each expert, int64 [layers, n_experts]."""
        return routing_counts(self.ids, n_experts)


class Drafting(Protocol):
    """Drafts of a sequence; `at`: position of the last emitted token."""

    def __call__(self, sequence: Sequence, at: int, gamma: int) -> Window:
        """The window with at most `gamma` tokens; it never passes the sequence's end."""

    def look_up(self, sequence: Sequence, at: int) -> Found:
        """What n-grams find, at most LONGEST tokens; nothing where the drafts are none."""


class RateAcceptance:
    """Each draft token stands with probability `rate`, given that those before it do."""

    def __init__(self, rate: float, seed: int = 0) -> None:
        if not 0.0 <= rate <= 1.0:
            raise ValueError(f"acceptance rate is {rate}; expected 0 to 1")
        self._rate, self._seed = rate, seed
        self._drawn: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def __call__(self, sequence: Sequence, at: int, gamma: int) -> Window:
        stands, elsewhere = self._draws(sequence)
        gamma = min(gamma, len(sequence.ids) - 1 - at)
        refused = np.flatnonzero(stands[at + 1 : at + 1 + gamma] >= self._rate)
        accepted = int(refused[0]) if len(refused) else gamma
        return _window(sequence, at, accepted, _run(len(sequence.ids), at, gamma, accepted, elsewhere[at]))

    def look_up(self, sequence: Sequence, at: int) -> Found:
        return Found()

    def _draws(self, sequence: Sequence) -> tuple[np.ndarray, np.ndarray]:
        if sequence.name not in self._drawn:
            random = np.random.default_rng((self._seed, zlib.crc32(sequence.name.encode())))
            self._drawn[sequence.name] = random.random(len(sequence.ids)), random.random(len(sequence.ids))
        return self._drawn[sequence.name]


class NgramReplay:
    """Prompt lookup on the trace's tokens, as the engine's: `policy/ngram.py`.

    Accepted is what agrees with the trace. Where the place copied from was generated too, its routing is that of
    the rejected tokens; a copy from the prompt takes a run from elsewhere.
    """

    def __init__(self) -> None:
        self._held: tuple[Sequence | None, np.ndarray] = None, NO_HISTORY

    def __call__(self, sequence: Sequence, at: int, gamma: int) -> Window:
        text, now = self._text(sequence), len(sequence.prompt_ids) + at
        _, after = latest_suffix(text[: now + 1], text[: now + 1])
        found = continuation(text[: now + 1], NO_HISTORY, min(gamma, len(sequence.ids) - 1 - at))
        draft, gamma = found.tokens, len(found.tokens)
        accepted = 0
        while accepted < gamma and draft[accepted] == text[now + 1 + accepted]:
            accepted += 1
        copied = np.resize(np.arange(after, now + 1), gamma)[accepted:] - len(sequence.prompt_ids)
        if (copied < 0).any():
            copied = _run(len(sequence.ids), at, gamma, accepted, 0.5)
        window = _window(sequence, at, accepted, copied)
        return Window(window.ids, (int(text[now]), *draft), accepted)

    def look_up(self, sequence: Sequence, at: int) -> Found:
        return continuation(self._text(sequence)[: len(sequence.prompt_ids) + at + 1], NO_HISTORY, LONGEST)

    def _text(self, sequence: Sequence) -> np.ndarray:
        """Prompt and output; uint32."""
        if not sequence.token_ids:
            raise ValueError(f"sequence {sequence.name!r} has no token strings; n-gram replay needs them")
        if sequence is not self._held[0]:
            self._held = sequence, np.array(sequence.prompt_ids + sequence.token_ids, dtype=np.uint32)
        return self._held[1]


def _run(length: int, at: int, gamma: int, accepted: int, where: float) -> np.ndarray:
    """Positions of a run as long as the rejected part, away from the window where the sequence is long enough."""
    size = gamma - accepted
    starts = length - size + 1
    start = int(where * starts)
    if start < at + 1 + gamma and start + size > at:
        start = (start + length // 2) % starts
    return np.arange(start, start + size)


def _window(sequence: Sequence, at: int, accepted: int, rejected: np.ndarray) -> Window:
    rows = np.concatenate([np.arange(at, at + 1 + accepted), rejected])
    tokens = tuple(sequence.token_ids[i] for i in rows) if sequence.token_ids else ()
    return Window(sequence.ids[rows], tokens, accepted)
