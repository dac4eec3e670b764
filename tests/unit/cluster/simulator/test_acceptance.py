"""Which drafts stand, and what a window then holds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated import random_ids

from moespac.cluster.simulator.acceptance import NgramReplay, RateAcceptance
from moespac.cluster.simulator.traces import Sequence


def sequence(tokens=40, token_ids=(), prompt=()):
    return Sequence("a", random_ids(tokens, 2, 8, 2).astype(np.int64), tuple(token_ids), tuple(prompt), False)


SEQUENCE = sequence()


@given(at=st.integers(0, 39), gamma=st.integers(0, 12), rate=st.floats(0, 1))
def test_a_window_is_the_accepted_path_and_something_else(at, gamma, rate):
    window = RateAcceptance(rate)(SEQUENCE, at, gamma)
    assert window.tokens == min(gamma, 39 - at) + 1
    assert 0 <= window.accepted < window.tokens
    assert (window.ids[: window.accepted + 1] == SEQUENCE.ids[at : at + window.accepted + 1]).all()
    assert (window.counts(8).sum(axis=1) == window.tokens * 2).all()


@given(at=st.integers(0, 30), longer=st.integers(2, 8))
def test_draft_lengths_meet_the_same_drafts(at, longer):
    accepts = RateAcceptance(0.6, seed=3)
    short, long = accepts(SEQUENCE, at, 1), accepts(SEQUENCE, at, longer)
    assert short.accepted == min(1, long.accepted)


@pytest.mark.parametrize("rate", [0.3, 0.8])
def test_the_rate_is_met(rate):
    long = sequence(4000)
    accepts = RateAcceptance(rate)
    stood = [accepts(long, at, 1).accepted for at in range(3900)]
    assert np.mean(stood) == pytest.approx(rate, abs=0.03)


def test_certain_and_hopeless_drafts():
    assert RateAcceptance(1.0)(SEQUENCE, 0, 5).accepted == 5
    hopeless = RateAcceptance(0.0)(SEQUENCE, 0, 5)
    assert hopeless.accepted == 0
    assert not (hopeless.ids[1:] == SEQUENCE.ids[1:6]).all()


def test_an_impossible_rate_is_refused():
    with pytest.raises(ValueError, match=r"acceptance rate is 1\.5; expected 0 to 1"):
        RateAcceptance(1.5)


def test_ngrams_copy_what_followed_before():
    text = [7, 1, 2, 3, 4, 9, 7, 1, 2, 3, 5, 5]
    replay = NgramReplay()
    told = sequence(12, token_ids=text)
    # After 1 2 3 the earlier text went on 4 9 7; this time 5 comes.
    window = replay(told, 9, 3)
    assert window.token_ids == (3, 4, 9) and window.accepted == 0
    assert (window.ids[1:] == told.ids[4:6]).all()
    assert replay(told, 7, 2).token_ids == (1, 2, 3) and replay(told, 7, 2).accepted == 2
    assert [replay.look_up(told, at).match for at in (5, 6, 7, 9)] == [0, 0, 2, 4], (
        "one token agrees by chance too often"
    )


def test_ngrams_find_nothing_in_new_text_and_look_in_the_prompt():
    replay = NgramReplay()
    assert replay(sequence(6, token_ids=range(6)), 3, 4).tokens == 1
    asked = sequence(6, token_ids=range(6), prompt=(1, 2, 3, 4))
    window = replay(asked, 2, 2)
    assert window.token_ids == (2, 3, 4) and window.accepted == 2


def test_ngrams_need_strings():
    with pytest.raises(ValueError, match="no token strings"):
        NgramReplay()(SEQUENCE, 0, 2)
