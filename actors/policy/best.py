"""The best estimator known: a forecast from the draft's tokens, set against how often experts were asked for lately."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..core import ModelShape, RoutingWindow
from .calibration import SteadyAndQuick
from .demand import bypasses_utilities, check_window, with_mass
from .earlier_places import PLACE_FEATURES, EarlierPlaces
from .levels import TOP_LEVEL, to_levels
from .named_arrays import as_part, part_of
from .routing_rows import accepted_tokens, routing_rows, token_ids
from .row_forecast import RATES, RowForecast, Seen
from .similar_routing import NOWHERE
from .text_position import SURPRISE_RATES, TextPositions

FIRST_TOKENS = 512
"""Tokens seen before the forecast's directions are fixed; until then recent routing alone counts."""
PROMPT_WEIGHT = 0.5
"""Most that a prompt counts against the routing before it."""
LASTING = 0.4
"""Weight of an expert's lasting share beside its use in the coming window: exchanges are few; what stays serves on."""
LASTING_RATE = RATES.index(0.1)
START = np.array([0.0, 1.0, 1.0, *[0.0] * (len(RATES) + len(SURPRISE_RATES) + PLACE_FEATURES)])
"""Weights of the features before anything was learned: the forecast as it is."""


class Best:
    """P(an expert is used in the coming window), by a forecast of each token's routing, calibrated online.

    The forecast (`RowForecast`) knows the draft's token ids and the routing before; an online logistic regression sets
    it against decayed shares, what the forecast missed lately, and what happened at earlier places like this one.
    Everything is learned from the windows observed, rejected tokens included.
    """

    top_level = TOP_LEVEL
    by_level = False

    def __init__(self, shape: ModelShape) -> None:
        self._shape = shape
        self._width = shape.n_layers * shape.n_experts
        shares = np.full((len(RATES), self._width), shape.top_k / shape.n_experts, np.float32)
        self._positions = TextPositions(RATES, shares, np.zeros((len(SURPRISE_RATES), self._width), np.float32))
        self._forecast: RowForecast | None = None
        self._places: EarlierPlaces | None = None
        self._examples: list[Seen] = []
        self._calibration = SteadyAndQuick(START)
        self._tokens = 1
        self._ahead: tuple[tuple[str, tuple[int, ...], int], tuple[np.ndarray, ...]] | None = None

    def observe(self, window: RoutingWindow) -> None:
        """Takes the routing of one pass. A prompt of 32 tokens or more teaches what its tokens want, no more."""
        check_window(window, self._shape)
        rows, ids = routing_rows(window, self._shape), token_ids(window)
        accepted = accepted_tokens(window)
        prompt = bypasses_utilities(window)
        missed = None if prompt else self._learn(window, rows, ids)
        place = self._remember(window, rows, ids)
        kept = None if ids is None else ids[:accepted]
        position = self._positions.advance(window.request, rows[:accepted], kept, PROMPT_WEIGHT if prompt else 1.0)
        position.place = place
        if missed is not None:
            position.surprises.add(missed)
            self._tokens = window.tokens
        self._ahead = None
        if self._forecast is None and sum(len(seen.rows) for seen in self._examples) >= FIRST_TOKENS:
            self._forecast, self._examples = RowForecast.learned_from(self._examples), []
            self._places = EarlierPlaces(self._width, self._forecast.by_token)

    def worth(self, tokens: int, draft: Sequence[int] | None = None, request: str = "") -> np.ndarray:
        """What residency is worth now: P(used in the coming window) + LASTING · lasting share.

        float64 [n_layers, n_experts]. `request`: whose window comes; '' = the one observed last.
        """
        lasting = self._positions.of(request).shares.values[LASTING_RATE]
        return self._used(tokens, draft, request) + LASTING * self._grid(lasting)

    def utilities(self) -> np.ndarray:
        """int64 [n_layers, n_experts] in 0..top_level: levels of `worth` for a window like the last."""
        return to_levels(self.worth(self._tokens), 1.0 + LASTING)

    def expected_counts(self, tokens: int, draft: Sequence[int] | None = None, request: str = "") -> np.ndarray:
        """Expected (token, slot) pairs; float64 [n_layers, n_experts], each row sums to tokens · top_k."""
        if tokens < 0:
            raise ValueError(f"tokens is {tokens}; expected 0 or more")
        each = 1.0 - (1.0 - self._used(max(tokens, 1), draft, request)) ** (1.0 / max(tokens, 1))
        return with_mass(each + 1e-9, tokens, self._shape.top_k)

    def state(self) -> dict[str, np.ndarray]:
        """What was learned: latest shares and surprises, calibration and, once there is one, the forecast."""
        learned = as_part(self._calibration.state(), "calibration")
        if self._forecast is not None:
            learned |= as_part(self._forecast.state(), "forecast") | as_part(self._places.state(), "places")
        latest = self._positions.latest_shares(), self._positions.latest_surprises()
        return {"shares": latest[0].copy(), "surprises": latest[1].copy(), **learned}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Takes up what `state` gave. Raises ValueError when it is another model's, and then changes nothing."""
        calibration = SteadyAndQuick(START)
        calibration.restore(part_of(state, "calibration"))
        shares, surprises = (np.asarray(state[name], np.float32) for name in ("shares", "surprises"))
        if shares.shape != (len(RATES), self._width) or surprises.shape != (len(SURPRISE_RATES), self._width):
            raise ValueError(
                f"estimator state: shares have shape {shares.shape}, not {(len(RATES), self._width)}: discard it"
            )
        learned, forecast, places = part_of(state, "forecast"), None, None
        if learned:
            forecast = RowForecast.restored(learned, self._width)
            places = EarlierPlaces(self._width, forecast.by_token)
            places.restore(part_of(state, "places"))
        self._calibration, self._forecast, self._places = calibration, forecast, places
        self._positions, self._examples, self._ahead = TextPositions(RATES, shares, surprises), [], None

    def _used(self, tokens: int, draft: Sequence[int] | None, request: str) -> np.ndarray:
        features = self._look_ahead(request, _known(draft, tokens), tokens)[0]
        return self._grid(self._calibration.probability(features))

    def _grid(self, flat: np.ndarray) -> np.ndarray:
        return flat.reshape(self._shape.n_layers, self._shape.n_experts).astype(np.float64)

    def _look_ahead(self, request: str, draft: tuple[int, ...], tokens: int) -> tuple[np.ndarray, ...]:
        """Features [experts, features] of the coming window, and the forecast's inputs and rows where there is one."""
        asked = (request, draft, tokens)
        if self._ahead is not None and self._ahead[0] == asked:
            return self._ahead[1]
        position = self._positions.of(request)
        shares = position.shares.values
        if self._forecast is None:
            described = rows = np.zeros((0, 0), np.float32)
            places = np.zeros((PLACE_FEATURES, self._width))
            unused = (1.0 - np.clip(shares[LASTING_RATE].astype(np.float64), 1e-3, 0.97)) ** tokens
        else:
            described = self._forecast.describe(position, tokens, draft)
            rows = self._forecast.rows(described)
            places = self._places.features(position, tokens, draft)
            unused = np.prod(1.0 - np.clip(rows.astype(np.float64), 1e-3, 0.97), axis=0)
        logs = np.log(np.vstack([shares[1:], position.mean]) + 0.01) + 2.0
        ahead = [np.ones(self._width), np.log1p(-unused), -np.log(unused)]
        features = np.stack([*ahead, *logs, *position.surprises.values, *places], axis=1)
        self._ahead = (asked, (features, described, rows))
        return self._ahead[1]

    def _learn(self, window: RoutingWindow, rows: np.ndarray, ids: list[int] | None) -> np.ndarray:
        """Learns from a window of decoding; what was used minus what was expected, float32 [1, width]."""
        features, described, forecast = self._look_ahead(window.request, tuple(ids or ()), window.tokens)
        missed = self._calibration.observe(features, rows.any(axis=0))
        if self._forecast is None:
            self._examples.append(Seen(rows, ids, self._positions.of(window.request).snapshot()))
        else:
            self._forecast.learn(described, rows, forecast)
        return missed[None].astype(np.float32)

    def _remember(self, window: RoutingWindow, rows: np.ndarray, ids: list[int] | None) -> int:
        """What happened at this place, for later ones like it; the text's place after it."""
        position = self._positions.of(window.request)
        if self._forecast is None:
            return position.place
        self._forecast.remember(rows, ids, position)
        if window.ids is None:
            return NOWHERE
        coordinates = self._forecast.coordinates(np.concatenate([position.shares.values[:1], rows]))
        return self._places.remember(position, rows, ids, accepted_tokens(window), coordinates)


def _known(draft: Sequence[int] | None, tokens: int) -> tuple[int, ...]:
    return () if draft is None else tuple(int(i) for i in draft[:tokens])
