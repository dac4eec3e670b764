"""What experts cost here, learned while passes run."""

from __future__ import annotations

from collections import Counter

from ..core import CostSample
from ..policy.cost import LINK, CostModel
from .link import TransferLog

LEARN_FIRST, LEARN_EVERY = 32, 8
"""The first samples of an actor are all learnt from, then every eighth: a fit takes half a millisecond of a pass."""


class MeasuredCosts:
    """A cost model with the samples of a device's own passes. For one thread."""

    def __init__(self, model: CostModel, transfers: TransferLog):
        """`transfers`: asked for what the link took."""
        self.model, self._transfers = model, transfers
        self._seen: Counter[str] = Counter()

    def note(self, sample: CostSample) -> None:
        """Learns from `sample`, or passes it over."""
        seen = self._seen[sample.actor]
        self._seen[sample.actor] += 1
        if seen < LEARN_FIRST or seen % LEARN_EVERY == 0:
            self.model.observe(sample)

    def note_transfers(self) -> None:
        """Learns from what crossed the link since the last call."""
        for service_s in self._transfers.service_times():
            self.note(CostSample(LINK, 1, 0, service_s))
