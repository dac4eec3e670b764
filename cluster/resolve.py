"""Finds actors by name through Ray, wherever the caller runs in the cluster."""

from __future__ import annotations

from dataclasses import dataclass

import ray
from ray.exceptions import GetTimeoutError, RayError

from ..actors.transport.endpoint import Endpoint, PeerUnknown
from ..protos.v1.generation_pb2 import ActorInfo

ANSWER_S = 5.0
"""An actor that does not say within this time where it listens counts as away."""


@dataclass(frozen=True)
class RayResolve:
    """A `Resolve` that can be handed to actors."""

    namespace: str

    def __call__(self, name: str) -> Endpoint:
        try:
            handle = ray.get_actor(name, namespace=self.namespace)
            return ray.get(handle.endpoint.remote(), timeout=ANSWER_S)
        except (ValueError, GetTimeoutError, RayError) as error:
            raise PeerUnknown(f"actor {name!r} of {self.namespace!r} is away: {type(error).__name__}") from error


@dataclass(frozen=True)
class ActorDirectory:
    """Lists a deployment's actors as they are now, those that are away included; can be handed to actors."""

    resolve: RayResolve
    actors: tuple[tuple[str, str], ...]
    """(name, kind)."""

    def __call__(self) -> list[ActorInfo]:
        return [self._look(name, kind) for name, kind in self.actors]

    def _look(self, name: str, kind: str) -> ActorInfo:
        try:
            endpoint = self.resolve(name)
            handle = ray.get_actor(name, namespace=self.resolve.namespace)
            ready = ray.get(handle.ready.remote(), timeout=ANSWER_S)
        except (PeerUnknown, ValueError, GetTimeoutError, RayError):
            return ActorInfo(name=name, kind=kind)
        return ActorInfo(
            name=name,
            kind=kind,
            pid=endpoint.pid,
            node=endpoint.node,
            address=endpoint.address,
            version=endpoint.version,
            ready=ready,
        )
