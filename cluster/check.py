"""`moespac check`: is a deployment fit to start? Looks at the file, the model and this machine; starts nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..configs import ConfigError, Deployment, Problem, key_lines, load_deployment
from ..configs.units import show_size
from . import machine
from .budgets import (
    arena_block,
    check_budgets,
    elsewhere_without_memory,
    experts_that_fit,
    kv_numbers_per_token,
    slot_bytes,
)

_ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Report:
    """What `check` found. Problems prevent a start, warnings do not."""

    file: Path
    deployment: Deployment | None
    problems: tuple[Problem, ...]
    warnings: tuple[str, ...] = ()
    uses: tuple[tuple[str, str, str], ...] = field(default=())
    """(what, how much, remark) of everything that would be used."""

    @property
    def ok(self) -> bool:
        return not self.problems


def check(path: str | Path) -> Report:
    """Checks the deployment file `path` as far as possible without starting anything; bad input is in the report."""
    file = Path(path)
    try:
        deployment = load_deployment(file)
    except ConfigError as error:
        return Report(file, None, error.problems)
    problems, warnings, uses = _check_model(deployment)
    problems += _check_ports(deployment)
    warnings += _machine_warnings(deployment)
    return Report(file, deployment, _located(file, problems), tuple(warnings), tuple(uses))


def require_fit(path: Path, deployment: Deployment) -> None:
    """Raises ConfigError where `deployment`, from the file `path`, cannot work with its model."""
    problems, _, _ = _check_model(deployment)
    if problems:
        raise ConfigError(path, _located(path, problems))


def run_check(path: str | Path) -> int:
    """Prints what `check` found; exit status 0 where the deployment can be started, 1 where not."""
    report = check(path)
    console = Console()
    if not report.ok:
        console.print(Text(str(ConfigError(report.file, report.problems)), style="red"), soft_wrap=True)
    if report.uses:
        table = Table("what", "how much", "remark", title=f"{report.file} would use")
        for row in report.uses:
            table.add_row(*map(Text, row))
        console.print(table)
    for warning in report.warnings:
        console.print(Text(f"warning: {warning}", style="yellow"), soft_wrap=True)
    if report.ok:
        console.print(Text(f"{report.file}: fit to start", style="green"), soft_wrap=True)
    return 0 if report.ok else 1


def _located(file: Path, problems: Iterable[Problem]) -> tuple[Problem, ...]:
    lines = key_lines(file)
    return tuple(replace(problem, line=lines.get(problem.key)) for problem in problems)


def _check_model(deployment: Deployment) -> tuple[list[Problem], list[str], list[tuple[str, str, str]]]:
    from ..actors.gpu_device.hook import UnsupportedExperts
    from ..actors.gpu_device.kv import CacheUnsupported
    from ..actors.gpu_device.same_tokenizer import TokenizerMismatch, check_same_tokenizer
    from ..actors.prefetcher.checkpoint import CheckpointError, open_checkpoint
    from ..actors.prefetcher.safetensors_files import read_headers

    model = deployment.model
    problems: list[Problem] = []
    try:
        checkpoint = open_checkpoint(model.target)
    except CheckpointError as error:
        problems.append(_of_checkpoint("model.target", error))
        checkpoint = None
    if model.draft is not None:
        try:
            read_headers(model.draft)
        except CheckpointError as error:
            problems.append(_of_checkpoint("model.draft", error))
        else:
            if checkpoint is not None:
                try:
                    check_same_tokenizer(model.target, model.draft)
                except TokenizerMismatch as error:
                    what, _, remedy = str(error).rpartition(": ")
                    problems.append(Problem("model.draft", str(model.draft), what or remedy, remedy))
    if checkpoint is None or problems:
        return problems, [], []
    layout = checkpoint.layout.stored_as(model.store_format, model.expert_scales)
    shape = replace(checkpoint.shape, expert_bytes=layout.expert_bytes)
    try:
        kv = sum(kv_numbers_per_token(d) for d in (model.target, deployment.draft_model) if d is not None)
    except (OSError, ValueError, UnsupportedExperts, CacheUnsupported) as error:
        problems.append(Problem("model", "", str(error), "choose a model of a supported architecture"))
        return problems, [], []
    kv *= _ITEM_BYTES[model.compute_dtype]
    problems += check_budgets(deployment, shape, kv)
    stored = sum(header.file_bytes for header in read_headers(model.target))
    experts = shape.n_layers * shape.n_experts * checkpoint.shape.expert_bytes
    trunk = (stored - experts) * _ITEM_BYTES[model.compute_dtype] // _ITEM_BYTES[checkpoint.layout.format]
    uses = list(_uses(deployment, checkpoint.name, shape, trunk, kv))
    return problems, _memory_warnings(deployment, trunk), uses


def _of_checkpoint(key: str, error) -> Problem:
    return Problem(key, str(error.file), error.what, error.remedy)


def _check_ports(deployment: Deployment) -> list[Problem]:
    from ..actors.transport.errors import CannotListen
    from ..actors.transport.server import check_can_listen

    service = deployment.service
    try:
        check_can_listen(service.host, service.port)
        if service.metrics_port is not None:
            check_can_listen(service.host, service.metrics_port, "metrics_port")
    except CannotListen as error:
        value = str(getattr(service, error.field))
        return [Problem(f"service.{error.field}", value, error.problem, error.remedy)]
    return []


def _uses(deployment: Deployment, name: str, shape, trunk: int, kv: int) -> Iterator[tuple[str, str, str]]:
    from ..actors.cost_file import CostFile
    from ..actors.gpu_device.staging import buffers_of
    from ..actors.prefetcher.convert import store_path_for

    gpu, model = deployment.gpu, deployment.model
    count = shape.n_layers * shape.n_experts
    block = arena_block(shape)
    store = store_path_for(model.target, model.store, model.store_format, model.expert_scales)

    def share(budget: int, each: int, others: int = 0) -> str:
        fit = experts_that_fit(budget - others * each, each, shape)
        return f"{fit} of {count} experts ({fit / count:.0%})" + (f", {others} slots for streaming" if others else "")

    yield "model", name, f"{shape.n_layers} layers x {shape.n_experts} experts, top-{shape.top_k}"
    yield (
        "experts",
        show_size(count * shape.expert_bytes),
        f"{show_size(shape.expert_bytes)} each, {model.expert_format}",
    )
    yield "expert store", str(store), "converted already" if store.exists() else "to be converted at the first start"
    yield "measured costs", *CostFile(store).described()
    yield f"{gpu.name}: trunk", show_size(trunk), f"on {gpu.torch_device} in {model.compute_dtype}"
    size = slot_bytes(shape)
    buffers = buffers_of(gpu.expert_memory // size) if gpu.has_link else 0
    yield f"{gpu.name}: slots", show_size(gpu.expert_memory), share(gpu.expert_memory, size, buffers)
    yield f"{gpu.name}: KV caches", show_size(gpu.kv_memory), f"{gpu.kv_memory // kv:,} tokens of {show_size(kv)}"
    yield (
        "prefetcher: arena",
        show_size(deployment.prefetcher.host_memory),
        share(deployment.prefetcher.host_memory, block),
    )
    for worker in deployment.workers:
        memory = f"{show_size(worker.memory)} of its own" if worker.memory else "the prefetcher's arena"
        yield f"{worker.name}: experts", memory, f"arena {worker.arena}"
    threads = ", ".join(f"{d.name} {d.threads}" for d in deployment.devices)
    yield "threads", str(sum(d.threads for d in deployment.devices)), threads
    service = deployment.service
    yield "service", f"{service.host}:{service.port}", "gRPC"
    if service.metrics_port is not None:
        yield "metrics", f"{service.host}:{service.metrics_port}", "HTTP, /metrics for Prometheus"


def _memory_warnings(deployment: Deployment, trunk: int) -> list[str]:
    gpu, available = deployment.gpu, machine.available_memory()
    on_device = trunk + gpu.expert_memory + gpu.kv_memory
    host = deployment.prefetcher.host_memory + sum(w.memory or 0 for w in deployment.workers)
    warnings = []
    if gpu.torch_device.startswith("cuda"):
        found = next((g for g in machine.gpus() if g.torch_device == gpu.torch_device), None)
        if found is not None and on_device > found.memory_bytes:
            warnings.append(
                f"trunk, slots and KV caches take {show_size(on_device)}, {gpu.torch_device} has "
                f"{show_size(found.memory_bytes)}: lower expert_memory or kv_memory of {gpu.name}"
            )
    else:
        host += on_device
    if host > available:
        warnings.append(
            f"the budgets take {show_size(host)} of host memory in all, this machine has {show_size(available)} "
            "available: lower them, unless the actors are placed on several machines"
        )
    return warnings


def _machine_warnings(deployment: Deployment) -> list[str]:
    warnings = []
    threads, cores = sum(d.threads for d in deployment.devices), machine.usable_cores()
    if threads > cores:
        warnings.append(
            f"the devices have {threads} threads in all, this machine has {cores} usable cores: lower `threads`, "
            "unless the actors are placed on several machines"
        )
    gpu = deployment.gpu
    if gpu.torch_device.startswith("cuda") and gpu.torch_device not in {g.torch_device for g in machine.gpus()}:
        warnings.append(
            f"this machine has no {gpu.torch_device} that torch can use: {gpu.name} must run on another one"
        )
    for name in elsewhere_without_memory(deployment):
        warnings.append(
            f"{name} may be placed on another host than the prefetcher, where it has no memory for experts: "
            "give it `arena: own` and `memory`, or the prefetcher's placement"
        )
    if deployment.service.host not in ("127.0.0.1", "::1", "localhost"):
        warnings.append("the service is reachable from the network, without encryption and authentication")
    return warnings
