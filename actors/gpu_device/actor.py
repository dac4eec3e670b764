"""The GPU device as an actor: started by Ray, found by name, driven over gRPC."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...configs import Deployment
from ...kernels.threads import use_threads
from ...protos.v1.steps_pb2_grpc import add_DeviceServicer_to_server
from ..hardware import device_hardware
from ..loading_actor import LoadingActor
from ..transport.endpoint import Resolve
from .loading import STAGES, Device, load_device
from .service import DeviceService

HANDLER_THREADS = 16
"""Transfers in flight, the step, and a few for questions and plans beside them."""


class GpuDeviceActor(LoadingActor):
    """Holds trunk, draft, KV caches and expert slots.

    The constructor returns at once; a thread loads, and `ready` says when steps are computed.
    """

    kind = "gpu_device"

    def __init__(
        self,
        name: str,
        deployment: Deployment,
        store_path: Path,
        prefetcher_name: str,
        worker_names: Sequence[str],
        host: str,
        resolve: Resolve,
    ):
        """`host`: address to listen on; `resolve`: finds the prefetcher and the workers."""
        super().__init__(name, host, resolve, HANDLER_THREADS)
        self._deployment, self._store_path = deployment, Path(store_path)
        self._prefetcher, self._workers = prefetcher_name, tuple(worker_names)
        self._service = DeviceService(name, deployment.gpu.threads, deployment.gpu.cores)
        self._server.add(add_DeviceServicer_to_server, self._service)
        self._device: Device | None = None
        self._stage = STAGES[0]
        self._open()

    def progress(self) -> dict[str, str | int]:
        """`stage`: its name; `done` and `total`: stages of the start-up."""
        return {"stage": self._stage, "done": STAGES.index(self._stage), "total": len(STAGES) - 1}

    def stop(self, grace_s: float = 1.0) -> None:
        """Refuses new calls, abandons the running step between two layers, frees threads and memory. Idempotent."""
        self._stopping.set()
        self._service.close()
        self._server.stop(grace_s)
        self._starter.join()
        device, self._device = self._device, None
        if device is not None:
            device.close()
        self._peers.close()

    def _load(self) -> bool:
        use_threads(self._deployment.gpu.threads, self._deployment.gpu.cores)
        self._device = load_device(
            self._deployment,
            self._store_path,
            self._peers,
            self._prefetcher,
            self._workers,
            self._enter,
            self._stopping,
        )
        self._service.serve(self._device)
        self._enter("ready")
        return True

    def _hardware(self) -> str:
        return device_hardware(self._deployment.gpu.torch_device)

    def _enter(self, stage: str) -> None:
        self._stage = stage
