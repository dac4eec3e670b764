"""The cheapest assignment within the budgets when costs are given for every expert by itself: a flow, exactly."""

from __future__ import annotations

import numpy as np
from ortools.graph.python import min_cost_flow

from .assignment_prices import Pricing

RESOLUTION = 1_000_000
"""Costs are whole numbers up to this."""


def flow_assignment(pricing: Pricing, cost: np.ndarray) -> np.ndarray:
    """The executing device of every expert, int [layers, experts], with the least sum of `cost`.

    `cost`: float [devices, layers, experts]. An expert flows to a device straight if it is held there, else through
    the device's link. Raises ValueError when slots and links do not allow every expert a place.
    """
    devices, layers, experts = cost.shape
    count = layers * experts
    flat, absent = cost.reshape(devices, count), pricing.absent.reshape(devices, count)
    whole = np.rint((flat - flat.min()) * (RESOLUTION / max(float(np.ptp(flat)), 1e-30))).astype(np.int64)
    device_node, link_node = count + np.arange(devices), count + devices + np.arange(devices)
    sink = count + 2 * devices

    flow = min_cost_flow.SimpleMinCostFlow()
    tails = np.tile(np.arange(count), devices)
    heads = np.where(absent, link_node[:, None], device_node[:, None]).ravel()
    arcs = flow.add_arcs_with_capacity_and_unit_cost(tails, heads, np.ones(tails.size, np.int64), whole.ravel())
    limit = np.full(devices, 0)
    flow.add_arcs_with_capacity_and_unit_cost(
        link_node, device_node, np.minimum(pricing.links, count).astype(int), limit
    )
    flow.add_arcs_with_capacity_and_unit_cost(
        device_node, np.full(devices, sink), np.minimum(pricing.slots, count).astype(int), limit
    )
    flow.set_nodes_supplies(np.append(np.arange(count), sink), np.append(np.ones(count, np.int64), -count))
    status = flow.solve()
    if status != flow.OPTIMAL:
        raise ValueError(
            f"the executors' slots and links have no place for all {count} experts: give one executor slots for all of "
            "them, or a larger link budget"
        )
    return flow.flows(arcs).reshape(devices, layers, experts).argmax(axis=0)
