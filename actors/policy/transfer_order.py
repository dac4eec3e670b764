"""Which expert crosses the link next."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass

from ..core import ExpertKey
from .cache_order import IntegrityError


@dataclass(frozen=True)
class Transfer:
    """One wanted copy of an expert into a slot."""

    key: ExpertKey
    utility: int
    plan_epoch: int


class TransferQueue:
    """Wanted transfers, highest utility first, among equals the earlier layer and then the lower expert
    first.

    Each expert is in here at most once: waiting, set aside, refused, or in flight. A new plan replaces
    everything that is not in flight, so nothing goes stale. A transfer that cannot be done now is set aside, or
    refused by the device, and stands in front of nobody. At most `link_budget_bytes` are started a plan; what
    did not cross the link gives its bytes back. Not thread-safe: the owner locks.
    """

    def __init__(self, expert_bytes: int) -> None:
        if expert_bytes < 1:
            raise ValueError(f"expert_bytes is {expert_bytes}; expected at least 1")
        self._expert_bytes = expert_bytes
        self._epoch = -1
        self._budget = 0
        self._spent = 0
        self._wanted: dict[ExpertKey, int] = {}
        self._heap: list[tuple[int, ExpertKey]] = []
        self._set_aside: dict[ExpertKey, int] = {}
        self._refused: dict[ExpertKey, int] = {}
        self._in_flight: dict[ExpertKey, Transfer] = {}

    def __len__(self) -> int:
        """Transfers waiting, set aside or refused; those in flight not counted."""
        return len(self._heap) + len(self._set_aside) + len(self._refused)

    @property
    def worth_a_retry(self) -> bool:
        """Whether something is set aside and the budget allows a transfer."""
        return bool(self._set_aside) and self.budget_left >= self._expert_bytes

    @property
    def plan_epoch(self) -> int:
        """Of the plan held; −1 before the first."""
        return self._epoch

    @property
    def budget_left(self) -> int:
        """Bytes this plan may still start."""
        return self._budget - self._spent

    @property
    def in_flight(self) -> tuple[ExpertKey, ...]:
        return tuple(self._in_flight)

    def replace(self, plan_epoch: int, wanted: Iterable[tuple[ExpertKey, int]], link_budget_bytes: int) -> bool:
        """Takes a plan's wishes, (expert, utility) each, instead of all earlier ones; False for an older
        plan.

        An expert named twice counts once, with its highest utility. The plan already held may be given again,
        with other wishes: its spent bytes stay spent.
        """
        if plan_epoch < self._epoch:
            return False
        if plan_epoch > self._epoch:
            self._spent = 0
        self._epoch = plan_epoch
        self._budget = link_budget_bytes
        self._wanted = {}
        for key, utility in wanted:
            self._wanted[key] = max(utility, self._wanted.get(key, utility))
        self._set_aside.clear()
        self._refused.clear()
        self._heap = [(-utility, key) for key, utility in self._wanted.items() if key not in self._in_flight]
        heapq.heapify(self._heap)
        return True

    def pop(self) -> Transfer | None:
        """The most wanted transfer, now in flight; None if nothing waits or it would exceed the budget."""
        if not self._heap or self._spent + self._expert_bytes > self._budget:
            return None
        negative, key = heapq.heappop(self._heap)
        transfer = Transfer(key, -negative, self._epoch)
        self._in_flight[key] = transfer
        self._spent += self._expert_bytes
        return transfer

    def done(self, transfer: Transfer, moved: bool = True) -> None:
        """The transfer is over. `moved=False`: nothing crossed the link, its bytes go back to the budget.

        If it was begun for an earlier plan and did not move, it is in line again where the plan held wants it too.
        """
        self._land(transfer)
        if moved:
            return
        self._refund(transfer)
        self._line_up_if_newer(transfer)

    def set_aside(self, transfer: Transfer, moved: bool = False) -> None:
        """The transfer cannot be done now, as its weights are not in host memory; it waits for `retry`.

        If a newer plan came meanwhile, it waits at that plan's utility, or is dropped if the plan does not
        want it. `moved`: bytes crossed the link all the same.
        """
        self._land(transfer)
        if not moved:
            self._refund(transfer)
        if transfer.key in self._wanted:
            self._set_aside[transfer.key] = self._wanted[transfer.key]

    def refused(self, transfer: Transfer) -> None:
        """The device has nobody to evict for it; it waits for `readmit`. A newer plan counts as in `set_aside`."""
        self._land(transfer)
        self._refund(transfer)
        if transfer.key in self._wanted:
            self._refused[transfer.key] = self._wanted[transfer.key]

    def broken_off(self, transfer: Transfer, moved: bool) -> None:
        """The device has not finished it, for a newer plan's sake; it is in line again where the plan held is newer and
        wants it. `moved`: some of its bytes crossed the link."""
        self._land(transfer)
        if not moved:
            self._refund(transfer)
        self._line_up_if_newer(transfer)

    def retry(self) -> None:
        """Puts all that was set aside back in line, by utility."""
        self._queue_again(self._set_aside)

    def readmit(self) -> None:
        """The device's residents have changed: puts all that was refused back in line, by utility."""
        self._queue_again(self._refused)

    def check_integrity(self) -> None:
        """Raises IntegrityError unless every expert is in one place, wanted where it waits, and the budget is kept."""
        waiting = [*(key for _, key in self._heap), *self._set_aside, *self._refused]
        places = [*waiting, *self._in_flight]
        if len(set(places)) != len(places):
            raise IntegrityError(f"experts in more than one place: {sorted(k for k in places if places.count(k) > 1)}")
        if not self._wanted.keys() >= set(waiting):
            raise IntegrityError(
                f"waiting, but the plan does not want them: {sorted(set(waiting) - self._wanted.keys())}"
            )
        ours = sum(transfer.plan_epoch == self._epoch for transfer in self._in_flight.values()) * self._expert_bytes
        if self._spent < ours:
            raise IntegrityError(f"{ours} bytes are in flight but only {self._spent} are counted as spent")

    def _queue_again(self, waiting: dict[ExpertKey, int]) -> None:
        for key, utility in waiting.items():
            heapq.heappush(self._heap, (-utility, key))
        waiting.clear()

    def _line_up_if_newer(self, transfer: Transfer) -> None:
        if transfer.plan_epoch < self._epoch and transfer.key in self._wanted:
            heapq.heappush(self._heap, (-self._wanted[transfer.key], transfer.key))

    def _land(self, transfer: Transfer) -> None:
        if self._in_flight.pop(transfer.key, None) is None:
            raise ValueError(f"{transfer.key} is not in flight")

    def _refund(self, transfer: Transfer) -> None:
        # Bytes of an earlier plan's transfer were never charged to this plan's budget.
        if transfer.plan_epoch == self._epoch:
            self._spent -= self._expert_bytes
