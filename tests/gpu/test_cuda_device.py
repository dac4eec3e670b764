"""The device on a CUDA GPU: transfers over the real link, and the reference's tokens. Run with `make test-gpu`."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_device import make_draft_of, make_store, reference_tokens, rig
from tiny_models import make_qwen3_moe
from tiny_worker import worker

from moespac.actors.core import ExpertKey
from moespac.actors.gpu_device.link import PIECE, CudaLink

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]

PROMPT = (5, 17, 100, 3, 250, 9, 33, 12, 77)
TOKENS = 48


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> tuple[Path, Path, Path]:
    folder = tmp_path_factory.mktemp("models")
    target = make_qwen3_moe(folder / "target")
    return target, make_draft_of(target, folder / "draft", 0.05), make_store(target, folder / "store")


def test_slots_hold_what_the_store_holds(models):
    target, _, store = models
    with rig(target, store, None, 2**30, device=torch.device("cuda:0")) as device:
        keys = device.shape.keys()
        device.make_resident(keys)
        for key in keys:
            with device.slots.pinned(key.layer, [key.expert]) as residents:
                in_slot = residents[key.expert][: device.shape.expert_bytes].cpu().numpy()
            seen = []

            def use(blocks, into=seen):
                into.extend(block.copy() for block in blocks.values())

            device.source.with_experts(key.layer, [key.expert], use)
            np.testing.assert_array_equal(in_slot, seen[-1])
        device.slots.check_integrity()


def test_a_copy_over_the_bus_is_whole_or_broken_off_between_two_pieces():
    memory = np.frombuffer(mmap.mmap(-1, 6 * PIECE), np.uint8)
    memory[:] = np.random.default_rng(0).integers(0, 256, memory.size, np.uint8)
    block = memory[PIECE : 6 * PIECE - 100]
    link = CudaLink(torch.device("cuda:0"), lambda: memory, block.nbytes)
    try:
        for limit in (block.nbytes, 2 * PIECE, 0):
            slot, looks = torch.zeros(block.nbytes, dtype=torch.uint8, device="cuda:0"), []

            def wanted(arrived: int, looks=looks, limit=limit) -> bool:
                looks.append(arrived)
                return arrived < limit

            moved = link.move(block, slot, None, wanted)
            assert looks == sorted(looks) and looks[-1] <= moved
            assert moved == block.nbytes if limit == block.nbytes else moved < block.nbytes
            np.testing.assert_array_equal(slot.cpu().numpy()[:moved], block[:moved])
            assert not slot[moved:].any()
    finally:
        link.close()


@pytest.mark.parametrize("gamma", [0, 4, 8])
@pytest.mark.parametrize("placement", ["hot", "cold", "mixed", "fallback", "streamed"])
def test_tokens_equal_the_reference(models, placement, gamma):
    target, draft, store = models
    cuda = torch.device("cuda:0")
    with worker(store, memory=2**30) as actor:
        # Without a worker, all that is not resident crosses the link for its layer.
        workers = [] if placement in ("fallback", "streamed") else [actor.endpoint()]
        memory = 2**30 if placement in ("hot", "mixed", "streamed") else 0
        buffers = 2 if placement == "streamed" else 0
        with rig(target, store, draft, memory, workers, device=cuda, buffers=buffers) as device:
            if placement == "hot":
                device.make_resident(device.shape.keys())
            elif placement in ("mixed", "streamed"):
                device.make_resident([ExpertKey(layer, e) for layer in device.shape.layer_ids for e in (0, 3)])
            done = device.generate(PROMPT, TOKENS, gamma)
            assert done.tokens == reference_tokens(target, PROMPT, TOKENS)
            assert any(run.streamed_experts for run in done.passes) == (placement == "streamed")
