"""Experts that cross the link for one layer: the same bits, computed from complete copies, while others are copied."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import contextmanager, nullcontext

import numpy as np
import pytest
import torch
from tiny_device import given_costs, make_store, reference_model, rig
from tiny_models import make_qwen3_moe
from tiny_worker import worker

from moespac.actors.core import ExpertKey
from moespac.actors.gpu_device import layer as layer_module
from moespac.actors.gpu_device.hook import expert_modules
from moespac.actors.gpu_device.link import MemoryLink
from moespac.actors.policy.cost import CostModel
from moespac.actors.policy.overlap import overlap_seconds
from moespac.actors.prefetcher.store import ExpertStore
from moespac.kernels.choose import choose_kernel
from moespac.kernels.layout import ExpertLayout
from moespac.kernels.reference import TorchExperts

LAYER, EXPERTS, TOP_K = 1, 16, 4
LIMIT_S = 20.0
"""Nothing here takes so long; what would never end fails then."""


def costs(store, worker_s: float = 100.0, link_s: float = 1e-4, device_s: float = 1e-4) -> CostModel:
    return given_costs(layout(store).expert_bytes, worker_s, link_s, device_s)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Checkpoint, its store, and the eager experts module of layer 1; 16 experts, top-4."""
    folder = tmp_path_factory.mktemp("streaming")
    target = make_qwen3_moe(folder / "target", num_experts=EXPERTS, num_experts_per_tok=TOP_K)
    return target, make_store(target, folder / "store"), list(expert_modules(reference_model(target)).values())[LAYER]


def layout(store) -> ExpertLayout:
    opened = ExpertStore.open(store)
    opened.close()
    return opened.layout


def routed(tokens: int, experts: Sequence[int] = range(EXPERTS)) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states and a router's choice among `experts`, every one of which is chosen if there are enough tokens."""
    generator = torch.Generator().manual_seed(tokens)
    hidden = torch.randn((tokens, 32), generator=generator)
    index = torch.stack(
        [torch.tensor(experts)[torch.randperm(len(experts), generator=generator)[:TOP_K]] for _ in range(tokens)]
    )
    return hidden, index, torch.rand((tokens, TOP_K), generator=generator)


@contextmanager
def streaming(model, resident: Sequence[int] = (), link=None, kernel=None, workers=(), given=None, buffers: int = 2):
    """A device with `buffers` and room for `resident` of layer 1; its pass."""
    target, store, _ = model
    with rig(
        target,
        store,
        expert_memory=2**20,
        workers=workers,
        kernel=kernel or TorchExperts(layout(store), torch.float32),
        buffers=buffers,
        link=link,
        costs=given or costs(store),
    ) as device:
        device.make_resident([ExpertKey(LAYER, e) for e in resident])
        run = device.new_pass()
        run.trace = True
        yield device, run


def compute(device, run, call, layer: int = LAYER) -> torch.Tensor:
    with torch.inference_mode():
        return device.decoder.executor.bound_to(run)(layer, *call)


def until(condition) -> None:
    give_up = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < give_up, "did not happen in time"
        time.sleep(0.002)


def check_whole(device) -> None:
    """Every byte is in one place: slots, buffers, and nothing under way."""
    staging = device.decoder.executor.staging
    device.slots.check_integrity()
    staging.check_integrity()
    assert device.slots.slots + staging.buffers == len(device.slots.memory)
    assert device.slots.memory.nbytes <= 2**20


@pytest.mark.parametrize("kernel", ["torch", "fastest"])
@pytest.mark.parametrize("resident", [(), range(0, EXPERTS, 3)], ids=["none resident", "some resident"])
def test_streamed_experts_are_the_eager_modules(model, resident, kernel):
    _, store, eager = model
    call = routed(64)
    chosen = None if kernel == "torch" else choose_kernel(layout(store), torch.float32, torch.device("cpu")).kernel
    with streaming(model, resident, kernel=chosen) as (device, run):
        ours, expected = compute(device, run, call), eager(*call)
        assert torch.equal(ours, expected) if kernel == "torch" else torch.allclose(ours, expected, rtol=0, atol=1e-5)
        assert run.streamed_experts == EXPERTS - len(resident) and run.fallback_experts == run.expert_calls == 0
        assert {span.row for span in run.spans} >= {"streamed experts"}
        copies = [t for t in device.slots.transfers.take() if t.name.endswith("streamed")]
        assert len(copies) >= run.streamed_experts and {t.bytes for t in copies} == {device.shape.expert_bytes}
        assert sum(sample.experts for sample in run.samples if sample.actor == "gpu-0") == EXPERTS
        check_whole(device)


def test_link_and_workers_share_a_layer(model):
    _, store, eager = model
    call = routed(64)
    with worker(store) as actor:
        given = costs(store, worker_s=2e-3, link_s=1e-3)
        with streaming(model, range(4), workers=[actor.endpoint()], given=given) as (device, run):
            ours = compute(device, run, call)
    assert torch.allclose(ours, eager(*call), rtol=0, atol=1e-5)
    assert 0 < run.streamed_experts < 12 and run.expert_calls == 1 and run.fallback_experts == 0
    assert {"streamed experts", "cpu-0"} <= {span.row for span in run.spans}


def test_the_next_layers_experts_start_before_its_router_speaks(model):
    _, _, eager = model
    with streaming(model, buffers=4) as (device, run):
        compute(device, run, routed(64), LAYER - 1)
        staging = device.decoder.executor.staging
        until(lambda: sum(began is None for began in staging.held(LAYER)[0].values()) == 4)
        early, _ = staging.held(LAYER)
        device.slots.transfers.take()
        # Two of those that came early are wanted, the others are not.
        wanted = [*sorted(early)[:2], *[e for e in range(EXPERTS) if e not in early][:4]]
        call = routed(64, wanted)
        assert torch.equal(compute(device, run, call), eager(*call))
        copied = {int(t.name.split()[3]) for t in device.slots.transfers.take() if t.name.startswith(f"layer {LAYER} ")}
        assert copied == set(wanted) - set(early), "what was there is not copied again"
        check_whole(device)


class Steps:
    """Link and kernel that take turns: a copy begins with the computation before it and is over before that is."""

    name = "steps"

    def __init__(self, kernel, copies: int):
        self._kernel, self._copies = kernel, copies
        self._copied = self._computed = 0
        self._turn = threading.Condition()

    def move(self, block: np.ndarray, slot: torch.Tensor, read_last, wanted) -> int:
        with self._turn:
            assert self._turn.wait_for(lambda: self._copied <= self._computed or self._copied >= self._copies, LIMIT_S)
            np.copyto(slot.numpy(), block)
            self._copied += 1
            self._turn.notify_all()
        return block.nbytes

    def rows(self, hidden, work):
        with self._turn:
            self._computed += len(work)
            self._turn.notify_all()
            assert self._turn.wait_for(lambda: self._copied > self._computed or self._copied >= self._copies, LIMIT_S)
        return self._kernel.rows(hidden, work)

    def close(self) -> None: ...


def test_one_expert_is_computed_while_the_next_is_copied(model):
    """It could not end otherwise: each copy but the first waits for a computation, and each computation for a copy."""
    _, store, eager = model
    call = routed(64, range(6))
    steps = Steps(TorchExperts(layout(store), torch.float32), 6)
    with streaming(model, link=steps, kernel=steps) as (device, run):
        assert torch.equal(compute(device, run, call), eager(*call))
        copies = [(t.start_ns, t.end_ns) for t in device.slots.transfers.take()][:6]
        computed = [(span.start_ns, span.end_ns) for span in run.spans if span.row == "streamed experts"]
    assert run.streamed_experts == 6 and overlap_seconds(copies, computed) > 0


class Held(MemoryLink):
    """A link whose copies do not arrive before `go`, and fail then where `fails`."""

    def __init__(self):
        self.begun, self.go, self.fails, self.moves = threading.Event(), threading.Event(), False, 0

    def move(self, block: np.ndarray, slot: torch.Tensor, read_last, wanted) -> int:
        self.moves += 1
        self.begun.set()
        assert self.go.wait(LIMIT_S)
        if self.fails:
            raise RuntimeError("no route")
        return super().move(block, slot, read_last, wanted)


def test_copies_that_fail_are_computed_from_host_memory(model):
    _, _, eager = model
    link, call = Held(), routed(64)
    link.fails = True
    link.go.set()
    with streaming(model, link=link) as (device, run):
        assert torch.equal(compute(device, run, call), eager(*call))
        assert run.streamed_experts == 0 and run.fallback_experts == EXPERTS
        check_whole(device)


def test_a_copy_that_never_arrives_is_given_up(model, monkeypatch):
    _, _, eager = model
    monkeypatch.setattr(layer_module, "COPY_PATIENCE_S", 0.05)
    link, call = Held(), routed(64)
    with streaming(model, link=link) as (device, run):
        staging = device.decoder.executor.staging
        assert torch.equal(compute(device, run, call), eager(*call))
        assert run.streamed_experts == 0 and run.fallback_experts == EXPERTS and link.moves == 1
        # Nor is it asked again as long as that copy hangs.
        assert not staging.usable and torch.equal(compute(device, run, call), eager(*call)) and link.moves == 1
        link.go.set()
        until(lambda: staging.usable)
        assert torch.equal(compute(device, run, call), eager(*call)) and run.streamed_experts == EXPERTS
        check_whole(device)


class Releasing:
    """A kernel that lets `event` happen when it computes the first time."""

    def __init__(self, kernel, event: threading.Event):
        self.name, self._kernel, self._event = kernel.name, kernel, event

    def rows(self, hidden, work):
        self._event.set()
        return self._kernel.rows(hidden, work)


@pytest.mark.parametrize("ends", ["lands", "fails", "hangs"])
def test_an_expert_on_its_way_to_a_slot_is_waited_for(model, monkeypatch, ends):
    """The copy goes on while residents are computed. The workers are as good as none; nothing is copied twice."""
    _, store, eager = model
    monkeypatch.setattr(layer_module, "COPY_PATIENCE_S", 0.05 if ends == "hangs" else LIMIT_S)
    call, key, link = routed(64, range(6)), ExpertKey(LAYER, 5), Held()
    kernel = TorchExperts(layout(store), torch.float32)
    if ends != "hangs":
        kernel = Releasing(kernel, link.go)
    link.go.set()
    with worker(store) as actor, streaming(model, range(5), link, kernel, [actor.endpoint()]) as (device, run):
        link.go.clear()
        link.begun.clear()
        link.fails = ends == "fails"

        def fill() -> None:
            with nullcontext() if ends != "fails" else pytest.raises(RuntimeError, match="no route"):
                device.slots.fill(device.source, key, 1, 0)

        filling = threading.Thread(target=fill)
        filling.start()
        assert link.begun.wait(LIMIT_S)
        assert torch.equal(compute(device, run, call), eager(*call))
        assert run.awaited_experts == (ends == "lands") and run.fallback_experts == (ends != "lands")
        assert run.expert_calls == run.streamed_experts == 0 and link.moves == 6
        assert (f"layer {LAYER} awaited" in {span.name for span in run.spans}) == (ends == "lands")
        link.go.set()
        filling.join(LIMIT_S)
        assert (key in device.slots.residents()) == (ends != "fails")
        check_whole(device)


def test_copies_made_for_later_give_way(model):
    with streaming(model) as (device, _):
        device.slots.right_of_way.claim()
        filling = threading.Thread(target=device.make_resident, args=([ExpertKey(0, 0)],))
        filling.start()
        filling.join(0.05)
        assert filling.is_alive() and device.slots.residents() == [] and device.slots.under_way() == {}
        device.slots.right_of_way.release()
        filling.join(LIMIT_S)
        assert device.slots.residents() == [ExpertKey(0, 0)]
        device.slots.right_of_way.claim()
        device.slots.right_of_way.give_way(0.01)  # not for ever
