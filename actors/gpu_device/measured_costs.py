"""What experts cost here, learned while passes run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from ..core import CostSample
from ..policy.cost import LINK, CostModel, WorkerCost
from ..policy.layer_shares import hopeful
from .link import TransferLog

LEARN_FIRST, LEARN_EVERY = 32, 8
"""The first samples of an actor are all learnt from, then every eighth: a fit takes half a millisecond of a pass."""


class MeasuredCosts:
    """A cost model with the samples of a device's own passes. For one thread."""

    def __init__(self, model: CostModel, transfers: TransferLog):
        """`transfers`: asked for what the link took."""
        self.model, self._transfers = model, transfers
        self._samples: Counter[str] = Counter()
        self._heard: dict[str, int] = {}
        self._layers = 0

    def note(self, sample: CostSample) -> None:
        """Learns from `sample`, or passes it over."""
        seen = self._samples[sample.actor]
        self._samples[sample.actor] += 1
        self._heard[sample.actor] = self._layers
        if seen < LEARN_FIRST or seen % LEARN_EVERY == 0:
            self.model.observe(sample)

    def next_layer(self) -> None:
        """Learns from what crossed the link since the last call; a layer is about to be shared out."""
        self._layers += 1
        for service_s in self._transfers.service_times():
            self.note(CostSample(LINK, 1, 0, service_s))

    def worker_costs(self, names: Iterable[str]) -> list[WorkerCost]:
        """What to expect of workers, or of the link."""
        return [
            hopeful(cost, self._samples[cost.name], self._layers - self._heard.get(cost.name, 0))
            for cost in self.model.worker_costs(names)
        ]
