"""What computing and moving experts costs, measured while running.

seconds = call + expert · experts + pair · pairs, fitted to each actor's recent samples. What a worker waits for weights
that its host's memory lacks comes on top, as the mean of the same samples: robust fitting would take it for outliers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

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
        self.expert_bytes = expert_bytes
        self._device = device
        self._priors = {device: device_prior, LINK: link_prior}
        self._worker_prior = worker_prior
        self._actors: dict[str, _ActorFit] = {}

    def observe(self, sample: CostSample) -> None:
        """Takes one measurement. Raises ValueError for negative or non-finite values and for no experts."""
        times = np.array([sample.seconds, sample.waited_s, sample.called_s])
        if not (np.isfinite(times).all() and (times >= 0).all() and sample.experts >= 1 and sample.pairs >= 0):
            raise ValueError(f"cost sample of {sample.actor!r} is impossible: {sample}")
        self._fit(sample.actor).observe(sample)

    def samples(self) -> list[CostSample]:
        """The recent samples of every actor, oldest first: what a restart would lose."""
        return [sample for name, fit in self._actors.items() for sample in fit.recent(name)]

    def take_up(self, samples: Iterable[CostSample]) -> None:
        """Goes on from `samples` of an earlier model, as if they had been measured here."""
        for sample in samples:
            self.observe(sample)
        for fit in self._actors.values():
            fit.refit()

    def refit(self, actor: str) -> None:
        """Fits now what was observed of `actor`: for who sees that predictions have become wrong. About 1 ms."""
        self._fit(actor).refit()

    def predict(self, actor: str, experts: int, pairs: int) -> float:
        """Seconds for `experts` experts with `pairs` pairs together in one call, weights at hand; 0 for nothing."""
        return float(self._fit(actor).coefficients @ (1, experts, pairs)) if experts else 0.0

    def error(self) -> dict[str, float]:
        """Of each measured actor: median |predicted − measured| / measured; predictions precede the fit."""
        return {name: fit.error() for name, fit in self._actors.items() if fit.samples}

    def worker_costs(self, workers: Iterable[str]) -> list[WorkerCost]:
        """The fitted cost of each worker, in the order given."""
        costs = []
        for name in workers:
            fit = self._fit(name)
            call, expert, pair = fit.coefficients.tolist()
            costs.append(WorkerCost(name, call, expert + fit.wait_s, pair))
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
            expert_s = self.expert_bytes / prior.bytes_per_s
            self._actors[actor] = _ActorFit(np.array([prior.call_s, expert_s, prior.pair_share * expert_s]))
        return self._actors[actor]


class _ActorFit:
    """Ring of one actor's samples and the coefficients (call, expert, pair) fitted to them."""

    def __init__(self, prior: np.ndarray) -> None:
        self._prior = prior
        self._features = np.zeros((RING, 3))
        self._seconds = np.zeros(RING)
        self._waited = np.zeros(RING)
        self._called = np.zeros(RING)
        self._errors = np.zeros(RING)
        self._unfitted = 0
        self.samples = 0
        self.coefficients = prior
        self.wait_s = 0.0
        """Mean wait for weights, an expert."""

    def observe(self, sample: CostSample) -> None:
        features = np.array([1.0, sample.experts, sample.pairs])
        # A clock may not resolve the shortest call; 1 ns keeps relative errors finite.
        seconds = max(sample.seconds, 1e-9)
        at = self.samples % RING
        self._features[at], self._seconds[at] = features, seconds
        self._waited[at], self._called[at] = sample.waited_s, sample.called_s
        self._errors[at] = abs(features @ self.coefficients - seconds) / seconds
        self.samples += 1
        self._unfitted += 1
        if self.samples <= FITTED_AT_ONCE or self._unfitted >= REFIT_EVERY:
            self.refit()

    def refit(self) -> None:
        """Fits to the ring as it is now; where nothing is new, the fit stands."""
        if not self._unfitted:
            return
        n = min(self.samples, RING)
        self.coefficients = fit_coefficients(self._features[:n], self._seconds[:n], self._prior)
        self.wait_s = float(self._waited[:n].sum() / self._features[:n, 1].sum())
        self._unfitted = 0

    def recent(self, actor: str) -> list[CostSample]:
        """The ring's content, oldest first, as samples of `actor`."""
        order = [at % RING for at in range(max(0, self.samples - RING), self.samples)]
        counts = self._features[order, 1:].astype(int).tolist()
        times = np.stack([self._seconds, self._waited, self._called], axis=1)[order].tolist()
        return [CostSample(actor, *count, *time) for count, time in zip(counts, times, strict=True)]

    def error(self) -> float:
        return float(np.median(self._errors[: min(self.samples, RING)]))

    def experts_per_call(self) -> float:
        n = min(self.samples, RING)
        return float(self._features[:n, 1].mean()) if n else 1.0
