"""What computing and moving experts costs, measured while running.

seconds = call + expert · experts + pair · pairs, fitted to each actor's recent samples. What a worker waits for weights
that its host's memory lacks comes on top, as the mean of the same samples: robust fitting would take it for outliers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..core import CostSample
from .robust_fit import fit_coefficients

LINK = "link"
"""The `CostSample.actor` of transfers."""

RING = 256
"""Samples kept for each actor; older ones are forgotten."""

REFIT_EVERY = 64
"""New samples between fits, about 1 ms each."""

FITTED_AT_ONCE = 16
"""The first samples of an actor are each followed by a fit."""

FEW = 8
"""A worker with fewer samples is not judged by them: its first call also sets up the connection."""

TRIAL_SHARE = 0.01
"""Of the time workers have taken, for asking one that seems too slow: who is never asked is never measured again."""


@dataclass(frozen=True)
class Costs:
    """What the balancer needs to know; seconds. Linear in what is computed, so an actor's fixed overhead a
    call is spread over its usual number of experts a call."""

    device_call_s: float
    """g0: one expert used on the device, whatever its pairs."""
    device_pair_s: float
    """g1: one (token, expert) pair on the device."""
    worker_call_s: float
    """c0: one expert used on the workers, all of them taken together."""
    worker_pair_s: float
    """c1: one pair on the workers, all of them taken together."""
    transfer_s: float
    """One expert over the link."""
    window_s: float
    """Link time a layer that other work hides: the prefetch window."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not (np.isfinite(value) and value >= 0.0):
                raise ValueError(f"costs: {name} is {value}; expected a finite number, 0 or more")


@dataclass(frozen=True)
class WorkerCost:
    """One worker's fitted cost; seconds."""

    name: str
    call_s: float
    expert_s: float
    """Waiting for weights included."""
    pair_s: float


@dataclass(frozen=True)
class Prior:
    """What is assumed of an actor before it is measured; a fit starts here, scaled to the samples' median.

    An expert is read once a call from memory at `bytes_per_s`; each pair adds `pair_share` of that.
    """

    call_s: float
    bytes_per_s: float
    pair_share: float


DEVICE_PRIOR = Prior(call_s=50e-6, bytes_per_s=300e9, pair_share=0.02)
WORKER_PRIOR = Prior(call_s=300e-6, bytes_per_s=10e9, pair_share=0.1)
LINK_PRIOR = Prior(call_s=20e-6, bytes_per_s=12e9, pair_share=0.0)


class CostModel:
    """Costs of one device, its link and any number of workers; each actor is fitted on its own recent
    samples.

    `device` is the device's name in samples, "link" the link's, every other name a worker's. Deterministic: a
    function of the samples in their order. Coefficients are never negative.
    """

    def __init__(
        self,
        expert_bytes: int,
        device: str,
        device_prior: Prior = DEVICE_PRIOR,
        worker_prior: Prior = WORKER_PRIOR,
        link_prior: Prior = LINK_PRIOR,
    ) -> None:
        if expert_bytes < 1:
            raise ValueError(f"expert_bytes is {expert_bytes}; expected at least 1")
        self._expert_bytes = expert_bytes
        self._device = device
        self._priors = {device: device_prior, LINK: link_prior}
        self._worker_prior = worker_prior
        self._actors: dict[str, _ActorFit] = {}
        self._workers_s = 0.0

    def observe(self, sample: CostSample) -> None:
        """Takes one measurement. Raises ValueError for negative or non-finite values and for no experts."""
        times = np.array([sample.seconds, sample.waited_s])
        if not (np.isfinite(times).all() and (times >= 0).all() and sample.experts >= 1 and sample.pairs >= 0):
            raise ValueError(f"cost sample of {sample.actor!r} is impossible: {sample}")
        if sample.actor not in self._priors:
            self._workers_s += sample.seconds
        self._fit(sample.actor).observe(sample, self._workers_s)

    def samples(self) -> list[CostSample]:
        """The recent samples of every actor, oldest first: what a restart would lose."""
        return [sample for name, fit in self._actors.items() for sample in fit.recent(name)]

    def take_up(self, samples: Iterable[CostSample]) -> None:
        """Goes on from `samples` of an earlier model, as if they had been measured here."""
        for sample in samples:
            self.observe(sample)
        for fit in self._actors.values():
            if fit.samples:
                fit.refit()
            fit.asked_at_s = self._workers_s

    def predict(self, actor: str, experts: int, pairs: int) -> float:
        """Seconds for `experts` experts with `pairs` pairs together in one call, weights at hand; 0 for nothing."""
        return float(self._fit(actor).coefficients @ (1, experts, pairs)) if experts else 0.0

    def error(self) -> dict[str, float]:
        """Of each measured actor: median |predicted − measured| / measured; predictions precede the fit."""
        return {name: fit.error() for name, fit in self._actors.items() if fit.samples}

    def worker_costs(self, workers: Sequence[str], trials: bool = True) -> list[WorkerCost]:
        """The fitted cost of each worker, in the order given.

        With `trials`, one that is due for a trial is given the cost of the fastest. A trial is due to a worker of few
        samples, and to one whose last call was so long ago that it took a small share of what workers have taken since.
        """
        fits = [self._fit(name) for name in workers]
        costs = []
        for name, fit in zip(workers, fits, strict=True):
            call, expert, pair = fit.coefficients.tolist()
            costs.append(WorkerCost(name, call, expert + fit.wait_s, pair))
        if trials and len(costs) > 1:
            fastest = min(costs, key=lambda cost: cost.call_s + cost.expert_s + cost.pair_s)
            for at, fit in enumerate(fits):
                idle_s = self._workers_s - fit.asked_at_s
                if fit.samples < FEW or TRIAL_SHARE * idle_s > fit.last_s:
                    costs[at] = replace(fastest, name=workers[at])
        return costs

    def costs(self, workers: Sequence[str], window_s: float) -> Costs:
        """What the balancer plans with. Workers run at the same time, so their rates add up.

        Without workers the device computes a miss itself from host memory: a transfer, then the device's own
        time.
        """
        g0, g1 = self._per_expert(self._device)
        transfer_s = self.predict(LINK, 1, 0)
        if workers:
            each = np.array([self._per_expert(name) for name in workers])
            c0, c1 = 1.0 / (1.0 / np.maximum(each, 1e-12)).sum(axis=0)
        else:
            c0, c1 = g0 + transfer_s, g1
        return Costs(g0, g1, float(c0), float(c1), transfer_s, window_s)

    def _per_expert(self, actor: str) -> tuple[float, float]:
        fit = self._fit(actor)
        call, expert, pair = map(float, fit.coefficients)
        return expert + call / fit.experts_per_call() + fit.wait_s, pair

    def _fit(self, actor: str) -> _ActorFit:
        if actor not in self._actors:
            prior = self._priors.get(actor, self._worker_prior)
            expert_s = self._expert_bytes / prior.bytes_per_s
            self._actors[actor] = _ActorFit(np.array([prior.call_s, expert_s, prior.pair_share * expert_s]))
        return self._actors[actor]


class _ActorFit:
    """Ring of one actor's samples and the coefficients (call, expert, pair) fitted to them."""

    def __init__(self, prior: np.ndarray) -> None:
        self._prior = prior
        self._features = np.zeros((RING, 3))
        self._seconds = np.zeros(RING)
        self._waited = np.zeros(RING)
        self._errors = np.zeros(RING)
        self._unfitted = 0
        self.samples = 0
        self.coefficients = prior
        self.wait_s = 0.0
        """Mean wait for weights, an expert."""
        self.last_s = 0.0
        """What its last sample took."""
        self.asked_at_s = 0.0
        """What all workers together had taken at its last sample."""

    def observe(self, sample: CostSample, workers_s: float) -> None:
        features = np.array([1.0, sample.experts, sample.pairs])
        # A clock may not resolve the shortest call; 1 ns keeps relative errors finite.
        seconds = max(sample.seconds, 1e-9)
        at = self.samples % RING
        self._features[at], self._seconds[at], self._waited[at] = features, seconds, sample.waited_s
        self._errors[at] = abs(features @ self.coefficients - seconds) / seconds
        self.samples += 1
        self._unfitted += 1
        self.asked_at_s, self.last_s = workers_s, seconds
        if self.samples <= FITTED_AT_ONCE or self._unfitted >= REFIT_EVERY:
            self.refit()

    def refit(self) -> None:
        """Fits to the ring as it is now."""
        n = min(self.samples, RING)
        self.coefficients = fit_coefficients(self._features[:n], self._seconds[:n], self._prior)
        self.wait_s = float(self._waited[:n].sum() / self._features[:n, 1].sum())
        self._unfitted = 0

    def recent(self, actor: str) -> list[CostSample]:
        """The ring's content, oldest first, as samples of `actor`."""
        order = [at % RING for at in range(max(0, self.samples - RING), self.samples)]
        counts = self._features[order, 1:].astype(int).tolist()
        times = zip(self._seconds[order].tolist(), self._waited[order].tolist(), strict=True)
        return [CostSample(actor, *count, *time) for count, time in zip(counts, times, strict=True)]

    def error(self) -> float:
        return float(np.median(self._errors[: min(self.samples, RING)]))

    def experts_per_call(self) -> float:
        n = min(self.samples, RING)
        return float(self._features[:n, 1].mean()) if n else 1.0
