"""What a step with a given draft yields and takes: acceptance against drafting, verification and the rest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..core import DraftChoice
from .acceptance_rates import BOUNDS, AcceptanceRates, Alikeness, RequestRates, Tried
from .chain import LONGEST, PLACES, UNKNOWN
from .chain_forecast import floors_of, forecast
from .drafting_facts import UNASSISTED, Drawn, Outlook, Reckoned, RequestDrafts, StepSeen
from .ngram_record import MATCHES, NgramRecord
from .step_times import DraftTimes, WindowTimes

NGRAM = "ngram"
PRIOR = np.array([0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.93, 0.97, 0.98, 0.7])
"""Acceptance assumed of a draft never verified, by place: as sure as it is."""
PRIOR_SHARES = np.array([0.03, 0.05, 0.07, 0.08, 0.08, 0.08, 0.08, 0.12, 0.1, 0.1, 0.21, 0.0])
"""How often places are assumed to occur: a guess, half forgotten after sixteen tokens."""
NOT_SAID = np.eye(PLACES)[UNKNOWN]
"""Of a draft that does not say how sure it is."""
SHARES_WEIGHT, REQUEST_SHARES_WEIGHT, SHARES_KEPT = 16.0, 16.0, 0.998
"""Tokens that those of all requests, and those of one, start with; weight that a token keeps at the next."""
TIMES = {"model": (0.1, 0.25, 0.01), NGRAM: (0.01, 0.0001, 0.0), "self": (0.1, 0.8, 0.0)}
"""`DraftTimes` priors."""
TRIED_AGAIN = 100.0
"""Steps without a kind after which its windows are doubted twice as much, thrice after twice as many: a wrong belief
that keeps a draft from being asked would keep itself."""
STANDS_FOR, STANDS_WITHIN = 4, 0.03
"""An outlook stands for so many steps of its request, and while the rate that its floors are for is so near."""


NOTHING_KNOWN = RequestRates(PLACES)
COUNTS = np.arange(LONGEST + 1)


class StepModel:
    """Learns from every step; deterministic. Times are in steps without a draft."""

    def __init__(self, kinds: Sequence[str]) -> None:
        """`kinds`: of the drafts there are."""
        self._rates: dict[tuple[str, Drawn], AcceptanceRates] = {}
        self._alike: dict[tuple[str, Drawn], Alikeness] = {}
        self._shares: dict[tuple[str, Drawn], np.ndarray] = {}
        self._ngrams: dict[Drawn, NgramRecord] = {}
        self._drafts = {kind: DraftTimes(TIMES[kind]) for kind in kinds}
        self._windows = WindowTimes(LONGEST + 1)
        self._factors = self._windows.factors()

    @property
    def unassisted_s(self) -> float:
        """Seconds of a step without a draft, at present."""
        return self._windows.seconds

    def observe(self, request: RequestDrafts, seen: StepSeen, times_only: bool = False) -> None:
        """`times_only`: of a step whose text says nothing of real ones."""
        request.steps += 1
        self._windows.observe(seen.proposed + 1, seen.turn_s - seen.draft_s)
        self._factors = self._windows.factors()
        if seen.kind:
            took = seen.draft_s / self._windows.seconds
            self._drafts[seen.kind].observe(seen.proposed, request.behind.get(seen.kind, 0), took)
        if not times_only:
            if seen.kind not in ("", NGRAM):
                self._learn_rates(request, seen)
            if seen.ngrams is not None:
                self._record(request).observe(request.ngrams, seen.ngrams)
        request.behind = dict(seen.behind)

    def chain(self, request: RequestDrafts, kind: str, rate: float, most: int, remaining: int) -> Outlook:
        """A draft that says how sure it is, and ends itself where another token would not earn `rate`.

        `rate`: tokens a step without a draft; `most`: tokens, >= 1; `remaining`: tokens that the request still wants.
        """
        known = request.outlooks.get(kind)
        if (
            known is None
            or known.most != most
            or request.steps - known.step >= STANDS_FOR
            or abs(rate - known.rate) > STANDS_WITHIN * known.rate
        ):
            outlook = self._ended(request, kind, rate, most, self._chances(request, kind), self._factors)
            known = request.outlooks[kind] = Reckoned(outlook, request.steps, rate, most)
        return self._caught_up(request, known.outlook, remaining)

    def given(self, request: RequestDrafts, kind: str, gamma: int, remaining: int) -> Outlook:
        """A draft of `gamma` tokens, however unlikely."""
        mean = float(self._shares_of(request, kind) @ self._chances(request, kind))
        tokens = float(np.sum(mean ** COUNTS[: gamma + 1]))
        times = float(self._factors[gamma] + self._drafts[kind].times(LONGEST)[gamma])
        return self._caught_up(request, Outlook(DraftChoice(kind, gamma), tokens, times, gamma), remaining)

    def ngrams(
        self, request: RequestDrafts, rate: float, most: int, gamma: int | None, factors: np.ndarray | None = None
    ) -> list[tuple[float, Outlook]]:
        """For each kind of match, the longest first: in which share of the steps it is found, and the best of it.

        `gamma`: given, or None; `factors`: of windows, those that may well be rather than those expected.
        """
        record = self._record(request)
        shares = record.shares(request.ngrams)
        all_times = (self._factors if factors is None else factors) + self._drafts[NGRAM].times(LONGEST)
        found = []
        for at in range(len(MATCHES) - 1, -1, -1):
            tokens = record.tokens(request.ngrams, at)[: most + 1]
            times = all_times[: len(tokens)]
            best = int((tokens - rate * times)[1:].argmax()) + 1 if gamma is None else min(gamma, len(tokens) - 1)
            choice = DraftChoice(NGRAM, best if gamma is None else gamma, MATCHES[at])
            found.append((float(shares[at]), Outlook(choice, float(tokens[best]), float(times[best]), best)))
        return found

    def hopeful(
        self, request: RequestDrafts, kind: str, rate: float, most: int, unseen: int, against: float
    ) -> list[tuple[float, Outlook, Outlook]]:
        """Drafts of `kind` ("": none) as good as they may well be: share of the steps, hope, what is expected.

        A standard deviation better, more if the kind was not verified for `unseen` steps; of n-grams, whose tokens are
        judged at every step, faster only. `against`: draft tokens of the choice that they are to be better than: what
        all windows share decides nothing.
        """
        doubts = self._windows.doubts(1 + round(against)) * (1.0 + unseen / TRIED_AGAIN)
        factors = self._factors * np.exp(-doubts)
        if not kind:
            return [(1.0, Outlook(None, 1.0, float(factors[0]), 0.0), UNASSISTED)]
        if kind == NGRAM:
            hopes = self.ngrams(request, rate, most, None, factors)
            return [(share, hope, self._believed(hope)) for share, hope in hopes]
        chances = self._chances(request, kind)
        rates, known = self._pooled(kind, request.drawn), request.rates.get(kind, NOTHING_KNOWN)
        alike = self._alike[kind, request.drawn].tokens
        doubt = math.hypot(rates.doubt(unseen), known.doubt(rates.rates(), alike))
        best = np.minimum(chances + doubt, BOUNDS[1])
        hope = self._ended(request, kind, rate, most, best, factors)
        # Where it ends itself is for what is believed to be decided by.
        choice = hope.choice._replace(chances=tuple(chances.tolist()))
        expected = self._reckon(request, kind, chances, np.array(choice.floors), self._factors)
        # Whoever tries it once pays for all that it must catch up on.
        return [(1.0, replace(hope, choice=choice), self._caught_up(request, Outlook(choice, *expected), 1))]

    # ---- what is known ---------------------------------------------------------------------------------------------

    def _record(self, request: RequestDrafts) -> NgramRecord:
        if request.drawn not in self._ngrams:
            self._ngrams[request.drawn] = NgramRecord(LONGEST)
        return self._ngrams[request.drawn]

    def _pooled(self, kind: str, drawn: Drawn) -> AcceptanceRates:
        if (kind, drawn) not in self._rates:
            self._rates[kind, drawn], self._alike[kind, drawn] = AcceptanceRates(PRIOR), Alikeness()
        return self._rates[kind, drawn]

    def _chances(self, request: RequestDrafts, kind: str) -> np.ndarray:
        """Of each place in this request; float64 [PLACES]."""
        rates = self._pooled(kind, request.drawn).rates()
        if kind not in request.rates:
            return rates
        return request.rates[kind].corrected(rates, self._alike[kind, request.drawn].tokens)

    def _shares_of(self, request: RequestDrafts, kind: str) -> np.ndarray:
        """How often each place occurs in this request; float64 [PLACES]."""
        shares = self._shares.get((kind, request.drawn), SHARES_WEIGHT * PRIOR_SHARES)
        shares = shares / shares.sum()
        if kind not in request.rates:
            return shares
        tried = request.rates[kind].tried
        return (tried + REQUEST_SHARES_WEIGHT * shares) / (tried.sum() + REQUEST_SHARES_WEIGHT)

    def _ended(
        self, request: RequestDrafts, kind: str, rate: float, most: int, chances: np.ndarray, factors: np.ndarray
    ) -> Outlook:
        token_s = np.diff(self._drafts[kind].times(LONGEST))
        mean = float(self._shares_of(request, kind) @ chances)
        floors = floors_of(rate * (token_s + np.diff(factors))[:most], mean)
        tokens, times, drafted = self._reckon(request, kind, chances, floors, factors)
        choice = DraftChoice(kind, most, chances=tuple(chances.tolist()), floors=tuple(floors.tolist()))
        return Outlook(choice, tokens, times, drafted)

    def _reckon(
        self, request: RequestDrafts, kind: str, chances: np.ndarray, floors: np.ndarray, factors: np.ndarray
    ) -> tuple[float, float, float]:
        """Tokens, times and draft tokens of a step, as expected."""
        tokens, lengths = forecast(chances, self._shares_of(request, kind), floors)
        times = (factors + self._drafts[kind].times(LONGEST))[: len(lengths)]
        return tokens, float(lengths @ times), float(lengths @ COUNTS[: len(lengths)])

    def _believed(self, hope: Outlook) -> Outlook:
        """What is expected of an n-gram draft that was hoped for."""
        gamma, times = hope.choice.gamma, self._factors + self._drafts[NGRAM].times(LONGEST)
        return Outlook(hope.choice, hope.tokens, float(times[gamma]), gamma)

    def _caught_up(self, request: RequestDrafts, outlook: Outlook, remaining: int) -> Outlook:
        """With what must be computed first, which is paid once and shared by all the steps that remain."""
        behind = request.behind.get(outlook.choice.kind, 0)
        if not behind:
            return outlook
        late = self._drafts[outlook.choice.kind].catch_up(behind) * min(1.0, outlook.tokens / max(1, remaining))
        return Outlook(outlook.choice, outlook.tokens, outlook.times + late, outlook.drafted)

    def _learn_rates(self, request: RequestDrafts, seen: StepSeen) -> None:
        if not seen.proposed:
            return
        key, known = (seen.kind, request.drawn), request.rates.setdefault(seen.kind, RequestRates(PLACES))
        places = seen.places or [UNKNOWN] * seen.proposed
        tried = Tried(places[: min(seen.accepted + 1, seen.proposed)], seen.accepted, PLACES)
        rates = self._pooled(*key)
        self._alike[key].observe(known, rates.rates(), tried)
        rates.observe(tried)
        known.observe(tried)
        # A draft that does not say how sure it is never does.
        shares = self._shares.get(key, SHARES_WEIGHT * (NOT_SAID if places[0] == UNKNOWN else PRIOR_SHARES))
        self._shares[key] = shares * SHARES_KEPT**tried.tokens + tried.tried
