"""Forecast of each coming token's routing: logistic, learned online, from the draft's tokens and recent routing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from .named_arrays import as_part, part_of
from .recursive_ridge import RecursiveRidge
from .routing_basis import RoutingBasis
from .text_position import TextPosition
from .token_memory import TokenMemory

RATES = (1.0, 0.4, 0.1, 0.02, 0.006)
"""Memory lengths of recent routing that a `TextPosition` holds; 1 is the last token alone."""
CONTEXT_RATES = RATES[:4]
"""Those that the map reads."""
TOKEN_RANK, CONTEXT_RANK = 80, 64
"""Directions in which token ids and recent routing are described, at most."""
WORK = 1_500_000
"""Most elements of the linear map: it is read and written once a window."""
SINGLES_HELD, PAIRS_HELD = 16_384, 32_768
"""Token ids, and pairs of neighbouring ids, remembered."""
PSEUDO = 2.0
"""Observations that an id's mean is drawn towards the overall mean by, and a pair's towards its id's."""
RIDGE, FORGET = 1000.0, 0.9999
"""Penalty of the linear map on inputs of unit variance, and weight lost by older tokens with each new one."""
TOKEN_BLOCKS = 5
"""Inputs of an id's kind: the token's own, its predecessor's, what their pair adds, what comes before the next token,
and what the pair with the next adds. A token's late layers prepare the next: which it is tells of their routing."""


@dataclass(frozen=True)
class Seen:
    """One learned window: rows [tokens, width], its ids where known, and where its text stood before it."""

    rows: np.ndarray
    ids: list[int] | None
    position: TextPosition


def ranks(width: int) -> tuple[int, int]:
    """Token and context rank for rows of `width` experts: the largest that keep the linear map within WORK."""
    inputs = TOKEN_BLOCKS * TOKEN_RANK + len(CONTEXT_RATES) * CONTEXT_RANK
    share = min(1.0, WORK / (inputs * width))
    return max(1, int(TOKEN_RANK * share)), max(1, int(CONTEXT_RANK * share))


class RowForecast:
    """Learned from `examples` to begin with, and from every window after."""

    def __init__(self, basis: RoutingBasis, by_token: bool, scale: np.ndarray | None = None) -> None:
        width = len(basis.mean)
        self._basis = basis
        self._token_rank, self._context_rank = (min(rank, basis.rank) for rank in ranks(width))
        if not by_token:
            self._token_rank = 0
        self._singles = TokenMemory(self._token_rank, SINGLES_HELD)
        self._pairs = TokenMemory(self._token_rank, PAIRS_HELD)
        self._followed = TokenMemory(self._token_rank, SINGLES_HELD)
        self._followed_pairs = TokenMemory(self._token_rank, PAIRS_HELD)
        self._inputs = TOKEN_BLOCKS * self._token_rank + len(CONTEXT_RATES) * self._context_rank + 1
        self._scale = np.ones(self._inputs, np.float32) if scale is None else scale
        self._map = RecursiveRidge(self._inputs, width, RIDGE, FORGET)
        mean = np.clip(basis.mean, 1e-3, 0.97)
        self._offset = np.log(mean / (1.0 - mean))
        self._usual_doubt = np.float32(np.mean(mean) * (1.0 - np.mean(mean)))

    @property
    def by_token(self) -> bool:
        """True where token ids are among what it reads."""
        return self._token_rank > 0

    @classmethod
    def learned_from(cls, examples: Sequence[Seen]) -> RowForecast:
        """A forecast whose directions and units are those of `examples`, in the order of time, and that knows them."""
        rows = np.concatenate([seen.rows for seen in examples])
        basis = RoutingBasis.of(rows, max(ranks(rows.shape[1])))
        by_token = any(seen.ids is not None for seen in examples)
        first = cls(basis, by_token)
        inputs = []
        for seen in examples:
            inputs.append(first.describe(seen.position, len(seen.rows), seen.ids or []))
            first.remember(seen.rows, seen.ids, seen.position)
        spread = np.concatenate(inputs).std(axis=0) + 1e-3
        spread[-1] = 1.0
        made = cls(basis, by_token, (1.0 / spread).astype(np.float32))
        for seen in examples:
            described = made.describe(seen.position, len(seen.rows), seen.ids or [])
            made.learn(described, seen.rows, made.rows(described))
            made.remember(seen.rows, seen.ids, seen.position)
        return made

    def describe(self, position: TextPosition, tokens: int, draft: Sequence[int]) -> np.ndarray:
        """Inputs of the map for the coming `tokens` tokens, the first of which are `draft`; [tokens, inputs]."""
        parts = self._describe_tokens(position.last_token, tokens, list(draft[:tokens]) if self.by_token else [])
        context = self._basis.coordinates(position.shares.values[: len(CONTEXT_RATES)], self._context_rank)
        fading = (1.0 - np.asarray(CONTEXT_RATES)) ** (0.5 * np.arange(tokens)[:, None])
        contexts = (fading[:, :, None] * context).reshape(tokens, -1)
        constant = np.ones((tokens, 1))
        return (np.concatenate([*parts, contexts, constant], axis=1) * self._scale).astype(np.float32)

    def rows(self, described: np.ndarray) -> np.ndarray:
        """float32 [tokens, width]: probability that each token is routed to each expert."""
        return 1.0 / (1.0 + np.exp(-np.clip(self._offset + self._map.predict(described), -8.0, 8.0)))

    def learn(self, described: np.ndarray, seen: np.ndarray, forecast: np.ndarray) -> None:
        """What tokens `described` before were routed to, against their `forecast`; both [tokens, width].

        A step of iteratively reweighted least squares (McCullagh & Nelder, Generalized Linear Models, 2.5) whose
        weights are the mean's variance, alike for all experts so that they share one covariance; or the forecast's own
        where that is larger, lest a step go too far.
        """
        doubt = np.maximum(forecast * (1.0 - forecast), self._usual_doubt)
        self._map.observe(described, (seen - forecast) / doubt)

    def remember(self, rows: np.ndarray, ids: list[int] | None, position: TextPosition) -> None:
        """What `ids`, which followed `position`, were routed to."""
        if ids is None or not self.by_token:
            return
        coordinates = self.coordinates(rows)
        self._singles.add(ids, coordinates)
        self._pairs.add(_pair_keys([position.last_token, *ids]), coordinates)
        if position.last_token is not None:
            coordinates = np.concatenate([self.coordinates(position.shares.values[:1]), coordinates])
            ids = [position.last_token, *ids]
        self._followed.add(ids[1:], coordinates[:-1])
        self._followed_pairs.add(_pair_keys(ids), coordinates[:-1])

    def coordinates(self, rows: np.ndarray) -> np.ndarray:
        """float32 [rows, rank]: `rows` [rows, width] in the directions that describe tokens, or else recent routing."""
        return self._basis.coordinates(rows, self._token_rank or self._context_rank)

    def state(self) -> dict[str, np.ndarray]:
        """Everything learned."""
        kept = {"mean": self._basis.mean, "directions": self._basis.directions, "scale": self._scale}
        kept["by_token"] = np.array(self.by_token)
        for name, part in self._parts():
            kept.update(as_part(part.state(), name))
        return kept

    @classmethod
    def restored(cls, state: Mapping[str, np.ndarray], width: int) -> RowForecast:
        """What `state` described. Raises ValueError when it is not for rows of `width` or its parts do not fit."""
        basis = RoutingBasis(np.asarray(state["mean"]), np.asarray(state["directions"]))
        if basis.mean.shape != (width,) or basis.directions.shape != (width, basis.rank):
            raise ValueError(
                f"forecast: its mean has shape {basis.mean.shape}; this model has {width} experts: discard it"
            )
        made = cls(basis, bool(state["by_token"]), np.asarray(state["scale"]))
        for name, part in made._parts():
            part.restore(part_of(state, name))
        return made

    def _parts(self) -> tuple[tuple[str, RecursiveRidge | TokenMemory], ...]:
        memories = (("singles", self._singles), ("pairs", self._pairs))
        return ("map", self._map), *memories, ("followed", self._followed), ("followed_pairs", self._followed_pairs)

    def _describe_tokens(self, last: int | None, tokens: int, known: list[int]) -> np.ndarray:
        """float32 [TOKEN_BLOCKS, tokens, rank]; zeros where a token is not known."""
        parts = np.zeros((TOKEN_BLOCKS, tokens, self._token_rank), dtype=np.float32)
        none = np.zeros(self._token_rank, dtype=np.float32)
        own, previous, pair, followed, followed_pair = parts
        count = len(known)
        if last is not None and self.by_token:
            previous[0] = self._singles.means([last], PSEUDO, none)[0]
        if count:
            own[:count] = self._singles.means(known, PSEUDO, none)
            previous[1 : count + 1] = own[: min(count, tokens - 1)]
            pair[:count] = self._pairs.means(_pair_keys([last, *known]), PSEUDO, own[:count]) - own[:count]
        if count > 1:
            before = own[: count - 1]
            followed[: count - 1] = self._followed.means(known[1:], PSEUDO, none)
            followed_pair[: count - 1] = self._followed_pairs.means(_pair_keys(known), PSEUDO, before) - before
        return parts


def _pair_keys(ids: Sequence[int | None]) -> list[int]:
    """One integer for each pair of neighbours; an unknown id counts as -1."""
    known = [-1 if i is None else i for i in ids]
    return [(left + 1) * 2**32 + right for left, right in pairwise(known)]
