"""Where a worker's weights come from: the prefetcher's arena on its host, an arena of its own elsewhere."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

import grpc

from ...configs import CpuDeviceConfig, ModelConfig
from ...errors import UserError
from ...protos.v1.steps_pb2 import DescribeRequest, PrefetcherDescription
from ...protos.v1.steps_pb2_grpc import PrefetcherStub
from ..prefetcher.arena import ArenaUnreachable
from ..prefetcher.convert import Progress, ensure_store
from ..prefetcher.source import ExpertSource
from ..prefetcher.store import ExpertStore
from ..transport.endpoint import PeerUnknown, host_id
from ..transport.peers import Peers

PREFETCHER_LIMIT_S = 120.0
"""Longest wait for a prefetcher that is starting at the same time."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 2.0
_DESCRIBE_TIMEOUT_S = 5.0
_ATTACH_TIMEOUT_S = 10.0


class StartFailed(UserError, RuntimeError):
    """The worker cannot serve with this configuration; the message says what to change."""


def convert_here(model: ModelConfig, store_path: Path, progress: Progress) -> None:
    """Makes the store that is missing on this machine from this machine's copy of the model.

    Raises StartFailed without such a copy, CheckpointError for one that cannot be read, StoreError.
    """
    if not model.target.exists():
        raise StartFailed(
            f"model.target: {model.target} is not on this machine ({socket.gethostname()}), and neither is its expert "
            f"store {store_path}: put the model's folder at the same path on every machine"
        )
    ensure_store(model.target, store_path, progress, model.store_format, model.expert_scales)


def open_source(
    config: CpuDeviceConfig,
    store: ExpertStore,
    peers: Peers,
    prefetcher: str,
    stopping: threading.Event,
    limit_s: float = PREFETCHER_LIMIT_S,
    here: str | None = None,
) -> ExpertSource:
    """Weights as `config.arena` says; waits up to `limit_s` for the prefetcher, unless that says `own`.

    `here`: identity of this host, `host_id()` if None.
    Raises StartFailed, ArenaError (its own arena does not fit), StoreError.
    """
    if config.arena == "own":
        return _own(config, store, "arena is `own`")
    described = _wait_for_prefetcher(peers, prefetcher, stopping, limit_s)
    if described.store_fingerprint != store.fingerprint:
        raise StartFailed(
            f"store: {store.path} holds {store.fingerprint}, {prefetcher} serves "
            f"{described.store_fingerprint}: point both at copies of the same store"
        )
    # A store of its own keeps the worker serving while the prefetcher is away.
    try:
        if described.arena.host_id == (host_id() if here is None else here):
            return ExpertSource.shared(peers, prefetcher, store.shape, store, _ATTACH_TIMEOUT_S)
        reason = f"the arena of {prefetcher} is on another host"
    except ArenaUnreachable as error:
        reason = f"the arena of {prefetcher} cannot be mapped ({error})"
    if config.arena == "shared":
        raise StartFailed(
            f"devices.{config.name}.arena: shared, but {reason}: set arena: own and memory, "
            f"or place the worker on the prefetcher's host"
        )
    return _own(config, store, reason)


def _own(config: CpuDeviceConfig, store: ExpertStore, reason: str) -> ExpertSource:
    if not config.memory:
        raise StartFailed(
            f"devices.{config.name}.memory: not set, but {reason}: set memory to at least one expert "
            f"({store.shape.expert_bytes:,} bytes), such as 4GiB"
        )
    return ExpertSource.own(store, config.memory)


def _wait_for_prefetcher(
    peers: Peers, prefetcher: str, stopping: threading.Event, limit_s: float
) -> PrefetcherDescription:
    deadline, pause_s = time.monotonic() + limit_s, _FIRST_PAUSE_S
    while True:
        try:
            stub = peers.stub(prefetcher, PrefetcherStub)
            return stub.Describe(DescribeRequest(), timeout=_DESCRIBE_TIMEOUT_S)
        except PeerUnknown as error:
            reason = str(error)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
                raise StartFailed(error.details()) from error
            peers.lost(prefetcher)
            reason = f"{error.code().name}: {error.details()}"
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise StartFailed(f"{prefetcher}: not reached within {limit_s:g} s ({reason}): see that actor's log")
        if stopping.wait(min(pause_s, left_s)):
            raise StartFailed("stopped while starting")
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
