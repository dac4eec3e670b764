"""A tiny model's tokenizer, and gateways that end with their test."""

import contextlib
from pathlib import Path

import pytest
from gateway_system import TEXT, System
from scripted_scheduler import Script
from tiny_models import make_qwen3_moe
from transformers import AutoTokenizer


@pytest.fixture(scope="module")
def target(tmp_path_factory) -> Path:
    return make_qwen3_moe(tmp_path_factory.mktemp("models") / "tiny-moe")


@pytest.fixture(scope="module")
def tokenizer(target):
    return AutoTokenizer.from_pretrained(target)


@pytest.fixture(scope="module")
def tokens(tokenizer) -> list[int]:
    """Byte by byte where the text is not ASCII, so that characters lie across tokens."""
    table = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str
    ids = [tokenizer.convert_tokens_to_ids(c) for piece, _ in table(TEXT) for c in piece]
    assert tokenizer.decode(ids) == TEXT
    return ids


@pytest.fixture
def start(target):
    with contextlib.ExitStack() as stack:

        def start_system(script: Script | None = None, **settings) -> System:
            system = System(target, **settings)
            stack.callback(system.close)
            if script is not None:
                system.scheduler(script)
            return system

        yield start_system
