"""What the two trainings minimise."""

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from .models import BALANCE_COEFFICIENT

STARVED = 1 / 16  # of an equal share of a layer's choices


def balance_losses(router_logits: tuple[torch.Tensor, ...], top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two terms that keep experts in use, each summed over layers; ``router_logits``: [tokens, experts] a layer.

    The first is the load-balancing loss of the Switch Transformer (arXiv 2101.03961, eq. 4), 1 a layer when even. Each
    layer is balanced by itself: averaging choices over layers first would let an expert of one layer die while its
    namesake elsewhere is busy. The second is -log of the mean probability of the experts that got less than a sixteenth
    of an equal share of the choices: it wakes the starved ones and, unlike more of the first, flattens nothing else.
    """
    balance = starved = router_logits[0].new_zeros(())
    for logits in router_logits:
        experts = logits.shape[-1]
        chosen = logits.detach().topk(top_k, dim=-1).indices
        share = torch.bincount(chosen.flatten(), minlength=experts) / chosen.numel()
        probability = logits.softmax(-1).mean(0)
        balance = balance + experts * (share * probability).sum()
        starved = starved - probability[share < STARVED / experts].log().sum()
    return balance, starved


def target_loss(model: PreTrainedModel, ids: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Next-token cross-entropy (nats) plus the small balance terms, and the cross-entropy; ids [rows, length + 1]."""
    out = model.model(input_ids=ids[:, :-1], use_cache=False, output_router_logits=True)
    logits = model.lm_head(out.last_hidden_state).flatten(0, 1)
    text = F.cross_entropy(logits, ids[:, 1:].flatten())
    balance, starved = balance_losses(out.router_logits, model.config.num_experts_per_tok)
    return text + BALANCE_COEFFICIENT * (balance + starved), text.item()


def distillation_loss(draft: PreTrainedModel, target: PreTrainedModel, ids: torch.Tensor) -> tuple[torch.Tensor, float]:
    """KL(target || draft) plus cross-entropy to the target's greedy token, per position; and the greedy disagreement.

    A draft token counts only when it is the target's own choice, so the target's argmax is a label in its own right.
    """
    with torch.no_grad():
        wanted = target(input_ids=ids[:, :-1], use_cache=False).logits.flatten(0, 1)
        log_wanted, best = wanted.log_softmax(-1), wanted.argmax(-1)
    given = draft(input_ids=ids[:, :-1], use_cache=False).logits.flatten(0, 1)
    divergence = F.kl_div(given.log_softmax(-1), log_wanted, reduction="batchmean", log_target=True)
    disagreement = (given.detach().argmax(-1) != best).float().mean().item()
    return divergence + F.cross_entropy(given, best), disagreement
