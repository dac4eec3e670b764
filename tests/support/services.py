"""Whole services for tests: real Ray, real actors, real gRPC."""

from __future__ import annotations

import json
from pathlib import Path

import psutil

import moespac
from moespac.cluster.serve import with_port
from moespac.configs import Deployment, load_deployment

PROMPTS: list[str] = json.loads((Path(__file__).parents[1] / "data" / "prompts.json").read_text())
QUICKSTART = Path(moespac.__file__).parent / "configs" / "quickstart" / "deployment.yaml"


def bundled_deployment(name: str, **scheduler) -> Deployment:
    """The quickstart's deployment on a free port; `scheduler`: fields of that section to change."""
    deployment = with_port(load_deployment(QUICKSTART), 0)
    return deployment.model_copy(update={"name": name, "scheduler": deployment.scheduler.model_copy(update=scheduler)})


def process_tree(pid: int) -> list[psutil.Process]:
    """A process and all that it started."""
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]
