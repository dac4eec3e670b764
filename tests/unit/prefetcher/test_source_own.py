import threading
import time

import pytest

from moespac.actors.core import ExpertKey
from moespac.actors.prefetcher.arena import ArenaError
from moespac.actors.prefetcher.source import ExpertSource, ExpertsUnavailable
from moespac.actors.prefetcher.store import ExpertStore, StoreCorrupt

STRIDE = 4096


def read_layer(source, layer, experts):
    found = {}
    waited = source.with_experts(
        layer, experts, lambda blocks: found.update((e, bytes(block)) for e, block in blocks.items())
    )
    return found, waited


@pytest.mark.parametrize("blocks", [1, 3, 24])
def test_every_expert_through_an_own_arena(store, payloads, blocks):
    source = ExpertSource.own(store, blocks * STRIDE)
    for layer in store.shape.layer_ids:
        found, waited = read_layer(source, layer, range(8))
        assert found == {e: payloads[ExpertKey(layer, e)] for e in range(8)}
        assert waited >= 0
    source.close()


def test_own_arena_too_small(store):
    with pytest.raises(ArenaError, match="does not hold one expert"):
        ExpertSource.own(store, STRIDE - 1)


def test_block_overwritten_during_use_is_used_again(store, payloads):
    """While expert 0 of layer 0 is in use, everything else is pulled through the arena's only block."""
    source = ExpertSource.own(store, STRIDE)
    read_layer(source, 0, [0])
    seen = []

    def use(blocks):
        if not seen:
            thief = threading.Thread(target=read_layer, args=(source, 2, [5]))
            thief.start()
            thief.join()
        seen.append(bytes(blocks[0]))

    source.with_experts(0, [0], use)
    assert seen == [payloads[ExpertKey(2, 5)], payloads[ExpertKey(0, 0)]]
    source.close()


def test_with_resident_notices_too(store):
    source = ExpertSource.own(store, STRIDE)
    read_layer(source, 0, [0])
    assert source.with_resident(ExpertKey(0, 0), lambda block: None)
    assert not source.with_resident(ExpertKey(0, 1), lambda block: pytest.fail("absent, yet used"))
    assert not source.with_resident(ExpertKey(0, 0), lambda block: read_layer(source, 0, [1]))
    source.close()


def test_error_in_use_is_the_callers_and_leaves_no_lease(store):
    source = ExpertSource.own(store, STRIDE)

    def fail(blocks):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        source.with_experts(1, [3], fail)
    read_layer(source, 2, [2])  # the arena's only block is free again
    source.close()


def test_damaged_expert_is_never_shown(damaged_store):
    with (damaged_store / "experts.safetensors").open("r+b") as file:
        file.seek(-4096, 2)
        file.write(b"damage")
    store = ExpertStore.open(damaged_store)
    source = ExpertSource.own(store, 24 * STRIDE)
    used = []
    with pytest.raises(StoreCorrupt, match="layer 2, expert 7"):
        source.with_experts(2, [6, 7], used.extend)
    assert used == [6]
    source.close()


def test_closed_source_refuses(store):
    source = ExpertSource.own(store, STRIDE)
    source.close()
    with pytest.raises(ExpertsUnavailable):
        source.with_experts(0, [0], lambda blocks: None)


def test_a_deadline_that_has_passed_is_no_time_to_fetch(store):
    source = ExpertSource.own(store, STRIDE)
    read_layer(source, 0, [0])
    read, used, passed = store.bytes_read, [], time.monotonic()
    with pytest.raises(ExpertsUnavailable, match=r"layer 0, experts \[1\]: .* deadline"):
        source.with_experts(0, [0, 1], used.extend, passed)
    # What is there needs no time.
    assert (used, store.bytes_read) == ([0], read)
    source.close()


def test_after_the_deadline_nothing_is_read_from_the_store_either(store):
    own = ExpertSource.own(store, STRIDE)
    read_layer(own, 0, [0])
    read = store.bytes_read

    def fetch(layer, experts, hold_s, timeout_s):
        time.sleep(timeout_s)
        raise ExpertsUnavailable("no room in time")

    source = ExpertSource(lambda: own.arena, fetch, store=store)
    with pytest.raises(ExpertsUnavailable, match="deadline"):
        source.with_experts(0, [1], lambda blocks: pytest.fail("too late"), time.monotonic() + 0.05)
    assert store.bytes_read == read
    own.close()
