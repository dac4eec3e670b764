"""One layer's experts: transformers' eager experts, the same bits wherever they are computed.

With torch's reference as kernel the bits are eager's own; the kernels made for the purpose add in another order.
"""

from __future__ import annotations

import os
import signal
import time

import pytest
import torch
from tiny_device import make_store, reference_model, rig
from tiny_models import VOCAB, make_deepseek_v2, make_qwen3_moe
from tiny_worker import worker, worker_process

from moespac.actors.core import ExpertKey
from moespac.actors.gpu_device.hook import expert_modules, experts_computed_by
from moespac.actors.gpu_device.linears import FEW_TOKENS
from moespac.actors.gpu_device.passes import PassAbandoned
from moespac.actors.prefetcher.arena import Arena, ArenaReader
from moespac.actors.prefetcher.source import ExpertSource, ExpertsUnavailable, Lease
from moespac.actors.prefetcher.store import ExpertStore
from moespac.kernels.layout import ExpertLayout
from moespac.kernels.reference import TorchExperts

LAYER = 1


@pytest.fixture(scope="module", params=[torch.bfloat16, torch.float32], ids=["stored bf16", "stored fp32"])
def model(request, tmp_path_factory):
    """Checkpoint, its store, and the eager experts module of layer 1; 16 experts, top-4."""
    folder = tmp_path_factory.mktemp("layer")
    target = make_qwen3_moe(folder / "target", dtype=request.param, num_experts=16, num_experts_per_tok=4)
    modules = list(expert_modules(reference_model(target)).values())
    return target, make_store(target, folder / "store"), modules[LAYER]


def _layout(store) -> ExpertLayout:
    opened = ExpertStore.open(store)
    opened.close()
    return opened.layout


def _routed(tokens: int, n_experts: int = 16, k: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    hidden = torch.randn((tokens, 32), generator=generator)
    # Unsorted slots, as DeepSeek's router gives them.
    index = torch.stack([torch.randperm(n_experts, generator=generator)[:k] for _ in range(tokens)])
    return hidden, index, torch.rand((tokens, k), generator=generator)


def _close(ours: torch.Tensor, eager: torch.Tensor) -> bool:
    return torch.allclose(ours, eager, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kernel", ["torch", "fastest"])
@pytest.mark.parametrize("tokens", [1, 5, 9, 64])
@pytest.mark.parametrize("resident", [range(16), range(0), range(0, 16, 3)], ids=["hot", "fallback", "mixed"])
def test_outputs_are_the_eager_modules(model, tokens, resident, kernel):
    target, store, eager = model
    hidden, index, weights = _routed(tokens)
    kernel = TorchExperts(_layout(store), torch.float32) if kernel == "torch" else None
    with rig(target, store, expert_memory=2**20, kernel=kernel) as device:
        device.make_resident([ExpertKey(LAYER, e) for e in resident])
        run = device.new_pass()
        with torch.inference_mode():
            ours = device.decoder.executor.bound_to(run)(LAYER, hidden, index, weights)
            expected = eager(hidden, index, weights)
            assert torch.equal(ours, expected) if kernel else _close(ours, expected)
    used = set(index.flatten().tolist())
    row = device.shape.row(LAYER)
    assert run.counts[row].tolist() == torch.bincount(index.flatten(), minlength=16).tolist()
    assert run.used[row] == len(used) and run.hits[row] == len(used & set(resident))
    assert run.fallback_experts == len(used - set(resident)) and run.expert_calls == 0
    assert [s.pairs for s in run.samples] == ([sum(run.counts[row][list(resident)])] if used & set(resident) else [])


def test_a_workers_rows_are_joined_to_the_same_bits(model):
    target, store, eager = model
    hidden, index, weights = _routed(9)
    with worker(store) as actor, rig(target, store, None, 2**20, [actor.endpoint()]) as device, torch.inference_mode():
        device.make_resident([ExpertKey(LAYER, e) for e in range(16)])
        alone = device.decoder.executor.bound_to(device.new_pass())(LAYER, hidden, index, weights)
    with worker(store) as actor, rig(target, store, None, 2**20, [actor.endpoint()]) as device:
        device.make_resident([ExpertKey(LAYER, e) for e in range(0, 16, 2)])
        run = device.new_pass()
        run.trace = True
        with torch.inference_mode():
            ours = device.decoder.executor.bound_to(run)(LAYER, hidden, index, weights)
            assert torch.equal(ours, alone) and _close(ours, eager(hidden, index, weights))
        assert run.expert_calls == 1 and run.fallback_experts == 0
        assert {span.row for span in run.spans} == {"local experts", "cpu-0"}
        local = next(span for span in run.spans if span.row == "local experts")
        call = next(span for span in run.spans if span.row == "cpu-0")
        assert call.start_ns <= local.start_ns  # calls leave before local experts are computed
        assert {sample.actor for sample in run.samples} == {"gpu-0", "cpu-0"}


def test_a_dead_worker_costs_no_tokens(model):
    target, store, eager = model
    hidden, index, weights = _routed(9)
    with worker(store) as actor:
        gone = actor.endpoint()
    now = 0.0
    kernel = TorchExperts(_layout(store), torch.float32)
    with rig(target, store, None, 0, [gone], clock=lambda: now, kernel=kernel) as device, torch.inference_mode():
        run = device.new_pass()
        ours = device.decoder.executor.bound_to(run)(LAYER, hidden, index, weights)
        assert torch.equal(ours, eager(hidden, index, weights))
        assert run.expert_calls == 1 and run.fallback_experts == len(set(index.flatten().tolist()))
        # Left alone for a while: the next layer does not wait for it again.
        device.decoder.executor.bound_to(run)(LAYER, hidden, index, weights)
        assert run.expert_calls == 1
        now = 10.0
        device.decoder.executor.bound_to(run)(LAYER, hidden, index, weights)
        assert run.expert_calls == 2


def test_an_unwanted_pass_stops_before_the_layer(model):
    target, store, _ = model
    with rig(target, store) as device:
        run = device.new_pass()
        run.wanted = lambda: False
        with pytest.raises(PassAbandoned):
            device.decoder.executor.bound_to(run)(LAYER, *_routed(2))
        run.wanted, run.deadline = lambda: True, 0.0
        with pytest.raises(PassAbandoned, match="deadline"):
            device.decoder.executor.bound_to(run)(LAYER, *_routed(2))
        assert run.counts.sum() == 0


def test_weights_are_not_waited_for_beyond_the_passes_deadline(model):
    target, store, _ = model
    timeouts = []

    def fetch(layer: int, experts: list[int], hold_s: float, timeout_s: float) -> Lease:
        timeouts.append(timeout_s)
        raise ExpertsUnavailable("the prefetcher is away")

    with rig(target, store) as device:
        arena = Arena.create(device.shape, 2**20)
        reader = ArenaReader.attach(arena.location, device.shape)
        device.decoder.executor.source = ExpertSource(lambda: reader, fetch)
        run = device.new_pass()
        run.deadline = time.monotonic() + 5
        with pytest.raises(ExpertsUnavailable, match="away"):
            device.decoder.executor.bound_to(run)(LAYER, *_routed(2))
        reader.close()
        arena.close()
    assert len(timeouts) == 1 and 0 < timeouts[0] <= 5


def test_routed_scaling_and_shared_experts_stay_the_models_business(tmp_path):
    target = make_deepseek_v2(tmp_path / "target", routed_scaling_factor=2.5)
    # So many tokens that the trunk's linear layers stay torch's: every bit is eager's.
    ids = torch.arange(2 * FEW_TOKENS)[None] * 37 % VOCAB
    store = make_store(target, tmp_path / "store")
    with rig(target, store, kernel=TorchExperts(_layout(store), torch.float32)) as device, torch.inference_mode():
        with experts_computed_by(device.decoder.executor.bound_to(device.new_pass())):
            ours = device.decoder.target.model(ids).logits
        assert torch.equal(ours, reference_model(target)(ids).logits)


@pytest.mark.slow
def test_a_worker_that_hangs_is_not_waited_for_long(model):
    target, store, eager = model
    hidden, index, weights = _routed(9)
    kernel = TorchExperts(_layout(store), torch.float32)
    with (
        worker_process(store) as (process, endpoint),
        rig(target, store, None, 0, [endpoint], kernel=kernel) as device,
    ):
        os.kill(process.pid, signal.SIGSTOP)
        run, started = device.new_pass(), time.monotonic()
        with torch.inference_mode():
            ours = device.decoder.executor.bound_to(run)(LAYER, hidden, index, weights)
            assert torch.equal(ours, eager(hidden, index, weights))
        assert time.monotonic() - started < 5
        assert run.fallback_experts == len(set(index.flatten().tolist()))
