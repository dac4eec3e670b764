"""Everything a device needs before it can compute: trunk, draft, weights in reach, slots, KV budget."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import structlog
import torch

from ...configs import Deployment, GpuDeviceConfig
from ...errors import UserError
from ...kernels.choose import choose_kernel
from ...kernels.layout import FLOAT_FORMATS
from ..core import CostSample, ModelShape
from ..cost_conditions import conditions, endpoints_of
from ..cost_file import CostFile
from ..policy.cost import DEVICE_PRIOR, LINK_PRIOR, WORKER_PRIOR, CostModel, Prior
from ..prefetcher.arena import ArenaElsewhere, ArenaError
from ..prefetcher.checkpoint import open_checkpoint
from ..prefetcher.source import ExpertSource
from ..prefetcher.store import ExpertStore
from ..transport.calls import ExpertCaller
from ..transport.peers import Peers
from .decode import Decoder
from .drafts.dense import DenseDraft
from .drafts.interface import Draft
from .drafts.ngram import NgramDraft
from .drafts.resident import ResidentDraft
from .kv import KvBudget, bytes_per_token
from .layer import LayerExecutor
from .link import CudaLink, EmulatedLink, Link, MemoryLink
from .measured_costs import MeasuredCosts
from .misses import Workers
from .same_tokenizer import check_same_tokenizer
from .sessions import Sessions
from .slots import ExpertSlots, slots_within
from .staging import Staging, buffers_of
from .trunk import LoadedModel, load_draft, load_trunk

log = structlog.get_logger()

STAGES = ("trunk", "draft", "weights", "ready")
ATTACH_PATIENCE_S = 120.0
"""Longest wait for a prefetcher that is starting at the same time."""
ATTACH_SLICE_S = 1.0


class DeviceUnusable(UserError, RuntimeError):
    """The device cannot serve with this configuration; the message says what to change."""


@dataclass(frozen=True)
class Device:
    """A loaded device."""

    config: GpuDeviceConfig
    shape: ModelShape
    fingerprint: str
    target: LoadedModel
    source: ExpertSource
    slots: ExpertSlots
    sessions: Sessions
    decoder: Decoder
    close: Callable[[], None]
    """Frees threads and mappings; nothing may be in use."""


def load_device(
    deployment: Deployment,
    store_path: Path,
    peers: Peers,
    prefetcher: str,
    workers: Sequence[str],
    entered: Callable[[str], None],
    stopping: threading.Event,
) -> Device:
    """Loads the deployment's gpu device; `entered` is told each of STAGES as it begins.

    Raises DeviceUnusable, TrunkError, TokenizerMismatch, BudgetTooSmall, CheckpointError, StoreError, ArenaError.
    """
    config, model = deployment.gpu, deployment.model
    device, dtype = torch_device(config), FLOAT_FORMATS[model.compute_dtype]
    with ExitStack() as undo:
        store = ExpertStore.open(store_path)
        undo.callback(store.close)
        shape = store.shape
        # What cannot work is said before anything large is loaded.
        slots_within(config.expert_memory, shape)
        # A store's experts may take other bytes than their checkpoint's.
        if replace(open_checkpoint(model.target).shape, expert_bytes=shape.expert_bytes) != shape:
            raise DeviceUnusable(
                f"{store_path} holds the experts of another model than {model.target}: convert it again"
            )
        if deployment.draft_model is not None:
            check_same_tokenizer(model.target, deployment.draft_model)
        entered("trunk")
        with fitting(config, "the trunk", "choose a smaller model.compute_dtype"):
            target = load_trunk(model.target, dtype, device, model.trunk_format)
        entered("draft")
        with fitting(config, "the draft model", "choose a smaller one, or leave it out of draft.kinds"):
            draft = load_draft(deployment.draft_model, dtype, device) if deployment.draft_model is not None else None
        kv_bytes = bytes_per_token(target) + (bytes_per_token(draft) if draft else 0)
        entered("weights")
        source = _attach(config.name, peers, prefetcher, store, stopping)
        undo.callback(source.close)
        link = _link(config, device, source, shape)
        # Without a link, host memory is as near as a buffer would be.
        buffers = buffers_of(slots_within(config.expert_memory, shape)) if config.has_link else 0
        with fitting(config, f"expert_memory of {config.expert_memory:,} bytes", "lower it"):
            slots = ExpertSlots(shape, config.expert_memory, device, link, buffers)
        undo.callback(slots.close)
        staging = None
        if buffers:
            staging = Staging(slots.buffers, shape.expert_bytes, source, link, slots.transfers, slots.right_of_way)
            undo.callback(staging.close)
        costs = MeasuredCosts(assumed_costs(config, device, shape), slots.transfers)
        costs.take_up(known_costs(deployment, store, peers, prefetcher), config.name)
        caller = ExpertCaller(peers, store.fingerprint)
        undo.callback(caller.close)
        calls = Workers(caller, workers, costs)
        choice = choose_kernel(store.layout, dtype, device, slots.memory)
        spare = choice if device.type == "cpu" else choose_kernel(store.layout, dtype, device)
        log.info("expert kernel", actor=config.name, kernel=choice.kernel.name, reason=choice.reason)
        executor = LayerExecutor(config.name, shape, choice.kernel, spare.kernel, slots, source, costs, calls, staging)
        decoder = Decoder(target, _drafts(deployment, target, draft, executor), executor)
        sessions = Sessions(decoder, KvBudget(config.kv_memory, kv_bytes))
        return Device(config, shape, store.fingerprint, target, source, slots, sessions, decoder, undo.pop_all().close)


def known_costs(deployment: Deployment, store: ExpertStore, peers: Peers, prefetcher: str) -> list[CostSample]:
    """What was measured before, as far as that was measured of the same."""
    names = (prefetcher, *(device.name for device in deployment.devices))
    here = conditions(deployment, store.fingerprint, endpoints_of(names, peers.endpoint), prefetcher)
    return CostFile(store.path).load(here)


@contextmanager
def fitting(config: GpuDeviceConfig, what: str, remedy: str) -> Iterator[None]:
    """Turns a failure to allocate, by whoever allocates within, into DeviceUnusable."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # torch has a type of its own for CUDA only; on CPUs the message is all there is.
        if not (isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)):
            raise
        raise DeviceUnusable(
            f"devices.{config.name}: {what} does not fit in the memory of {config.torch_device}: {remedy}, or "
            f"use a device with more ({str(error).splitlines()[0]})"
        ) from error


def _drafts(
    deployment: Deployment, target: LoadedModel, model: LoadedModel | None, executor: LayerExecutor
) -> dict[str, Draft]:
    drafts: dict[str, Draft] = {}
    for kind in deployment.draft_kinds:
        if kind == "ngram":
            drafts[kind] = NgramDraft(deployment.draft.ngram_memory)
        elif kind == "self":
            drafts[kind] = ResidentDraft(target, executor)
        elif model is not None:
            drafts[kind] = DenseDraft(model, target.vocab_size)
    return drafts


def torch_device(config: GpuDeviceConfig) -> torch.device:
    """Where to compute: emulated devices compute on the CPU. Raises DeviceUnusable when there is no such device."""
    if config.torch_device in ("cpu", "emulated"):
        return torch.device("cpu")
    device = torch.device(config.torch_device)
    if not torch.cuda.is_available() or device.index >= torch.cuda.device_count():
        raise DeviceUnusable(
            f"devices.{config.name}.torch_device: {config.torch_device}, but torch sees "
            f"{torch.cuda.device_count()} CUDA devices here: choose another, or cpu"
        )
    return device


def _attach(name: str, peers: Peers, prefetcher: str, store: ExpertStore, stopping: threading.Event) -> ExpertSource:
    """The prefetcher's arena, once it is up: both start at the same time."""
    give_up = time.monotonic() + ATTACH_PATIENCE_S
    while True:
        try:
            return ExpertSource.shared(peers, prefetcher, store.shape, store, timeout_s=ATTACH_SLICE_S)
        except ArenaElsewhere as error:
            raise DeviceUnusable(
                f"devices.{name}.placement: the arena of {prefetcher} is on another host, and a gpu device reads it in "
                f"place: give {name} and the prefetcher the same placement"
            ) from error
        except ArenaError as error:
            if stopping.is_set():
                raise DeviceUnusable("stopped while starting") from error
            if time.monotonic() > give_up:
                raise


def assumed_costs(config: GpuDeviceConfig, device: torch.device, shape: ModelShape) -> CostModel:
    """Before anything is measured: a processor computes here as on a worker, and an emulated link is what it says."""
    computing = DEVICE_PRIOR
    if device.type == "cpu":
        computing = Prior(DEVICE_PRIOR.call_s, WORKER_PRIOR.bytes_per_s, WORKER_PRIOR.pair_share)
    link = LINK_PRIOR if config.link is None else Prior(config.link.latency, config.link.bandwidth, 0.0)
    # Of workers their computing alone: what calls take is measured apart.
    return CostModel(shape.expert_bytes, config.name, computing, replace(WORKER_PRIOR, call_s=0.0), link)


def _link(config: GpuDeviceConfig, device: torch.device, source: ExpertSource, shape: ModelShape) -> Link:
    if config.link is not None:
        return EmulatedLink(config.link)
    if device.type == "cuda":
        return CudaLink(device, lambda: source.arena.memory, shape.expert_bytes)
    return MemoryLink()
