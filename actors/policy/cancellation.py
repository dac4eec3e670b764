"""Whether a copy under way is still worth its time on the link once a newer plan is held."""

from __future__ import annotations

from collections.abc import Container, Sequence

from ..core import ExpertKey, ModelShape, Plan


def worth_finishing(remaining: float, utility: int, wanted: bool, waiting: Sequence[int], outlasts: int) -> bool:
    """Whether finishing a copy costs no more than breaking it off: an expert that is away costs its utility a unit of
    time, and a whole copy takes one.

    `remaining`: the share still to be copied, 0 to 1; what is done is lost if it is broken off. `utility`: of the
    expert, and `wanted`: whether it would be copied again, by the plan held. `waiting`: utilities of the copies that
    this plan makes next, in any order. `outlasts`: how many of them take another slot first, should the expert get one
    after all.

    While it is finished, all that wait lose `remaining`. Broken off, a wanted expert goes back in line by its utility,
    as a whole copy: it waits for those before it, those behind it wait for it. One that is not wanted does not come,
    which costs its utility for as long as it would have stayed.
    """
    delayed = remaining * sum(waiting)
    if wanted:
        above = [other for other in waiting if other > utility]
        return delayed + remaining * utility <= utility * (len(above) + 1) + sum(waiting) - sum(above)
    return delayed <= utility * min(outlasts, len(waiting))


def waiting(plan: Plan, shape: ModelShape, held: Container[ExpertKey]) -> list[int]:
    """Utilities of the copies that `plan` makes, descending: of those it wants but for those in `held`, as far as its
    link budget goes.
    """
    rows, experts = plan.wanted().nonzero()
    utilities = plan.utilities[rows, experts].tolist()
    missing = [
        utility
        for row, expert, utility in zip(rows.tolist(), experts.tolist(), utilities, strict=True)
        if ExpertKey(shape.layer_ids[row], expert) not in held
    ]
    return sorted(missing, reverse=True)[: plan.link_budget_bytes // shape.expert_bytes]
