"""A chain goes on while the chance that all of it stands is worth another token."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moespac.actors.core import DraftChoice
from moespac.actors.policy.chain import EDGES, PLACES, UNKNOWN, Chain, place_of

HALF = (0.5,) * PLACES


def drafted(chain: Chain, confidences) -> int:
    """Tokens of a draft that is so sure of each."""
    for confidence in confidences:
        if not chain.wants_more():
            break
        chain.add(confidence)
    return len(chain.places)


def test_places_are_in_the_order_of_confidence():
    assert [place_of(confidence) for confidence in (0.0, 0.19, *EDGES, 1.0)] == [0, 0, *range(1, UNKNOWN), UNKNOWN - 1]
    assert place_of(None) == UNKNOWN == PLACES - 1


@pytest.mark.parametrize(
    ("choice", "room", "tokens"),
    [
        (DraftChoice("model", 5), 9, 5),
        (DraftChoice("model", 5), 3, 3),
        (DraftChoice("model", 5), 0, 0),
        (DraftChoice("model", 5, chances=(0.0,) * PLACES), 9, 5),  # without floors all, however unlikely
        (DraftChoice("model", 9, chances=HALF, floors=(0.3,)), 9, 2),  # 1, 0.5, 0.25; the last floor goes on
        (DraftChoice("model", 9, chances=HALF, floors=(0.3, 0.3, 0.25, 0.125, 0.1)), 9, 4),  # equal is enough
        (DraftChoice("model", 2, chances=HALF, floors=(0.01,)), 9, 2),
        (DraftChoice("model", 9, chances=HALF, floors=(0.01,)), 3, 3),
        (DraftChoice("model", 9, chances=HALF, floors=(1.5,)), 9, 0),
        (DraftChoice("model", 9, floors=(0.9,)), 9, 9),
    ],
)
def test_it_ends_by_gamma_room_or_floors(choice, room, tokens):
    chain = Chain(choice, room)
    assert drafted(chain, [0.4] * 20) == tokens
    assert chain.places == [place_of(0.4)] * tokens and not chain.wants_more()


def test_how_sure_the_draft_is_decides():
    chances = tuple(0.9 if place >= place_of(0.9) else 0.2 for place in range(PLACES))
    ends = DraftChoice("model", 9, chances=chances, floors=(0.5,))
    assert drafted(Chain(ends, 9), [0.95, 0.95, 0.1, 0.95, 0.95]) == 3
    assert drafted(Chain(ends, 9), [None, 0.95, 0.95]) == 3


@given(
    st.lists(st.floats(0, 1), min_size=PLACES, max_size=PLACES),
    st.lists(st.floats(0, 2), min_size=1, max_size=9),
    st.lists(st.one_of(st.none(), st.floats(0, 1)), min_size=9, max_size=9),
)
def test_lower_floors_never_end_it_earlier(chances, floors, confidences):
    lengths = [
        drafted(Chain(DraftChoice("model", 9, 0, tuple(chances), tuple(f * scale for f in floors)), 9), confidences)
        for scale in (1.0, 0.5, 0.0)
    ]
    assert lengths == sorted(lengths) and lengths[-1] == 9
