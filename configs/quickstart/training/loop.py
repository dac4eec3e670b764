"""A training loop that can stop at any step and go on to bit-identical weights.

Learning rate and data are functions of the step alone, the model has no dropout, and a checkpoint holds weights and
optimizer state; so nothing else needs to be remembered.
"""

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import PreTrainedModel

from .batches import Batches

StepLoss = Callable[[torch.Tensor], tuple[torch.Tensor, float]]
WARM_UP_STEPS = 100
DECAY_SHARE = 0.5  # of all steps, linear to zero at the end
LONG_SHARE = 0.1  # of all steps, at the end, at full context length
CLIP_NORM = 1.0


@dataclass(frozen=True)
class Recipe:
    """How long and how strongly to train; every step sees ``step_tokens`` tokens."""

    tokens: int  # whole budget
    learning_rate: float  # peak
    step_tokens: int = 2048
    length: int = 512  # tokens a sequence; the end runs at ``long_length``
    long_length: int = 1024
    seed: int = 1

    @property
    def steps(self) -> int:
        return max(self.tokens // self.step_tokens, 1)

    def rate(self, step: int) -> float:
        """Warm-up, constant, then linear to zero (so that the budget may change until the decay begins)."""
        decay = max(round(self.steps * DECAY_SHARE), 1)
        return self.learning_rate * min((step + 1) / WARM_UP_STEPS, (self.steps - step) / decay, 1.0)

    def ids(self, streams: tuple, step: int) -> torch.Tensor:
        """Token ids of a step; the last tenth of the steps trains positions up to the full context."""
        short_steps = self.steps - round(self.steps * LONG_SHARE)
        length, index = (self.length, step) if step < short_steps else (self.long_length, step - short_steps)
        return Batches(streams, self.step_tokens // length, length, self.seed).batch(index)


def optimizer_for(model: PreTrainedModel, learning_rate: float) -> torch.optim.AdamW:
    """AdamW; weight decay on matrices only (not on norms)."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), fused=True)


def save_checkpoint(path: Path, model: PreTrainedModel, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Write atomically: a reader or a crash sees the old checkpoint or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, partial)
    os.replace(partial, path)


def gradients(
    model: PreTrainedModel, loss_of: StepLoss, ids: torch.Tensor, pool: ThreadPoolExecutor, workers: int
) -> float:
    """Set every parameter's gradient for one step, its sequences shared out to ``workers`` threads; the mean value.

    At this size most of a step is too small to be worth splitting over cores: a thread for each half of the batch, each
    using one core, trains three times as fast as one thread that splits every operation. The parts are added in a fixed
    order, so the sum does not depend on which thread is first.
    """
    parameters = list(model.parameters())

    def part(rows: torch.Tensor) -> tuple[tuple[torch.Tensor, ...], float, float]:
        loss, value = loss_of(rows)
        return torch.autograd.grad(loss, parameters), value, len(rows) / len(ids)

    total: list[torch.Tensor] | None = None
    mean = 0.0
    for grads, value, share in pool.map(part, ids.chunk(min(workers, len(ids)))):
        mean += share * value
        scaled = torch._foreach_mul(list(grads), share)
        total = scaled if total is None else torch._foreach_add(total, scaled)
    for parameter, grad in zip(parameters, total, strict=True):
        parameter.grad = grad
    return mean


def run(
    model: PreTrainedModel,
    loss_of: StepLoss,
    streams: tuple,
    recipe: Recipe,
    checkpoint: Path,
    *,
    workers: int = 1,
    save_seconds: float = 180.0,
    stop_after: int | None = None,
    label: str = "loss",
) -> int:
    """Train ``model`` in place from ``checkpoint`` (or from its start) to the budget's end; return the steps done.

    ``stop_after`` ends the run, with a checkpoint, once that many steps in all are done. ``label`` names the second
    value ``loss_of`` gives, which the progress bar and the log lines show as a mean since the last line.
    """
    optimizer = optimizer_for(model, recipe.learning_rate)
    first = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    last = recipe.steps if stop_after is None else min(stop_after, recipe.steps)
    done = TextColumn("{task.completed}/{task.total} steps  {task.description}")
    columns = [BarColumn(), done, TimeRemainingColumn()]
    torch.set_num_threads(1)
    one_core_each = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
    with one_core_each as pool, Progress(*columns) as progress:
        task = progress.add_task("", total=recipe.steps, completed=first)
        saved = started = lined = time.monotonic()
        values: list[float] = []
        model.train()
        for step in range(first, last):
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate(step)
            value = gradients(model, loss_of, recipe.ids(streams, step), pool, workers)
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
            optimizer.step()
            values.append(value)
            now = time.monotonic()
            speed = (step + 1 - first) * recipe.step_tokens / (now - started)
            progress.update(task, advance=1, description=f"{speed:,.0f} tok/s  {label} {value:.3f}")
            if now - lined > 60 or step + 1 == last:
                mean = sum(values) / len(values)
                progress.console.print(
                    f"step {step + 1}/{recipe.steps}  {label} {mean:.4f}  "
                    f"lr {recipe.rate(step):.2e}  {speed:,.0f} tok/s"
                )
                lined, values = now, []
            if now - saved > save_seconds:
                save_checkpoint(checkpoint, model, optimizer, step + 1)
                saved = now
    if last > first:
        save_checkpoint(checkpoint, model, optimizer, last)
    return last
