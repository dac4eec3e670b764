"""`moespac profile`: what experts, calls and transfers of a deployment cost on this machine, for its next start.

The deployment is served privately and asked for texts of many lengths and drafts, so that its own actors compute from
slots and over calls what they will compute in earnest; what their cost model learned of it is kept as it always is.
Two things need asking for: transfers, which depend on what moves, and reads from disk, which the cost model leaves out.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import grpc
import numpy as np
from rich.console import Console
from tokenizers import Tokenizer

from ..actors.core import CostSample, ModelShape
from ..actors.cost_conditions import Conditions, conditions
from ..actors.cost_file import CostFile, CostFileUnreadable
from ..actors.policy.cost import LINK, LINK_PRIOR, CostModel
from ..actors.prefetcher.loader import spread
from ..actors.prefetcher.store import ExpertStore, aligned_buffer
from ..actors.transport.messages import keys, shape_from_proto
from ..actors.transport.peers import open_channel
from ..configs import Deployment, load_deployment
from ..errors import UserError
from ..protos.v1 import steps_pb2
from ..protos.v1.steps_pb2_grpc import DeviceStub
from . import run_record
from .client import Client
from .cost_report import CostRow, cost_row, cost_table
from .interrupts import Interrupts
from .launch import PREFETCHER
from .progress import conversion_bar, measuring_bar, start_bars
from .serve import Service, with_port

DISK = "disk"
PROMPT_TOKENS = (2, 4, 8, 16, 32, 64)
GAMMAS = (0, 1, 3, 8)
ROUNDS = 2
"""Of every prompt length with every γ: they give more samples than a cost model keeps."""
MAX_TOKENS = 4
TRANSFERS = 64
READS = 24
FILL_TIMEOUT_S = 60.0
ABOVE_ALL = 1 << 31
"""Utility and epoch of transfers made here: nothing a plan says is worth as much, or as new."""


class ProfileFailed(UserError):
    """What was measured is not there; the message says why."""


def run_profile(config: Path, as_json: bool) -> None:
    """Measures, prints a table, and as the last line JSON if `as_json`. Raises ProfileFailed, and what `serve` does."""
    console = Console(stderr=True)
    deployment = load_deployment(config)
    private = with_port(deployment, 0).model_copy(
        update={
            "name": f"{deployment.name}-profile-{os.getpid()}",
            # Nothing is to be learned of the routing of texts that nobody would write.
            "scheduler": deployment.scheduler.model_copy(update={"estimator": "as_described"}),
        }
    )
    for record in run_record.records():
        console.print(f"warning: {record.name!r} runs on this machine, and slows down what is measured", style="yellow")
    started, interrupts = datetime.now(UTC), Interrupts()
    name = deployment.model.target.name
    with start_bars() as report, conversion_bar(name) as convert_report:
        service = Service(private, report=report, convert_progress=convert_report, held=interrupts.held)
        service.start()
    try:
        with measuring_bar(deployment.name, "requests and transfers") as progress:
            seen = _exercise(private, service, progress)
    finally:
        service.stop(0.0)
    file = CostFile(service.store)
    file.save(seen.conditions, seen.transfers)
    rows = [*_rows(file, seen, started), *disk_costs(service.store, deployment.prefetcher.readers, seen.shape)]
    console.print(cost_table(rows, seen.shape))
    console.print(f"kept in {file.path}: the next start of this deployment begins with it", soft_wrap=True)
    if as_json:
        summary = {"deployment": deployment.name, "path": str(file.path), "expert_bytes": seen.shape.expert_bytes}
        print(json.dumps({**summary, "actors": [asdict(row) for row in rows]}), flush=True)


@dataclass(frozen=True)
class _Seen:
    """What the running service told."""

    device: str
    shape: ModelShape
    conditions: Conditions
    transfers: list[CostSample]


def _exercise(deployment: Deployment, service: Service, progress: Callable[[int, int], None]) -> _Seen:
    tokenizer = Tokenizer.from_file(str(deployment.model.target / "tokenizer.json"))
    random = np.random.default_rng(0)
    endpoints = {endpoint.name: endpoint for endpoint in service.endpoints}
    with Client(service.server) as client:
        device = client.status().device
        shape = shape_from_proto(device.model)
        lengths = [n for n in PROMPT_TOKENS if n + MAX_TOKENS < device.context_length]
        asks = [(n, gamma) for n in lengths for gamma in GAMMAS] * ROUNDS
        random.shuffle(asks)
        total = len(asks) + TRANSFERS
        for done, (tokens, gamma) in enumerate(asks):
            progress(done, total)
            prompt = tokenizer.decode(random.integers(device.vocab_size, size=tokens).tolist())
            list(client.generate(prompt or "a", MAX_TOKENS, gamma=gamma, ignore_eos=True))
        device = client.status().device
    transfers = []
    for sample in _transfers(endpoints[device.name].address, shape, device):
        transfers.append(sample)
        progress(len(asks) + len(transfers), total)
    progress(total, total)
    found = conditions(deployment, device.store_fingerprint, endpoints, PREFETCHER)
    return _Seen(device.name, shape, found, transfers)


def _transfers(address: str, shape: ModelShape, device: steps_pb2.DeviceDescription) -> Iterator[CostSample]:
    """Fills slots with experts that are not in one, as far as host memory has them."""
    resident = set(keys(device.resident))
    absent = [key for key in spread(shape) if key not in resident] if device.slots else []
    with open_channel(address) as channel:
        stub = DeviceStub(channel)
        for at, key in enumerate(absent[:TRANSFERS]):
            reference = steps_pb2.ExpertRef(layer=key.layer, expert=key.expert)
            request = steps_pb2.FillRequest(expert=reference, plan_epoch=ABOVE_ALL, utility=ABOVE_ALL + at)
            try:
                reply = stub.Fill(request, timeout=FILL_TIMEOUT_S)
            except grpc.RpcError as error:
                raise ProfileFailed(f"{device.name}: no transfer of {key}: {error.details()}: see its log") from error
            if reply.outcome == steps_pb2.FillReply.FILLED:
                yield CostSample(LINK, 1, 0, reply.seconds)


def _rows(file: CostFile, seen: _Seen, started: datetime) -> list[CostRow]:
    """What the service left in `file`, actor by actor; those that had nothing to do are missing."""
    try:
        saved = file.read()
    except CostFileUnreadable as error:
        raise ProfileFailed(str(error)) from error
    if saved is None or saved.saved < started:
        raise ProfileFailed(f"{file.path} was not written: is its folder writable, and the disk not full?")
    here = seen.conditions
    measured = [actor for actor in here if actor in saved.actors and saved.actors[actor].conditions == here[actor]]
    model = CostModel(seen.shape.expert_bytes, seen.device)
    model.take_up(sample for actor in measured for sample in saved.samples(actor))
    return [cost_row(model, actor, len(saved.actors[actor].samples), seen.shape) for actor in measured]


def disk_costs(store_path: Path, readers: int, shape: ModelShape) -> list[CostRow]:
    """Reading experts as the prefetcher does: several at once, past the page cache where the file system allows."""
    store = ExpertStore.open(store_path)
    chosen = np.random.default_rng(1)
    experts = shape.keys()
    model = CostModel(shape.expert_bytes, DISK, device_prior=LINK_PRIOR)
    buffers = [aligned_buffer(store.manifest.stride) for _ in range(readers)]
    try:
        with ThreadPoolExecutor(readers) as pool:
            for at in range(READS):
                count = 1 + at % readers
                wanted = [experts[i] for i in chosen.integers(len(experts), size=count)]
                started = time.perf_counter()
                list(pool.map(store.read_into, wanted, buffers))
                model.observe(CostSample(DISK, count, 0, time.perf_counter() - started))
    finally:
        store.close()
    return [cost_row(model, DISK, READS, shape)]
