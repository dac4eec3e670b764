"""What is learned of n-grams that were found, asked or not."""

from __future__ import annotations

import numpy as np
import pytest

from moespac.actors.policy.ngram import Judgement
from moespac.actors.policy.ngram_record import MATCHES, NgramRecord, RequestNgrams

SHORT, _, LONG = range(len(MATCHES))


def test_short_matches_are_told_from_long_ones():
    record, request = NgramRecord(16), RequestNgrams()
    for _ in range(60):
        record.observe(request, Judgement(2, 4, 0, 1))
        record.observe(request, Judgement(12, 16, 16, 17))
    assert record.tokens(request, LONG)[-1] > 12
    assert record.tokens(request, SHORT)[-1] < 1.2
    assert record.shares(request)[[SHORT, LONG]] == pytest.approx([0.5, 0.5], abs=0.08)


def test_it_learns_while_another_draft_is_verified():
    """Steps emit two tokens: what n-grams found stands that far, or falls at the second."""
    right, wrong = NgramRecord(16), NgramRecord(16)
    for _ in range(60):
        right.observe(RequestNgrams(), Judgement(9, 16, 2, 2))
        wrong.observe(RequestNgrams(), Judgement(9, 16, 1, 2))
    assert right.tokens(RequestNgrams(), LONG)[2] > 2.8
    assert wrong.tokens(RequestNgrams(), LONG)[2] < 2.2


def test_what_was_not_decided_teaches_nothing_of_its_chance():
    record, before = NgramRecord(16), NgramRecord(16).tokens(RequestNgrams(), LONG)
    for _ in range(20):
        record.observe(RequestNgrams(), Judgement(9, 16, 0, 0))
    assert np.array_equal(record.tokens(RequestNgrams(), LONG), before)
    assert record.shares(RequestNgrams())[LONG] > 0.2


def test_a_new_request_starts_as_the_others_and_departs_from_them():
    record = NgramRecord(16)
    for _ in range(80):
        record.observe(RequestNgrams(), Judgement(8, 16, 0, 1))
    request = RequestNgrams()
    assert record.tokens(request, LONG)[-1] < 1.3
    for _ in range(30):
        record.observe(request, Judgement(8, 16, 16, 17))
    assert record.tokens(request, LONG)[4] > 3.5 and record.shares(request)[LONG] > 0.9
