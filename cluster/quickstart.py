"""`moespac quickstart`: the bundled models served by the whole system once, and held against plain transformers."""

from __future__ import annotations

import importlib.resources
import json
import os
import time
from pathlib import Path

from rich.console import Console

from ..actors.transport.endpoint import Endpoint
from ..configs import Deployment, load_deployment
from .client import Client, GenerationStatistics
from .interrupts import Interrupts
from .progress import conversion_bar, start_bars
from .reference import greedy_reference
from .report import generation_table
from .serve import Service, with_port
from .timeline import write_trace

DEFAULT_PROMPT = "Mr. President, Members of Congress,"
QUICKSTART = "quickstart/deployment.yaml"


def quickstart_deployment() -> Deployment:
    """The bundled deployment on a free port and under a name of this process: it disturbs no other service."""
    with importlib.resources.as_file(importlib.resources.files("moespac.configs") / QUICKSTART) as path:
        deployment = load_deployment(path)
    return with_port(deployment, 0).model_copy(update={"name": f"{deployment.name}-{os.getpid()}"})


def run_quickstart(deployment: Deployment, prompt: str, max_tokens: int, trace: Path | None, as_json: bool) -> int:
    """Serves, generates, compares, shuts down. Returns the exit status: 0 only if the tokens equal the reference's."""
    console = Console(stderr=True)
    started, interrupts = time.monotonic(), Interrupts()
    with start_bars() as report, conversion_bar(deployment.model.target.name) as convert_report:
        service = Service(deployment, report=report, convert_progress=convert_report, held=interrupts.held)
        service.start()
    try:
        console.print(f"ready after {time.monotonic() - started:.1f} s at {service.server}\n")
        with Client(service.server) as client:
            generation = client.generate(prompt, max_tokens=max_tokens, ignore_eos=True, trace=trace is not None)
            console.print(prompt, style="dim", end="", markup=False, highlight=False)
            for piece in generation:
                console.print(piece, end="", markup=False, highlight=False)
            console.print()
        endpoints = service.endpoints
    finally:
        service.stop(0.0)
    console.print(generation_table(generation.statistics))
    if trace is not None:
        write_trace(trace, generation.spans)
        console.print(f"timeline: {trace} (open it at ui.perfetto.dev)")
    expected = greedy_reference(deployment.model.target, prompt, max_tokens)
    identical = list(generation.token_ids) == expected
    console.print(
        f"{len(expected)} tokens compared with eager transformers: {'identical' if identical else 'DIFFERENT'}"
    )
    if as_json:
        print(json.dumps(_summary(generation.text, generation.statistics, identical, endpoints)), flush=True)
    return 0 if identical else 1


def _summary(text: str, statistics: GenerationStatistics, identical: bool, endpoints: list[Endpoint]) -> dict:
    return {
        "text": text,
        "tokens": statistics.tokens,
        "tokens_per_second": statistics.tokens_per_second,
        "ttft_ms": statistics.ttft_s * 1e3,
        "tpot_ms": statistics.tpot_s * 1e3,
        "acceptance_rate": statistics.acceptance_rate,
        "tokens_per_step": statistics.tokens_per_step,
        "hit_rate": statistics.hit_rate,
        "bytes_moved": statistics.bytes_moved,
        "transfer_hidden_share": statistics.transfer_hidden_share,
        "plan_ms_p99": statistics.plan_ms_p99,
        "solver_statuses": sorted(set(statistics.solver_statuses)),
        "plans": len(statistics.plan_ms),
        "identical_to_reference": identical,
        "actors": [{"name": e.name, "pid": e.pid, "node": e.node, "address": e.address} for e in endpoints],
        "grpc_expert_calls": statistics.expert_calls,
        "of_them_by_lane": statistics.lane_calls,
        "fallback_experts": statistics.fallback_experts,
        "streamed_experts": statistics.streamed_experts,
        "awaited_experts": statistics.awaited_experts,
        "emulated": statistics.emulated,
    }
