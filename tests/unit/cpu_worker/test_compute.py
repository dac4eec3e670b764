"""Rows from a real source: right when blocks are overwritten meanwhile, ended when nobody wants them."""

import numpy as np
import pytest
import torch

from moespac.actors.core import ExpertKey
from moespac.actors.cpu_worker.compute import ExpertComputer, GaveUp
from moespac.actors.prefetcher.arena import Arena, ArenaReader
from moespac.actors.prefetcher.lease import Lease
from moespac.actors.prefetcher.source import ExpertSource
from moespac.actors.prefetcher.store import ExpertStore
from moespac.actors.transport.wire import decode_call, encode_call
from moespac.kernels.choose import choose_kernel
from moespac.kernels.experts import ExpertKernel
from moespac.kernels.reference import TorchExperts, expert_rows

LAYER, HIDDEN = 2, 32


@pytest.fixture
def store(store_path):
    store = ExpertStore.open(store_path)
    yield store
    store.close()


@pytest.fixture
def source(store):
    source = ExpertSource.own(store, 2**20)
    yield source
    source.close()


def decoded(store: ExpertStore, experts: dict[int, int], tokens: int = 12):
    generator = torch.Generator().manual_seed(5)
    pairs = [
        (e, torch.randperm(tokens, generator=generator)[:n], torch.rand(n, generator=generator))
        for e, n in experts.items()
    ]
    hidden = torch.randn(tokens, HIDDEN, generator=generator)
    return decode_call(
        encode_call(store.fingerprint, 0, [], LAYER, hidden, pairs).message(), store.fingerprint, store.shape
    )


def reference(store: ExpertStore, call, dtype: torch.dtype) -> torch.Tensor:
    rows = []
    for expert, span in zip(call.experts, call.spans, strict=True):
        block = np.empty(store.shape.expert_bytes, dtype=np.uint8)
        store.read_into(ExpertKey(LAYER, expert), memoryview(block))
        tokens = call.hidden.to(dtype)[call.token_rows[span]]
        weights = store.layout.weights(block)
        rows.append(expert_rows(store.layout, weights, tokens, call.router_weights[span]).float())
    return torch.cat(rows)


def fastest(store: ExpertStore, dtype: torch.dtype = torch.float32) -> ExpertKernel:
    return choose_kernel(store.layout, dtype, torch.device("cpu")).kernel


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_come_in_the_calls_pair_order(store, source, dtype) -> None:
    call = decoded(store, {0: 3, 2: 12, 5: 1, 7: 6})
    rows, waited_s = ExpertComputer(source, TorchExperts(store.layout, dtype), dtype).rows(call, lambda: True)
    assert rows.dtype == torch.float32
    assert torch.equal(rows, reference(store, call, dtype))
    assert waited_s >= 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_of_the_fastest_kernel_are_the_references(store, source, dtype) -> None:
    call = decoded(store, {0: 3, 2: 12, 5: 1, 7: 6})
    rows, _ = ExpertComputer(source, fastest(store, dtype), dtype).rows(call, lambda: True)
    bound = 1e-5 if dtype is torch.float32 else 2e-2
    torch.testing.assert_close(rows, reference(store, call, dtype), rtol=bound, atol=bound)


def test_bits_do_not_depend_on_how_the_experts_come(store, source) -> None:
    """All at once, or two at a time through an arena of two blocks."""
    call = decoded(store, {e: 1 + e for e in range(8)})
    kernel = fastest(store)
    whole, _ = ExpertComputer(source, kernel, torch.float32).rows(call, lambda: True)
    narrow = ExpertSource.own(store, 2 * store.manifest.stride)
    pieces, _ = ExpertComputer(narrow, kernel, torch.float32).rows(call, lambda: True)
    narrow.close()
    assert torch.equal(whole, pieces)


def test_a_block_overwritten_during_its_use_is_computed_again(store) -> None:
    arena = Arena.create(store.shape, 2**20)
    reader = ArenaReader.attach(arena.location, store.shape)
    key = ExpertKey(LAYER, 3)
    store.read_into(key, arena.write_slot(0))
    arena.publish(key, 0)
    fetched, uses = [], []

    def fetch(layer: int, experts: list[int], hold_s: float, timeout_s: float) -> Lease:
        store.read_into(key, arena.write_slot(1))
        arena.publish(key, 1)
        fetched.append(experts)
        return Lease(1, tuple(experts), 0.0, lambda: None)

    def overwrite_once() -> bool:
        uses.append(None)
        if len(uses) == 1:
            arena.invalidate(key)
            arena.write_slot(0)[:] = b"\xff" * arena.stride
        return True

    source = ExpertSource(lambda: reader, fetch)
    call = decoded(store, {3: 4})
    kernel = TorchExperts(store.layout, torch.float32)
    rows, _ = ExpertComputer(source, kernel, torch.float32).rows(call, overwrite_once)
    assert (len(uses), fetched) == (2, [[3]])
    assert torch.equal(rows, reference(store, call, torch.float32))
    reader.close()
    arena.close()


def test_gives_up_before_the_next_run_of_the_kernel(store) -> None:
    asked = []

    def wanted() -> bool:
        asked.append(None)
        return len(asked) < 3

    call = decoded(store, {e: 2 for e in range(8)})
    source = ExpertSource.own(store, 2 * store.manifest.stride)  # two experts at a time
    with pytest.raises(GaveUp):
        ExpertComputer(source, fastest(store), torch.float32).rows(call, wanted)
    source.close()
    assert len(asked) == 3
