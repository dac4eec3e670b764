"""The best estimator known: a forecast from the draft's tokens, set against how often experts were asked for lately."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..core import ModelShape, RoutingWindow
from .calibration import OnlineLogistic
from .demand import bypasses_utilities, check_window, with_mass
from .levels import TOP_LEVEL, to_levels
from .named_arrays import as_part, part_of
from .routing_rows import accepted_tokens, routing_rows, token_ids
from .row_forecast import RATES, RowForecast, Seen
from .text_position import TextPositions

FIRST_TOKENS = 512
"""Tokens seen before the forecast's directions are fixed; until then recent routing alone counts."""
PROMPT_WEIGHT = 0.5
"""Most that a prompt counts against the routing before it."""
LASTING = 0.4
"""Weight of an expert's lasting share beside its use in the coming window: exchanges are few; what stays serves on."""
LASTING_RATE = RATES.index(0.1)
START = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0])
"""Weights of the features before anything was learned: the forecast as it is."""


class Best:
    """P(an expert is used in the coming window), by a linear forecast of each token's routing, calibrated online.

    The forecast (`RowForecast`) knows the draft's token ids and the routing before; an online logistic regression sets
    it against decayed shares. Everything is learned from the windows observed, rejected tokens included.
    """

    top_level = TOP_LEVEL

    def __init__(self, shape: ModelShape) -> None:
        self._shape = shape
        width = shape.n_layers * shape.n_experts
        self._positions = TextPositions(RATES, np.full((len(RATES), width), shape.top_k / shape.n_experts, np.float32))
        self._forecast: RowForecast | None = None
        self._examples: list[Seen] = []
        self._calibration = OnlineLogistic(START)
        self._tokens = 1
        self._ahead: tuple[tuple[str, tuple[int, ...], int], tuple[np.ndarray, ...]] | None = None

    def observe(self, window: RoutingWindow) -> None:
        """Takes the routing of one pass. A prompt of 32 tokens or more teaches what its tokens want, no more."""
        check_window(window, self._shape)
        rows, ids = routing_rows(window, self._shape), token_ids(window)
        accepted = accepted_tokens(window)
        position = self._positions.of(window.request)
        prompt = bypasses_utilities(window)
        if not prompt:
            self._learn(window, rows, ids)
            self._tokens = window.tokens
        if self._forecast is not None:
            self._forecast.remember(rows, ids, position)
        kept = None if ids is None else ids[:accepted]
        self._positions.advance(window.request, rows[:accepted], kept, PROMPT_WEIGHT if prompt else 1.0)
        self._ahead = None
        if self._forecast is None and sum(len(seen.rows) for seen in self._examples) >= FIRST_TOKENS:
            self._forecast, self._examples = RowForecast.learned_from(self._examples), []

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
        """What was learned: latest shares, calibration and, once there is one, the forecast."""
        forecast = {} if self._forecast is None else as_part(self._forecast.state(), "forecast")
        calibration = as_part(self._calibration.state(), "calibration")
        return {"shares": self._positions.latest_shares().copy(), **calibration, **forecast}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Takes up what `state` gave. Raises ValueError when it is another model's, and then changes nothing."""
        width = self._shape.n_layers * self._shape.n_experts
        calibration = OnlineLogistic(START)
        calibration.restore(part_of(state, "calibration"))
        shares = np.asarray(state["shares"], np.float32)
        if shares.shape != (len(RATES), width):
            raise ValueError(
                f"estimator state: shares have shape {shares.shape}, not {(len(RATES), width)}: discard it"
            )
        learned = part_of(state, "forecast")
        forecast = RowForecast.restored(learned, width) if learned else None
        self._calibration, self._forecast = calibration, forecast
        self._positions, self._examples, self._ahead = TextPositions(RATES, shares), [], None

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
            unused = (1.0 - np.clip(shares[LASTING_RATE].astype(np.float64), 1e-3, 0.97)) ** tokens
        else:
            described = self._forecast.describe(position, tokens, draft)
            rows = self._forecast.rows(described)
            unused = np.prod(1.0 - np.clip(rows.astype(np.float64), 1e-3, 0.97), axis=0)
        logs = np.log(shares[1:] + 0.01) + 2.0
        features = np.stack([np.ones(len(unused)), *logs, np.log1p(-unused), -np.log(unused)], axis=1)
        self._ahead = (asked, (features, described, rows))
        return self._ahead[1]

    def _learn(self, window: RoutingWindow, rows: np.ndarray, ids: list[int] | None) -> None:
        features, described, forecast = self._look_ahead(window.request, tuple(ids or ()), window.tokens)
        self._calibration.observe(features, rows.any(axis=0))
        if self._forecast is None:
            self._examples.append(Seen(rows, ids, self._positions.of(window.request).snapshot()))
        else:
            self._forecast.learn(described, rows, forecast)


def _known(draft: Sequence[int] | None, tokens: int) -> tuple[int, ...]:
    return () if draft is None else tuple(int(i) for i in draft[:tokens])
