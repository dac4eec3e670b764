"""A device in this process: trunk, draft, slots and weights of a small checkpoint, and the reference it must equal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from moespac.actors.core import CostSample, DraftChoice, ExpertKey, ModelShape, Sampling
from moespac.actors.gpu_device.decode import Decoder, Session, StepResult
from moespac.actors.gpu_device.drafts.dense import DenseDraft
from moespac.actors.gpu_device.drafts.ngram import NgramDraft
from moespac.actors.gpu_device.drafts.resident import ResidentDraft
from moespac.actors.gpu_device.layer import LayerExecutor
from moespac.actors.gpu_device.link import CudaLink, Link, MemoryLink
from moespac.actors.gpu_device.measured_costs import MeasuredCosts
from moespac.actors.gpu_device.misses import Workers
from moespac.actors.gpu_device.passes import Pass
from moespac.actors.gpu_device.slots import ExpertSlots, Outcome
from moespac.actors.gpu_device.staging import Staging
from moespac.actors.gpu_device.trunk import load_draft, load_trunk
from moespac.actors.policy.cost import CostModel, Prior
from moespac.actors.policy.sampler import Sampler
from moespac.actors.prefetcher.convert import convert
from moespac.actors.prefetcher.source import ExpertSource
from moespac.actors.prefetcher.store import ExpertStore
from moespac.actors.transport.calls import ExpertCaller
from moespac.actors.transport.endpoint import Endpoint
from moespac.actors.transport.peers import Peers
from moespac.kernels.choose import choose_kernel
from moespac.kernels.experts import ExpertKernel

CPU = torch.device("cpu")
SPARE_POSITIONS = 16
"""Reserved beyond prompt and answer: more than any draft window here."""
HISTORY_BYTES = 2**16
"""For the texts of earlier requests that n-grams are looked up in."""


@cache
def reference_model(checkpoint: Path):
    """Eager transformers, float32: the oracle."""
    return AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
    ).eval()


@cache
def reference_tokens(checkpoint: Path, prompt: tuple[int, ...], n: int, sampling: Sampling = Sampling()) -> list[int]:  # noqa: B008
    """`n` tokens after `prompt` by the oracle alone: one token a pass. Sampled ones use the noise of the position."""
    model, sampler = reference_model(checkpoint), Sampler(sampling, len(prompt))
    tokens, cached = list(prompt), None
    with torch.inference_mode():
        for _ in range(n):
            pending = tokens if cached is None else tokens[-1:]
            out = model(torch.tensor([pending]), past_key_values=cached, use_cache=True, logits_to_keep=1)
            cached = out.past_key_values
            tokens.append(sampler.choose(out.logits[0, -1].numpy(), tokens))
    return tokens[len(prompt) :]


def make_draft_of(checkpoint: Path, path: Path, noise: float, seed: int = 5) -> Path:
    """A draft that agrees with the target now and then: its copy, every weight disturbed by `noise` of its spread."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                disturbance = torch.randn(parameter.shape, generator=generator)
                parameter.add_(noise * parameter.std() * disturbance)
    model.save_pretrained(path)
    (path / "tokenizer.json").write_bytes((checkpoint / "tokenizer.json").read_bytes())
    return path


def make_store(checkpoint: Path, path: Path) -> Path:
    """The checkpoint's converted experts."""
    convert(checkpoint, path)
    return path


class GivenCosts(CostModel):
    """What is assumed stays assumed: placements do not depend on how busy the machine is."""

    def observe(self, sample: CostSample) -> None: ...


def given_costs(expert_bytes: int, worker_s: float, link_s: float, device_s: float) -> CostModel:
    """Seconds of one expert on the workers, over the link, on the device `gpu-0`; pairs cost nothing."""
    worker, link, device = (Prior(0.0, expert_bytes / s, 0.0) for s in (worker_s, link_s, device_s))
    return GivenCosts(expert_bytes, "gpu-0", device, worker, link)


@dataclass
class Generated:
    """What `Rig.generate` did."""

    tokens: list[int] = field(default_factory=list)
    steps: list[StepResult] = field(default_factory=list)
    passes: list[Pass] = field(default_factory=list)

    @property
    def accepted(self) -> int:
        return sum(step.accepted for step in self.steps)

    @property
    def hits(self) -> int:
        return sum(sum(run.hits) for run in self.passes)

    @property
    def uses(self) -> int:
        return sum(sum(run.used) for run in self.passes)


@dataclass
class Rig:
    """A device without its service."""

    shape: ModelShape
    source: ExpertSource
    slots: ExpertSlots
    decoder: Decoder

    def make_resident(self, keys: Sequence[ExpertKey]) -> None:
        for key in keys:
            assert self.slots.fill(self.source, key, 1, 0).outcome is Outcome.FILLED

    def open(self, prompt: Sequence[int], n: int, sampling: Sampling = Sampling()) -> Session:  # noqa: B008
        return self.decoder.open("request", prompt, len(prompt) + n + SPARE_POSITIONS, sampling)

    def new_pass(self) -> Pass:
        return Pass(self.shape, ("request",))

    def generate(
        self,
        prompt: Sequence[int],
        n: int,
        gamma: int,
        sampling: Sampling = Sampling(),  # noqa: B008
        prefill_chunk: int = 512,
        kind: str = "model",
    ) -> Generated:
        """`n` tokens, as a scheduler drives the device; no drafts if it has none of that `kind`."""
        session, done = self.open(prompt, n, sampling), Generated()
        while len(done.tokens) < n:
            run = self.new_pass()
            choices = [DraftChoice(kind, min(gamma, n - len(done.tokens) - 1))] if kind in self.decoder.drafts else []
            step = self.decoder.step(session, choices, prefill_chunk, run)
            done.tokens.extend(step.emitted)
            done.steps.append(step)
            done.passes.append(run)
        self.decoder.closed(session)
        return done


@contextmanager
def rig(
    checkpoint: Path,
    store: Path,
    draft: Path | None = None,
    expert_memory: int = 0,
    workers: Sequence[Endpoint] = (),
    clock: Callable[[], float] = time.monotonic,
    device: torch.device = CPU,
    kernel: ExpertKernel | None = None,
    buffers: int = 0,
    link: Link | None = None,
    costs: CostModel | None = None,
) -> Iterator[Rig]:
    """A device of `checkpoint` whose experts come from `store`, nothing resident yet.

    `clock`: of workers' back-off; `kernel`: of experts, the fastest if None; `buffers`: of the slots, for staging;
    `link`: the device's own if None; `costs`: of the device `gpu-0`, instead of those assumed before any is measured.
    """
    target = load_trunk(checkpoint, torch.float32, device)
    opened = ExpertStore.open(store)
    shape = opened.shape
    source = ExpertSource.own(opened, 2 * shape.n_layers * shape.n_experts * max(shape.expert_bytes, 4096))
    cuda = device.type == "cuda"
    if link is None:
        link = CudaLink(device, lambda: source.arena.memory, shape.expert_bytes) if cuda else MemoryLink()
    slots = ExpertSlots(shape, expert_memory, device, link, buffers)
    staging = None
    if buffers:
        staging = Staging(slots.buffers, shape.expert_bytes, source, link, slots.transfers, slots.right_of_way)
    known = {endpoint.name: endpoint for endpoint in workers}
    peers = Peers(known.__getitem__)
    caller = ExpertCaller(peers, opened.fingerprint, clock=clock)
    measured = MeasuredCosts(costs or CostModel(shape.expert_bytes, "gpu-0"), slots.transfers)
    calls = Workers(caller, tuple(known), measured)
    kernel = choose_kernel(opened.layout, torch.float32, device, slots.memory).kernel if kernel is None else kernel
    spare = choose_kernel(opened.layout, torch.float32, device).kernel if cuda else kernel
    executor = LayerExecutor("gpu-0", shape, kernel, spare, slots, source, measured, calls, staging)
    try:
        # Fills take experts from the arena only; this waits until every one is there.
        for layer in shape.layer_ids:
            source.with_experts(layer, range(shape.n_experts), lambda _blocks: None)
        drafts = {"ngram": NgramDraft(HISTORY_BYTES), "self": ResidentDraft(target, executor)}
        if draft is not None:
            drafts["model"] = DenseDraft(load_draft(draft, torch.float32, device), target.vocab_size)
        yield Rig(shape, source, slots, Decoder(target, drafts, executor))
    finally:
        caller.close()
        if staging is not None:
            staging.close()
        source.close()
        opened.close()
        peers.close()
