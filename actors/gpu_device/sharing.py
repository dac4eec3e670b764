"""Who computes a layer's missing experts: what is known of costs, copies and workers, put to the policy."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ..core import ExpertKey, ModelShape
from ..policy.cost import LINK
from ..policy.layer_shares import Here, share_layer, time_left
from ..policy.likely import LikelyExperts
from ..policy.track_record import TrackRecord
from ..prefetcher.source import ExpertSource
from .measured_costs import MeasuredCosts
from .misses import Workers
from .routing import Routing
from .slots import ExpertSlots
from .staging import Staging


@dataclass(frozen=True)
class Decision:
    """What happens to a layer's missing experts; those in no place are computed from host memory."""

    calls: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Worker -> experts, ascending."""
    staged: tuple[ExpertKey, ...] = ()
    """Computed from staging buffers, in the order of their arrival."""
    landing: tuple[ExpertKey, ...] = ()
    """Computed from their slots, once they are there."""
    ahead: tuple[ExpertKey, ...] = ()
    """The next layer's, to be copied when this layer's are."""
    way: str = ""
    """Streamed or plain, where there is a choice."""
    told_s: float = 0.0
    """Until all should be computed."""


class Sharing:
    """Decides layer by layer. For the thread that computes."""

    def __init__(
        self,
        name: str,
        shape: ModelShape,
        costs: MeasuredCosts,
        slots: ExpertSlots,
        source: ExpertSource,
        workers: Workers | None,
        staging: Staging | None,
    ):
        """`name`: the device's in `costs`."""
        self._name, self._shape, self._costs = name, shape, costs
        self._slots, self._source, self._workers, self._staging = slots, source, workers, staging
        # Prompts and windows differ in what a processor that copies misses.
        self._records: defaultdict[int, TrackRecord] = defaultdict(TrackRecord)
        self._likely = LikelyExperts(shape.n_layers, shape.n_experts, shape.top_k)

    def decide(self, layer: int, routing: Routing, residents: Sequence[int], misses: Sequence[int]) -> Decision:
        """`residents` and `misses` are the experts that the router chose."""
        tokens, row = len(routing.chosen), self._shape.row(layer)
        self._likely.learn(row, routing.counts, tokens)
        names = [] if self._workers is None else self._workers.available()
        staging = self._staging if self._staging is not None and self._staging.usable else None
        if not misses or not (names or staging):
            return Decision()
        self._costs.next_layer()
        landing, staged, link_free_s = self._on_their_way(layer, staging)
        arriving, sizes, workers = landing | staged, routing.sizes(list(misses)), self._costs.worker_costs(names)
        here = self._here(routing, residents, link_free_s, staging is not None)
        # What has to come from disk first would hold up the copies behind it; a worker fetches it as well.
        away = frozenset(self._source.absent(layer, misses) if names and staging else ())
        shares, way = share_layer(sizes, workers, here, arriving, away), ""
        if names and staging is not None:
            ways = {"plain": shares}
            if shares.streamed:
                ways = {
                    "plain": share_layer(sizes, workers, replace(here, transfer_s=math.inf), arriving),
                    "streamed": shares,
                }
            way = self._records[tokens.bit_length()].choose({name: found.seconds for name, found in ways.items()})
            shares = ways[way]
        awaited = [e for e in shares.awaited if e in staged]
        return Decision(
            calls={name: share for name, share in zip(names, shares.workers, strict=True) if share},
            staged=tuple(ExpertKey(layer, e) for e in (*awaited, *shares.streamed)),
            landing=tuple(ExpertKey(layer, e) for e in shares.awaited if e not in staged),
            ahead=self._next(staging, row, tokens) if shares.streamed and staging is not None else (),
            way=way,
            told_s=shares.seconds,
        )

    def note(self, decision: Decision, tokens: int, took_s: float) -> None:
        """The layer, of `tokens` tokens, is computed."""
        if decision.way:
            self._records[tokens.bit_length()].note(decision.way, decision.told_s, took_s)

    def _here(self, routing: Routing, residents: Sequence[int], link_free_s: float, copies: bool) -> Here:
        costs = self._costs.model
        (device,) = costs.worker_costs([self._name])
        return Here(
            free_s=costs.predict(self._name, len(residents), int(routing.counts[list(residents)].sum())),
            # Experts that arrive are computed one or two at a time.
            expert_s=device.call_s + device.expert_s,
            pair_s=device.pair_s,
            link_free_s=link_free_s,
            transfer_s=self._costs.transfer_s() if copies else math.inf,
        )

    def _on_their_way(self, layer: int, staging: Staging | None) -> tuple[dict[int, float], dict[int, float], float]:
        """Seconds until they are there, of the layer's experts on their way to slots and to buffers; until the link is
        free."""
        one_s = self._costs.model.predict(LINK, 1, 0)
        under_way = {key: time_left(one_s, elapsed_s) for key, elapsed_s in self._slots.under_way().items()}
        landing = {key.expert: left_s for key, left_s in under_way.items() if key.layer == layer}
        link_free_s = max(under_way.values(), default=0.0)
        if staging is None:
            return landing, {}, link_free_s
        held, elapsed_s = staging.held(layer)
        staged = {e: 0.0 if began_s is None else time_left(one_s, began_s) for e, began_s in held.items()}
        if elapsed_s is not None:
            link_free_s = max(link_free_s, time_left(one_s, elapsed_s))
        return landing, staged, link_free_s

    def _next(self, staging: Staging, row: int, tokens: int) -> tuple[ExpertKey, ...]:
        """What the next layer is all but certain to want and lacks, as much of it as goes into the buffers."""
        if row + 1 == self._shape.n_layers:
            return ()
        layer = self._shape.layer_ids[row + 1]
        wanted = self._slots.absent(layer, self._likely.of(row + 1, tokens))[: staging.buffers]
        away = set(self._source.absent(layer, wanted))
        return tuple(ExpertKey(layer, e) for e in wanted if e not in away)
