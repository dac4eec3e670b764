"""Drafts without a model: what followed the last time the same tokens stood there (prompt lookup).

Histories are searched whole, as arrays: 256 thousand tokens take less than 0.1 ms, and there is no index to keep in
step with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

SHORTEST, LONGEST = 2, 8
"""Tokens that must and that may agree; a single one agrees by chance too often."""
TRUSTED = 2
"""Tokens proposed at most for each that agrees: short matches are mostly chance, long ones go on."""
BOUNDARY = 2**32 - 1
"""Stands between the texts of a `History`; no token id."""
TOKEN_BYTES = 4


class Found(NamedTuple):
    """What followed where the same tokens stood before."""

    match: int = 0
    """How many agreed; 0: nothing was found."""
    tokens: tuple[int, ...] = ()


class Judgement(NamedTuple):
    """How good a `Found` was, proposed or not."""

    match: int = 0
    """Tokens that agreed; 0: nothing was found."""
    found: int = 0
    """Tokens that followed there."""
    stood: int = 0
    """Of those, the first that are also the first of what a step emitted."""
    emitted: int = 0
    """By that step: what was found beyond is not decided."""


class TokenArray:
    """A sequence of token ids that grows at its end; uint32."""

    def __init__(self, tokens: Sequence[int] = ()) -> None:
        self._held = np.array(tokens, dtype=np.uint32)
        self._length = len(self._held)

    def __len__(self) -> int:
        return self._length

    def extend(self, tokens: Sequence[int]) -> None:
        length = self._length + len(tokens)
        if length > len(self._held):
            held = np.empty(2 * length, dtype=np.uint32)
            held[: self._length] = self._held[: self._length]
            self._held = held
        self._held[self._length : length] = tokens
        self._length = length

    def view(self) -> np.ndarray:
        """uint32 [length]; to be read before the next `extend`."""
        return self._held[: self._length]


class History:
    """Texts of earlier requests, the newest ones that fit in `memory_bytes`. Never takes more; 0 keeps none."""

    def __init__(self, memory_bytes: int) -> None:
        if memory_bytes < 0:
            raise ValueError(f"memory_bytes is {memory_bytes}; expected 0 or more")
        self._held = np.full(memory_bytes // TOKEN_BYTES, BOUNDARY, dtype=np.uint32)
        self._length = 0

    def remember(self, tokens: Sequence[int]) -> None:
        """Adds a text; of one longer than the memory its end, and of older ones what still fits."""
        room = len(self._held) - 1
        added = np.array(tokens, dtype=np.uint32)[-room:] if room > 0 else np.empty(0, dtype=np.uint32)
        if len(added) < SHORTEST:
            return
        kept = min(self._length, room - len(added))
        self._held[:kept] = self._held[self._length - kept : self._length].copy()
        self._held[kept : kept + len(added)] = added
        self._held[kept + len(added)] = BOUNDARY
        self._length = kept + len(added) + 1

    def view(self) -> np.ndarray:
        """uint32: text, BOUNDARY, text, BOUNDARY …; of the first its end only."""
        return self._held[: self._length]


def continuation(own: np.ndarray, history: np.ndarray, count: int) -> Found:
    """At most `count` tokens to follow `own`, uint32: those that followed its longest suffix found earlier.

    Suffixes of SHORTEST to LONGEST tokens are looked for in `own` itself and in `history` (`History.view`); of equally
    long ones the latest counts, and `own` before `history`. A suffix of n tokens yields TRUSTED · n at most. What
    overlaps the end of `own` is repeated: a text that goes round goes on so. Empty where nothing is found.
    """
    if count < 1:
        return Found()
    here, there = latest_suffix(own, own), latest_suffix(history, own)
    longest = max(here[0], there[0])
    if longest < SHORTEST:
        return Found()
    count = min(count, TRUSTED * longest)
    if here[0] >= there[0]:
        followed = own[here[1] :]
        # Beyond the end stands what is being copied: the period is the length of what followed.
        return Found(longest, tuple(np.resize(followed, count).tolist()))
    followed = history[there[1] : there[1] + count]
    ends = np.flatnonzero(followed == BOUNDARY)
    tokens = tuple(followed[: ends[0] if len(ends) else count].tolist())
    return Found(longest, tokens) if tokens else Found()


def judge(found: Found, emitted: Sequence[int]) -> Judgement:
    """`emitted`: what a step decided to follow the text `found` continues, whoever drafted it."""
    pairs = enumerate(zip(found.tokens, emitted, strict=False))
    stood = next((at for at, (one, other) in pairs if one != other), min(len(found.tokens), len(emitted)))
    return Judgement(found.match, len(found.tokens), stood, len(emitted))


def latest_suffix(text: np.ndarray, own: np.ndarray) -> tuple[int, int]:
    """Length of the longest suffix of `own` that ends in `text` before its last token, and where it ends latest.

    (0, 0) if not even the last token of `own` is found.
    """
    longest, after = 0, 0
    found = np.flatnonzero(text[:-1] == own[-1]) + 1 if len(own) else np.empty(0, dtype=np.intp)
    while len(found):
        longest, after = longest + 1, int(found[-1])
        if longest == min(LONGEST, len(own)):
            break
        found = found[found > longest]
        found = found[text[found - 1 - longest] == own[-1 - longest]]
    return longest, after
