"""N-gram drafts against a search that compares token by token."""

from __future__ import annotations

import time

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from moespac.actors.policy.ngram import (
    BOUNDARY,
    LONGEST,
    SHORTEST,
    TOKEN_BYTES,
    TRUSTED,
    Found,
    History,
    Judgement,
    TokenArray,
    continuation,
    judge,
)

FEW = st.integers(0, 3)
"""Few different tokens, so that repetitions are common."""
TEXT = st.lists(FEW, max_size=40)


def naive(own: list[int], history: list[int], count: int) -> Found:
    for length in range(min(LONGEST, len(own)), SHORTEST - 1, -1):
        suffix = own[len(own) - length :]
        for text in (own, history):
            for end in range(len(text) - 1, length - 1, -1):
                if text[end - length : end] == suffix:
                    copied, proposal = list(text), []
                    while len(proposal) < min(count, TRUSTED * length):
                        if text is history and (end >= len(text) or text[end] == BOUNDARY):
                            break
                        proposal.append(copied[end])
                        copied.append(copied[end])
                        end += 1
                    return Found(length, tuple(proposal)) if proposal else Found()
    return Found()


def array(tokens: list[int]) -> np.ndarray:
    return np.array(tokens, dtype=np.uint32)


@given(TEXT, st.lists(st.lists(FEW, min_size=2, max_size=12), max_size=4), st.integers(0, 12))
def test_it_finds_what_a_naive_search_finds(own, texts, count):
    history = [token for text in texts for token in (*text, BOUNDARY)]
    assert continuation(array(own), array(history), count) == naive(own, history, count)


@given(st.lists(st.lists(FEW, max_size=12), max_size=8), st.integers(0, 25))
def test_history_keeps_the_newest_texts_within_its_memory(texts, capacity):
    history = History(capacity * TOKEN_BYTES + 3)
    for text in texts:
        history.remember(text)
        assert len(history.view()) <= capacity
    everything = [token for text in texts if len(text) >= SHORTEST for token in (*text, BOUNDARY)]
    held = history.view().tolist()
    assert held == everything[len(everything) - len(held) :]
    last = next((text for text in reversed(texts) if len(text) >= SHORTEST), [])
    if len(last) < capacity:
        assert held[-len(last) - 1 : -1] == last


@given(st.lists(TEXT, max_size=6))
def test_an_array_grows_at_its_end(parts):
    grown, whole = TokenArray(), []
    for part in parts:
        grown.extend(part)
        whole += part
        assert grown.view().tolist() == whole and len(grown) == len(whole)


def test_a_text_that_goes_round_goes_on():
    assert continuation(array([7, 1, 2, 3, 1, 2, 3]), array([]), 7) == Found(3, (1, 2, 3, 1, 2, 3))


def test_the_longer_match_wins_and_one_token_is_none():
    own = [1, 2, 3, 9, 5, 2, 3, 8, 1, 2, 3]
    assert continuation(array(own), array([]), 2) == Found(3, (9, 5))
    assert continuation(array([4, 5, 6, 4]), array([]), 3) == Found()


@given(TEXT, TEXT)
def test_what_stood_is_what_both_begin_with(found, emitted):
    judged = judge(Found(3, tuple(found)), emitted)
    assert judged == Judgement(3, len(found), judged.stood, len(emitted))
    assert found[: judged.stood] == emitted[: judged.stood]
    assert judged.stood in (len(found), len(emitted)) or found[judged.stood] != emitted[judged.stood]


def test_a_long_history_is_searched_quickly():
    rng = np.random.default_rng(0)
    own, history = rng.integers(0, 50_000, 8_192), rng.integers(0, 50_000, 2**18)
    best = min(_seconds(own.astype(np.uint32), history.astype(np.uint32)) for _ in range(5))
    assert best < 0.02, f"{best * 1e3:.1f} ms"


def _seconds(own: np.ndarray, history: np.ndarray) -> float:
    started = time.perf_counter()
    continuation(own, history, 8)
    return time.perf_counter() - started
