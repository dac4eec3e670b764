"""The CPU worker as an actor: started by Ray, found by name, reached over gRPC."""

from __future__ import annotations

from pathlib import Path

import torch

from ...configs import Deployment
from ...kernels.choose import choose_kernel
from ...kernels.layout import FLOAT_FORMATS
from ...protos.v1.experts_pb2_grpc import add_ExpertsServicer_to_server
from ..loading_actor import LoadingActor
from ..prefetcher.source import ExpertSource
from ..prefetcher.store import ExpertStore
from ..transport.endpoint import Resolve
from .compute import ExpertComputer
from .service import ExpertsService
from .weights import StartFailed, convert_here, open_source

STAGES = ("store", "weights", "ready")
"""Of the start-up: opening the expert store, finding the weights in host memory, serving."""


class CpuWorkerActor(LoadingActor):
    """Computes cold experts from host memory.

    The constructor returns at once; a thread opens the weights, and `ready` says when calls are served.
    """

    kind = "cpu_worker"

    def __init__(
        self,
        name: str,
        deployment: Deployment,
        store_path: Path,
        prefetcher_name: str,
        host: str,
        resolve: Resolve,
    ):
        """`name`: of a device of kind cpu; `host`: address to listen on; `resolve`: finds the prefetcher."""
        config = next(device for device in deployment.workers if device.name == name)
        self._service = ExpertsService(name, config.threads, config.cores, lane=config.lane == "auto")
        super().__init__(name, host, resolve, self._service.handler_threads)
        self._config = config
        self._dtype = FLOAT_FORMATS[deployment.model.compute_dtype]
        self._store_path, self._prefetcher = Path(store_path), prefetcher_name
        self._server.add(add_ExpertsServicer_to_server, self._service)
        self._store: ExpertStore | None = None
        self._source: ExpertSource | None = None
        self._stage = 0
        self._model = deployment.model
        self._converted: tuple[int, int] | None = None
        self._open()

    def progress(self) -> dict[str, str | int]:
        """`stage`: its name; `done` and `total`: stages of the start-up, bytes while converting."""
        if self._converted is not None:
            done, total = self._converted
            return {"stage": "converting", "done": done, "total": total}
        return {"stage": STAGES[self._stage], "done": self._stage, "total": len(STAGES) - 1}

    def stop(self, grace_s: float = 1.0) -> None:
        """Refuses new calls, lets the running one end and frees threads and memory. Idempotent."""
        self._stopping.set()
        self._server.stop(grace_s)
        self._starter.join()
        self._service.close()
        if self._source is not None:
            self._source.close()
        if self._store is not None:
            self._store.close()
        self._peers.close()

    def _load(self) -> bool:
        # The launcher converts on its own machine only.
        if not self._store_path.exists():
            convert_here(self._model, self._store_path, self._converting)
            self._converted = None
        self._store = ExpertStore.open(self._store_path)
        self._stage = STAGES.index("weights")
        self._source = open_source(self._config, self._store, self._peers, self._prefetcher, self._stopping)
        choice = choose_kernel(self._store.layout, self._dtype, torch.device("cpu"))
        self._log.info("expert kernel", kernel=choice.kernel.name, reason=choice.reason)
        computer = ExpertComputer(self._source, choice.kernel, self._dtype)
        self._service.serve(computer, self._store.fingerprint, self._store.shape)
        self._stage = STAGES.index("ready")
        return True

    def _converting(self, done: int, total: int) -> None:
        if self._stopping.is_set():
            raise StartFailed("stopped while starting")
        self._converted = (done, total)
