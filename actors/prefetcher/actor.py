"""The prefetcher as an actor: started by Ray, found by name, reached over gRPC."""

from __future__ import annotations

from pathlib import Path

from ...configs import Deployment
from ...errors import UserError
from ...protos.v1.steps_pb2_grpc import add_PrefetcherServicer_to_server
from ..core import Plan
from ..loading_actor import LoadingActor
from ..transport.endpoint import Resolve
from .arena import Arena
from .loader import Loader
from .service import Engine, PrefetcherService
from .store import ExpertStore
from .transfers import DeviceFeeder

HANDLER_THREADS = 32
"""Calls served at once. Fetches may all wait for room, which only a Release, another call, makes."""
_POLL_S = 0.2


class PrefetcherActor(LoadingActor):
    """Owns the host arena: disk to arena to device slots.

    The constructor returns at once; a thread fills the arena, and `ready` says when that is done. Experts can be
    fetched before: they are read out of turn.
    """

    kind = "prefetcher"

    def __init__(
        self,
        name: str,
        deployment: Deployment,
        store_path: Path | str,
        device_names: tuple[str, ...],
        host: str,
        resolve: Resolve,
    ) -> None:
        """`device_names`: devices whose slots are fed; `host`: address to listen on; `resolve`: finds them."""
        super().__init__(name, host, resolve, HANDLER_THREADS)
        self._config = deployment.prefetcher
        self._store_path = Path(store_path)
        self._device_names = device_names
        self._service = PrefetcherService(name)
        self._server.add(add_PrefetcherServicer_to_server, self._service)
        self._store: ExpertStore | None = None
        self._arena: Arena | None = None
        self._loader: Loader | None = None
        self._feeders: list[DeviceFeeder] = []
        self._open()

    def progress(self) -> dict[str, str | int]:
        """`stage`: store, arena or ready; `done` and `total`: bytes of experts in the arena."""
        loader = self._loader
        if loader is None:
            return {"stage": "store", "done": 0, "total": 0}
        stage = "ready" if self._loaded else "arena"
        return {"stage": stage, "done": loader.loaded_bytes, "total": loader.capacity_bytes}

    def stop(self, grace_s: float = 1.0) -> None:
        """Refuses new calls, lets reads under way end, frees threads and memory. Idempotent."""
        self._stopping.set()
        self._server.stop(grace_s)
        self._starter.join()
        if self._loader is not None:
            self._loader.stop()
        # Before the feeders are waited for: it ends the call that each may have under way.
        self._peers.close()
        for feeder in self._feeders:
            feeder.stop()
        if self._arena is not None:
            self._arena.close()
        if self._store is not None:
            self._store.close()

    def _load(self) -> bool:
        self._store = store = ExpertStore.open(self._store_path)
        self._arena = arena = Arena.create(store.shape, self._config.host_memory)
        loader = Loader(store, arena, self._config.readers)
        self._feeders = [
            DeviceFeeder(self._peers, device, loader, store.shape, store.fingerprint, self._log.warning)
            for device in self._device_names
        ]
        loader.start()
        self._loader = loader
        self._service.serve(Engine(store, arena, loader, self._follow))
        for feeder in self._feeders:
            feeder.start()
        while not loader.wait_filled(_POLL_S):
            if self._stopping.is_set():
                return False
        if loader.error is not None:
            raise UserError(loader.error)
        return True

    def _follow(self, plan: Plan) -> None:
        for feeder in self._feeders:
            feeder.set_plan(plan)
