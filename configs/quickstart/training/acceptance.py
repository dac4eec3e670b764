"""How much of a draft a target accepts when the pair really generates, greedily, ``gamma`` draft tokens a step."""

from dataclasses import dataclass

import torch
from transformers import DynamicCache, PreTrainedModel

LONGEST_PERIOD = 32
LOOP_TOKENS = 24
LOOP_TURNS = 3


@dataclass(frozen=True)
class Generation:
    """``tokens`` made after the prompt; ``accepted`` has, a step, how many of its ``gamma`` proposals were accepted."""

    tokens: tuple[int, ...]
    accepted: tuple[int, ...]


@dataclass(frozen=True)
class AcceptanceFigures:
    """``by_position[i]``: accepted / proposed of draft token i + 1 over all steps; ``rate``: over all positions."""

    generations: int
    looping: int
    steps: int
    rate: float
    by_position: tuple[float, ...]
    tokens_per_step: float


def loops(tokens: tuple[int, ...]) -> bool:
    """Whether a generation repeats itself: some stretch has a period of p <= 32 tokens, and it spans at least three
    periods and at least 24 tokens. (Such stretches are accepted nearly whole and would flatter a draft.)
    """
    for period in range(1, LONGEST_PERIOD + 1):
        needed, run = max(LOOP_TURNS * period, LOOP_TOKENS) - period, 0
        for at in range(period, len(tokens)):
            run = run + 1 if tokens[at] == tokens[at - period] else 0
            if run >= needed:
                return True
    return False


def _greedy(model: PreTrainedModel, cache: DynamicCache, ids: list[int]) -> list[int]:
    """Feed ``ids`` behind what ``cache`` holds; the model's greedy token after each of them."""
    return model(input_ids=torch.tensor([ids]), past_key_values=cache, use_cache=True).logits[0].argmax(-1).tolist()


def _keep(cache: DynamicCache, length: int) -> None:
    surplus = cache.get_seq_length() - length
    if surplus > 0:
        cache.crop(-surplus)


@torch.inference_mode()
def speculate(
    target: PreTrainedModel, draft: PreTrainedModel, prompt: list[int], gamma: int, new_tokens: int, end: int
) -> Generation:
    """Greedy speculative decoding of one prompt; stops at ``end`` or behind ``new_tokens`` tokens.

    The tokens are the target's own greedy tokens: a step keeps the proposals that equal them, and one token more.
    """
    ids, target_cache, draft_cache = list(prompt), DynamicCache(), DynamicCache()
    accepted: list[int] = []
    while len(ids) < len(prompt) + new_tokens:
        proposals: list[int] = []
        while len(proposals) < gamma:
            proposals.append(_greedy(draft, draft_cache, [*ids, *proposals][draft_cache.get_seq_length() :])[-1])
        choices = _greedy(target, target_cache, [*ids, *proposals][target_cache.get_seq_length() :])[-gamma - 1 :]
        count = next((i for i, token in enumerate(proposals) if token != choices[i]), gamma)
        ids += choices[: count + 1]
        accepted.append(count)
        for cache in (target_cache, draft_cache):
            _keep(cache, len(ids) - 1)
        if end in choices[: count + 1]:
            ids = ids[: ids.index(end, len(prompt)) + 1]
            break
    return Generation(tuple(ids[len(prompt) :][:new_tokens]), tuple(accepted))


def summarise(generations: list[Generation], gamma: int) -> AcceptanceFigures:
    """Figures over the generations that do not loop. Raises ValueError when every one does."""
    kept = [g for g in generations if not loops(g.tokens)]
    steps = [count for g in kept for count in g.accepted]
    if not steps:
        raise ValueError(f"all {len(generations)} generations loop: acceptance cannot be told")
    by_position = tuple(sum(count > i for count in steps) / len(steps) for i in range(gamma))
    mean = sum(steps) / len(steps)
    return AcceptanceFigures(
        generations=len(kept),
        looping=len(generations) - len(kept),
        steps=len(steps),
        rate=mean / gamma,
        by_position=by_position,
        tokens_per_step=mean + 1,
    )
