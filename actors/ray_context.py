"""What an actor asks Ray about the node it was placed on."""

from __future__ import annotations

import ray
import ray.util

NODE_ADDRESS = "node"
"""As an actor's `host`: listen on the address by which Ray knows the node. Used where actors sit on several hosts."""


def node_id() -> str:
    """Ray's id of this node; empty outside a Ray cluster."""
    return ray.get_runtime_context().get_node_id() if ray.is_initialized() else ""


def listen_host(host: str) -> str:
    """The address to listen on for a configured `host`."""
    return ray.util.get_node_ip_address() if host == NODE_ADDRESS else host
