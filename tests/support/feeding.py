"""A prefetcher in this process that feeds a device with slots and no model."""

from __future__ import annotations

import time
import uuid

import numpy as np
import torch

from moespac.actors.core import Plan
from moespac.actors.gpu_device.link import MemoryLink
from moespac.actors.gpu_device.slots import ExpertSlots
from moespac.actors.prefetcher.arena import Arena
from moespac.actors.prefetcher.loader import Loader
from moespac.actors.prefetcher.service import Engine, PrefetcherService
from moespac.actors.prefetcher.source import ExpertSource
from moespac.actors.prefetcher.transfers import DeviceFeeder
from moespac.actors.transport.endpoint import Endpoint, PeerUnknown
from moespac.actors.transport.messages import keys, plan_from_proto, refs
from moespac.actors.transport.peers import Peers
from moespac.actors.transport.server import ActorServer
from moespac.protos.v1 import steps_pb2 as pb
from moespac.protos.v1.steps_pb2_grpc import (
    DeviceServicer,
    PrefetcherStub,
    add_DeviceServicer_to_server,
    add_PrefetcherServicer_to_server,
)

STRIDE, EXPERT = 4096, 3072


class Directory(dict):
    """Endpoints by name."""

    def __call__(self, name):
        if name not in self:
            raise PeerUnknown(f"no actor {name}")
        return self[name]


class SlotsDevice(DeviceServicer):
    """A device reduced to its slots: real ones, really filled from the arena."""

    def __init__(self, directory, store, slots, link=None):
        self.fills, self.asked = [], 0
        self.filled = lambda context: None
        """Called when a fill is over, before it is answered."""
        self._store = store
        self._peers = Peers(directory)
        self._source = ExpertSource.shared(self._peers, "prefetcher", store.shape)
        self.slots = ExpertSlots(store.shape, slots * EXPERT, torch.device("cpu"), link or MemoryLink())
        self._server = ActorServer("gpu-0")
        self._server.add(add_DeviceServicer_to_server, self)
        address, incarnation = self._server.start(), uuid.uuid4().hex
        directory["gpu-0"] = Endpoint("gpu-0", "gpu_device", address, incarnation=incarnation)

    def Describe(self, request, context):
        residents = refs(self.slots.residents())
        fingerprint = self._store.fingerprint
        return pb.DeviceDescription(
            ready=True, store_fingerprint=fingerprint, slots=self.slots.slots, resident=residents
        )

    def Fill(self, request, context):
        (key,) = keys([request.expert])
        self.asked += 1
        filled = self.slots.fill(self._source, key, request.utility, request.plan_epoch)
        self.fills.append((key, request.plan_epoch, filled.outcome.name))
        self.filled(context)
        return pb.FillReply(
            outcome=filled.outcome.value, evicted=refs(filled.evicted), bytes=filled.bytes, seconds=filled.seconds
        )

    def SetPlan(self, request, context):
        self.slots.set_plan(plan_from_proto(request, self._store.shape))
        return pb.PlanReply(accepted=True)

    def content(self):
        """Each resident's bytes."""
        found = {}
        for key in self.slots.residents():
            with self.slots.pinned(key.layer, [key.expert]) as memory:
                found[key] = memory[key.expert].numpy().tobytes()
        return found

    def close(self):
        self._server.stop(0)
        self._source.close()
        self._peers.close()


class Rig:
    def __init__(self, store, blocks):
        self.directory, self.store = Directory(), store
        self.arena = Arena.create(store.shape, blocks * STRIDE)
        self.loader = Loader(store, self.arena, 2)
        self.loader.start()
        self.peers = Peers(self.directory)
        self.log = []
        self.feeder = DeviceFeeder(self.peers, "gpu-0", self.loader, store.shape, store.fingerprint, self.log.append)
        self.service = PrefetcherService("prefetcher")
        self.server = ActorServer("prefetcher")
        self.server.add(add_PrefetcherServicer_to_server, self.service)
        self.directory["prefetcher"] = Endpoint("prefetcher", "prefetcher", self.server.start())
        self.stub = self.peers.stub("prefetcher", PrefetcherStub)
        self.device = None

    def serve(self):
        self.service.serve(Engine(self.store, self.arena, self.loader, self.feeder.set_plan))
        assert self.loader.wait_filled(30)
        return self

    def with_device(self, slots, feed=True, link=None):
        self.device = SlotsDevice(self.directory, self.store, slots, link)
        if feed:
            self.feeder.start()
        return self.device

    def close(self):
        self.server.stop(0)
        self.loader.stop()
        self.peers.close()
        self.feeder.stop()
        if self.device:
            self.device.close()
        self.arena.close()


def plan(shape, utilities, epoch, budget=10**9, threshold=1):
    table = np.zeros((shape.n_layers, shape.n_experts), dtype=int)
    for key, utility in utilities.items():
        table[shape.row(key.layer), key.expert] = utility
    return Plan(epoch, np.full(shape.n_layers, threshold), table, budget, "GREEDY")


def until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.005)
