"""A small real expert store."""

from pathlib import Path

import pytest
from tiny_models import make_qwen3_moe

from moespac.actors.prefetcher.convert import convert


@pytest.fixture(scope="session")
def store_path(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cpu-worker")
    convert(make_qwen3_moe(folder / "target"), folder / "store")
    return folder / "store"
