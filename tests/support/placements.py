"""Devices that differ in where their experts are computed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tiny_device import Rig, given_costs, rig
from tiny_worker import worker

from moespac.actors.core import ExpertKey


def placed(placement: str, target: Path, draft: Path, store: Path) -> Iterator[Rig]:
    """hot: all experts resident; cold: all on a worker; mixed: a quarter resident; fallback: no slots and no worker;
    streamed: as mixed, with half of what is not resident copied for its layer alone."""
    everything = 2**30
    if placement in ("hot", "fallback"):
        with rig(target, store, draft, everything if placement == "hot" else 0) as device:
            if placement == "hot":
                device.make_resident(device.shape.keys())
            yield device
        return
    with worker(store, memory=everything) as actor, rig(target, store, draft, 0, [actor.endpoint()]) as cold:
        if placement == "cold":
            yield cold
            return
        quarter = [ExpertKey(layer, e) for layer in cold.shape.layer_ids for e in range(0, cold.shape.n_experts, 4)]
        buffers = 2 if placement == "streamed" else 0
        budget = (len(quarter) + buffers) * cold.slots.slot_bytes
        costs = given_costs(cold.shape.expert_bytes, 1e-3, 1e-3, 1e-4) if buffers else None
        with rig(target, store, draft, budget, [actor.endpoint()], buffers=buffers, costs=costs) as mixed:
            mixed.make_resident(quarter)
            yield mixed
