"""What experts cost here, learned while passes run."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

from ..core import CostSample
from ..policy.cost import LINK, CostModel, Prior, WorkerCost
from ..policy.layer_shares import hopeful
from .link import TransferLog

LEARN_FIRST, LEARN_EVERY = 32, 8
"""The first samples of an actor are all learnt from, then every eighth: a fit takes half a millisecond of a pass."""

SURPRISE = 0.25
"""Of the time measured: a prediction further off is learnt from at once, as when decoding follows a prompt."""
REFIT_AFTER_S = 0.1
"""Time measured between such fits, so that they take a hundredth of it at most."""

CALL_PRIOR = Prior(call_s=300e-6, bytes_per_s=1e12, pair_share=0.1)
"""What a call takes beside computing, before it is measured."""


class MeasuredCosts:
    """A cost model with the samples of a device's own passes. For one thread."""

    def __init__(self, model: CostModel, transfers: TransferLog):
        """`model`: of device, link and, without the calls, workers; `transfers`: asked for what the link took."""
        self.model, self._transfers = model, transfers
        # Apart, as neither tells of the other: a call for one expert may wait long, and compute as fast as ever.
        self._calls = CostModel(model.expert_bytes, "", worker_prior=CALL_PRIOR)
        self._samples: Counter[str] = Counter()
        self._heard: dict[str, int] = {}
        self._since_fit_s: defaultdict[str, float] = defaultdict(float)
        self._layers = 0

    def note(self, sample: CostSample) -> None:
        """Learns from `sample`, or passes it over."""
        self._note(self.model, sample)

    def note_call(self, sample: CostSample) -> None:
        """Learns from a worker's call, or passes it over."""
        computing, calling = _parted(sample)
        if self._note(self.model, computing):
            self._calls.observe(calling)

    def take_up(self, samples: Sequence[CostSample], device: str) -> None:
        """Goes on from what was measured before; `device`: the name of this one."""
        here = {device, LINK}
        calls = [_parted(sample) for sample in samples if sample.actor not in here]
        self.model.take_up([*(s for s in samples if s.actor in here), *(computing for computing, _ in calls)])
        self._calls.take_up([calling for _, calling in calls])
        self._samples.update(sample.actor for sample in samples)

    def next_layer(self) -> None:
        """Learns from what crossed the link since the last call; a layer is about to be shared out."""
        self._layers += 1
        for service_s in self._transfers.service_times():
            self.note(CostSample(LINK, 1, 0, service_s))

    def call_s(self, worker: str, experts: int, pairs: int) -> float:
        """Seconds of one call to `worker`."""
        return self.model.predict(worker, experts, pairs) + self._calls.predict(worker, experts, pairs)

    def worker_costs(self, names: Sequence[str]) -> list[WorkerCost]:
        """What to expect of workers."""
        computing, calling = self.model.worker_costs(names), self._calls.worker_costs(names)
        return [
            self._hopeful(WorkerCost(a.name, a.call_s + b.call_s, a.expert_s + b.expert_s, a.pair_s + b.pair_s))
            for a, b in zip(computing, calling, strict=True)
        ]

    def transfer_s(self) -> float:
        """What to expect of one copy."""
        link = self._hopeful(*self.model.worker_costs([LINK]))
        return link.call_s + link.expert_s

    def _hopeful(self, cost: WorkerCost) -> WorkerCost:
        return hopeful(cost, self._samples[cost.name], self._layers - self._heard.get(cost.name, 0))

    def _note(self, model: CostModel, sample: CostSample) -> bool:
        """Whether it was learnt from."""
        actor, seen = sample.actor, self._samples[sample.actor]
        self._samples[actor] += 1
        self._heard[actor] = self._layers
        self._since_fit_s[actor] += sample.seconds
        off_s = abs(model.predict(actor, sample.experts, sample.pairs) - sample.seconds)
        surprising = off_s > SURPRISE * sample.seconds
        learn = surprising or seen < LEARN_FIRST or seen % LEARN_EVERY == 0
        if learn:
            model.observe(sample)
        if surprising and self._since_fit_s[actor] >= REFIT_AFTER_S:
            model.refit(actor)
            self._since_fit_s[actor] = 0.0
        return learn


def _parted(sample: CostSample) -> tuple[CostSample, CostSample]:
    """A call's computing with the wait for weights, and its way there and back."""
    computing = replace(sample, seconds=max(0.0, sample.seconds - sample.called_s))
    return computing, replace(sample, seconds=sample.called_s, waited_s=0.0)
