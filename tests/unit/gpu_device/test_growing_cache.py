"""Keys and values that grow in place, against transformers' own cache."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import DynamicCache, LlamaConfig, MistralConfig

from moespac.actors.gpu_device.growing_cache import GrowingLayer, grow_in_place

CONFIG = LlamaConfig(num_hidden_layers=2, hidden_size=8, num_attention_heads=2, num_key_value_heads=1)


@given(st.lists(st.integers(-5, 6), max_size=12), st.integers(0, 30))
def test_holds_what_a_dynamic_cache_holds(changes, positions):
    ours, theirs = DynamicCache(config=CONFIG), DynamicCache(config=CONFIG)
    grow_in_place(ours, positions)
    generator = torch.Generator().manual_seed(0)
    for change in changes:
        held = theirs.get_seq_length()
        if change < 0:
            for cache in (ours, theirs):
                cache.crop(-min(-change, held))
        elif change > 0:
            for layer in range(2):
                key = torch.randn(1, 1, change, 4, generator=generator)
                value = torch.randn(1, 1, change, 3, generator=generator)
                found, wanted = ours.update(key, value, layer), theirs.update(key, value, layer)
                assert all(torch.equal(f, w) for f, w in zip(found, wanted, strict=True))
        assert ours.get_seq_length() == theirs.get_seq_length()


def test_a_pass_within_the_positions_copies_nothing():
    layer = GrowingLayer(10)
    first, _ = layer.update(torch.ones(1, 1, 4, 2), torch.ones(1, 1, 4, 2))
    layer.crop(-2)
    second, _ = layer.update(torch.zeros(1, 1, 8, 2), torch.zeros(1, 1, 8, 2))
    assert second.data_ptr() == first.data_ptr() and second.shape[-2] == 10
    assert second.untyped_storage().nbytes() == 10 * 2 * 4
    third, _ = layer.update(torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 2))
    assert third.data_ptr() != first.data_ptr()
    assert torch.equal(third[0, 0, :2], torch.ones(2, 2)) and third.shape[-2] == 11


def test_other_layers_stay_as_they_are():
    cache = DynamicCache(config=MistralConfig(num_hidden_layers=1, sliding_window=4))
    grow_in_place(cache, 10)
    assert type(cache.layers[0]).__name__ == "DynamicSlidingWindowLayer"


def test_a_reset_layer_starts_anew():
    layer = GrowingLayer(4)
    layer.update(torch.ones(1, 1, 3, 2), torch.ones(1, 1, 3, 2))
    layer.reset()
    keys, _ = layer.update(torch.full((1, 1, 1, 2), 7.0), torch.zeros(1, 1, 1, 2))
    assert keys.tolist() == [[[[7.0, 7.0]]]]
