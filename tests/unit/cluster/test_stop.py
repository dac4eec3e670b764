"""Stop strings against a naive search over the whole text."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moespac.cluster.gateway.stop import StopScanner

repeatable = settings(derandomize=True, deadline=None, max_examples=300)
texts = st.text("ab\n", max_size=24)
stops = st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3)


def naive(text: str, stops: list[str]) -> tuple[str, str | None]:
    for end in range(1, len(text) + 1):
        ended = [stop for stop in stops if text[:end].endswith(stop)]
        if ended:
            longest = max(ended, key=len)
            return text[: end - len(longest)], longest
    return text, None


@repeatable
@given(texts, stops, st.data())
def test_equals_a_naive_search_whatever_the_pieces(text, stops, data):
    scanner, out, rest = StopScanner(stops), "", text
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        out += scanner.push(rest[:size])
        rest = rest[size:]
    assert (out + scanner.finish(), scanner.found) == naive(text, stops)


@repeatable
@given(texts, stops)
def test_nothing_is_held_back_that_cannot_become_a_stop_string(text, stops):
    scanner, out = StopScanner(stops), ""
    for given_so_far, character in enumerate(text, 1):
        out += scanner.push(character)
        if scanner.found is None:
            held = text[len(out) : given_so_far]
            assert not held or any(stop.startswith(held) and stop != held for stop in stops)


@pytest.mark.parametrize(
    ("stops", "pieces", "text", "found"),
    [
        (["END"], ["xE", "N", "D", "y"], "x", "END"),
        (["END"], ["xE", "N", "E", "ND"], "xEN", "END"),
        (["\n\n"], ["a\n", "b\n", "\nc"], "a\nb", "\n\n"),
        (["été"], ["un ét", "é"], "un ", "été"),
        (["bcd", "cd"], ["abcd"], "a", "bcd"),
        (["abcd", "bc"], ["abcd"], "a", "bc"),
        ([], ["abc"], "abc", None),
    ],
)
def test_cases(stops, pieces, text, found):
    scanner = StopScanner(stops)
    out = "".join(map(scanner.push, pieces)) + scanner.finish()
    assert (out, scanner.found) == (text, found)
