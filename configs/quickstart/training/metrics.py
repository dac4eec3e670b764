"""Teacher-forced figures of a pair on held-out text: bits per byte, agreement, and how experts are used."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

USAGE_TOKENS = 10_000


@dataclass(frozen=True)
class Window:
    """Consecutive held-out tokens: ``ids`` int64 [n + 1]; the first is context only, ``n`` tokens are predicted."""

    ids: torch.Tensor


@dataclass(frozen=True)
class TextFigures:
    """``distinct`` maps a run length in tokens to the mean number of distinct experts a layer over that many tokens."""

    tokens: int
    bytes: int
    bits_per_byte: float
    agreement: float
    least_choices: int
    shared_by_neighbours: float
    distinct: dict[int, float]


def windows(tokenizer: PreTrainedTokenizerFast, pieces: Iterable[str], length: int) -> Iterator[Window]:
    """Cut each piece into windows of at most ``length`` predicted tokens; a piece starts behind an end token."""
    end = tokenizer.eos_token_id
    for piece in pieces:
        ids = torch.tensor([end, *tokenizer.backend_tokenizer.encode(piece, add_special_tokens=False).ids])
        for start in range(0, len(ids) - 1, length):
            yield Window(ids[start : start + length + 1])


def routes(router_logits: Iterable[torch.Tensor], top_k: int) -> torch.Tensor:
    """Chosen experts, int64 [tokens, layers, top_k]."""
    return torch.stack([logits.topk(top_k, dim=-1).indices for logits in router_logits], dim=1)


def shared_share(chosen: torch.Tensor) -> torch.Tensor:
    """Share of a token's experts that the token before also chose, float [tokens - 1, layers]."""
    same = chosen[1:, :, :, None] == chosen[:-1, :, None, :]
    return same.any(-1).float().mean(-1)


def distinct_experts(chosen: torch.Tensor, experts: int, run: int) -> torch.Tensor:
    """Distinct experts a layer over consecutive runs of ``run`` tokens, float [tokens // run, layers]."""
    runs, layers = chosen.shape[0] // run, chosen.shape[1]
    grouped = chosen[: runs * run].reshape(runs, run, layers, -1).transpose(1, 2).flatten(2)
    used = torch.zeros(runs, layers, experts).scatter_(2, grouped, 1.0)
    return used.sum(-1)


def least_choices(chosen: list[torch.Tensor], experts: int, tokens: int = USAGE_TOKENS) -> int:
    """The fewest times any (layer, expert) is chosen in any sample of ``tokens`` tokens.

    Samples are disjoint and each is spread evenly over the whole text: sample i takes every n-th window, from the
    i-th. Raises ValueError when there are fewer tokens than one sample.
    """
    total = sum(len(part) for part in chosen)
    if total < tokens:
        raise ValueError(f"--text: {total} held-out tokens, but expert use is counted over {tokens}; add text")
    # One sample fewer than would fit, so that windows of unequal length still fill each.
    samples = max(total // tokens - 1, 1)
    fewest = math.inf
    for sample in range(samples):
        part = torch.cat(chosen[sample::samples])[:tokens]
        if len(part) < tokens:
            continue
        used = torch.zeros(part.shape[1], experts, dtype=torch.int64)
        used.scatter_add_(1, part.transpose(0, 1).flatten(1), torch.ones_like(part.transpose(0, 1).flatten(1)))
        fewest = min(fewest, int(used.min()))
    return int(fewest)


@torch.inference_mode()
def measure(target: PreTrainedModel, draft: PreTrainedModel, parts: list[Window], text_bytes: int) -> TextFigures:
    """Run both models over every window. ``text_bytes`` is the UTF-8 length of the text the windows were cut from."""
    experts, top_k = target.config.num_experts, target.config.num_experts_per_tok
    nats, agreed, tokens, chosen = 0.0, 0, 0, []
    for part in parts:
        ids, labels = part.ids[None, :-1], part.ids[1:]
        out = target(input_ids=ids, use_cache=False, output_router_logits=True)
        logits = out.logits[0]
        nats += torch.nn.functional.cross_entropy(logits, labels, reduction="sum").item()
        guesses = draft(input_ids=ids, use_cache=False).logits[0].argmax(-1)
        agreed += int((guesses == logits.argmax(-1)).sum())
        tokens += len(labels)
        chosen.append(routes(out.router_logits, top_k))
    return TextFigures(
        tokens=tokens,
        bytes=text_bytes,
        bits_per_byte=nats / math.log(2) / text_bytes,
        agreement=agreed / tokens,
        least_choices=least_choices(chosen, experts),
        shared_by_neighbours=torch.cat([shared_share(c) for c in chosen]).mean().item(),
        distinct={run: torch.cat([distinct_experts(c, experts, run) for c in chosen]).mean().item() for run in (4, 8)},
    )
