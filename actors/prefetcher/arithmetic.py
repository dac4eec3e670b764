"""What a routed expert computes, found out by running transformers' own code for it on random numbers.

Families differ in gates, clamps and activations, and name them as they please; numbers cannot be misread.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from ...errors import UserError
from ...kernels.layout import ExpertLayout
from ...kernels.reference import gated, scaled_rms_norm

_ACTIVATION = ("hidden_act", "hidden_activation", "activation_function", "mlp_hidden_act")
_USUAL = ("silu", "gelu", "gelu_pytorch_tanh", "relu", "relu2")
"""Activations tried besides the config's: some families apply the same one whatever their config says."""
_LIMIT, _ALPHA = ("limit", "swiglu_limit"), ("alpha", "swiglu_alpha")
_ROWS, _INNER = 64, 32
_CLOSE = {"rtol": 1e-5, "atol": 1e-6}


class UnknownArithmetic(UserError, ValueError):
    """None of the kernels' formulas gives what the module computes; the message continues "the experts …"."""


@dataclass(frozen=True)
class Arithmetic:
    """How an expert computes; the fields are those of ExpertLayout."""

    activation: str
    gate: str
    limit: float
    alpha: float
    bias: bool
    norm_eps: float | None


def arithmetic_of(experts: nn.Module) -> Arithmetic:
    """Of an experts module that transformers marks as replaceable; its parameters may be on the meta device.

    Raises UnknownArithmetic.
    """
    norm_eps = _norm_eps(experts.post_expert_norm) if experts.has_post_expert_norm else None
    for layout in _formulas(experts):
        if _agrees(experts, layout):
            return Arithmetic(
                layout.activation, layout.gate, layout.gate_limit, layout.gate_alpha, experts.has_bias, norm_eps
            )
    raise UnknownArithmetic(
        "have a gating function of their own, none of act(g)*u, its clamped variants, gpt-oss's, or act(u) without gate"
    )


def _formulas(experts: nn.Module) -> Iterator[ExpertLayout]:
    """What the module may compute, the simplest first."""
    config = experts.config
    named = [v for name in _ACTIVATION if isinstance(v := getattr(config, name, None), str)]
    activations = list(dict.fromkeys([*named, *_USUAL]))
    for activation in activations:
        yield ExpertLayout(_INNER, _INNER, "float32", activation, gate="glu" if experts.has_gate else "none")
    limit, alpha = _number(experts, _LIMIT), _number(experts, _ALPHA)
    if not experts.has_gate or limit is None:
        return
    for gate in ("clamped", "clamped_after"):
        for activation in activations:
            yield ExpertLayout(_INNER, _INNER, "float32", activation, gate=gate, gate_limit=limit)
    if alpha is not None:
        # The formula is silu's but for alpha; no other activation enters it.
        yield ExpertLayout(
            _INNER, _INNER, "float32", "silu", gate="clamped_sigmoid", gate_limit=limit, gate_alpha=alpha
        )


@torch.no_grad()
def _agrees(experts: nn.Module, layout: ExpertLayout) -> bool:
    projected = _rows(layout.gate_up_rows, _number(experts, _LIMIT))
    theirs = projected
    if experts.has_gate and not experts.is_concatenated:
        theirs = torch.stack(projected.chunk(2, dim=-1), dim=-1).flatten(-2)
    try:
        ours = gated(layout, projected)
        theirs = experts._apply_gate(theirs) if experts.has_gate else experts.act_fn(theirs)
    except KeyError:
        return False  # an activation that transformers does not know by that name
    return theirs.shape == ours.shape and torch.allclose(ours, theirs, **_CLOSE)


def _rows(columns: int, limit: float | None) -> torch.Tensor:
    """Random [rows, columns], some of them within a limit and some beyond it on either side."""
    generator = torch.Generator().manual_seed(0)
    reach = 4.0 if limit is None or limit == float("inf") else max(4.0, 3 * limit)
    return torch.randn(_ROWS, columns, generator=generator) * torch.logspace(-1, 0, _ROWS)[:, None] * reach


@torch.no_grad()
def _norm_eps(norm: nn.Module) -> float:
    eps = _number(norm, ("eps", "variance_epsilon"))
    parameters = dict(norm.named_parameters())
    if eps is None or set(parameters) != {"weight"}:
        raise UnknownArithmetic(f"have a norm after each expert ({type(norm).__name__}) of an unknown kind")
    generator = torch.Generator().manual_seed(0)
    # Small rows too, so that eps counts.
    rows = _rows(parameters["weight"].numel(), None) * torch.logspace(-3, 0, _ROWS)[:, None]
    weight = torch.randn(rows.shape[1], generator=generator)
    theirs = torch.func.functional_call(norm, {"weight": weight}, rows)
    if not torch.allclose(scaled_rms_norm(rows, weight, eps), theirs, **_CLOSE):
        raise UnknownArithmetic(f"have a norm after each expert ({type(norm).__name__}) that is not rms((1 + w) * y)")
    return eps


def _number(module: nn.Module, names: tuple[str, ...]) -> float | None:
    values = (getattr(module, name, None) for name in names)
    return next((float(v) for v in values if isinstance(v, int | float)), None)
