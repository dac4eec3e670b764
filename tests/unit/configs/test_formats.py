"""What a deployment may ask for is what the kernels have."""

from inspect import signature
from typing import get_args

import pytest

from moespac.actors.prefetcher.source import ExpertSource
from moespac.configs import ModelConfig, PrefetcherConfig
from moespac.kernels.cpu import library
from moespac.kernels.layout import FLOAT_FORMATS, FORMATS, SCALE_DTYPES

INTEGERS = set(FORMATS) - set(FLOAT_FORMATS)


@pytest.mark.parametrize(
    ("field", "choices"),
    [
        ("expert_format", {"stored", *FORMATS}),
        ("trunk_format", {"stored", *INTEGERS}),
        ("expert_scales", set(SCALE_DTYPES)),
        ("compute_dtype", set(FLOAT_FORMATS)),
    ],
)
def test_the_choices_are_those_of_the_kernels(field, choices):
    assert set(get_args(ModelConfig.model_fields[field].annotation)) == choices


def test_the_library_has_a_number_for_each_format():
    assert tuple(library.FORMATS) == FORMATS
    assert sorted(library.FORMATS.values()) == list(range(len(FORMATS)))


def test_an_arena_of_ones_own_is_read_into_as_the_prefetchers_is():
    assert signature(ExpertSource.own).parameters["readers"].default == PrefetcherConfig.model_fields["readers"].default
