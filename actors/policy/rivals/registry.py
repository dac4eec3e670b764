"""Policies by name."""

from __future__ import annotations

from .belady import Belady, BeladyDemand
from .fate import Fate
from .hybrimoe import Dali, HybriMoe
from .interface import OffloadPolicy
from .lookahead import MoeSpeq, SpMoe
from .moe_infinity import MoeInfinity
from .moe_spac import MoeSpacDescribed, MoeSpacReleased
from .moespac import Clairvoyant, Moespac
from .on_demand import MixtralOffload, OnDemand
from .static import Accelerate, Fiddler, KTransformers, LlamaCpp, LlamaCppSpeculative, Vllm

POLICIES: dict[str, type[OffloadPolicy]] = {
    "on-demand": OnDemand,
    "accelerate": Accelerate,
    "vllm": Vllm,
    "llama.cpp": LlamaCpp,
    "llama.cpp-sd": LlamaCppSpeculative,
    "mixtral-offload": MixtralOffload,
    "moe-infinity": MoeInfinity,
    "fiddler": Fiddler,
    "ktransformers": KTransformers,
    "hybrimoe": HybriMoe,
    "fate": Fate,
    "dali": Dali,
    "sp-moe": SpMoe,
    "moe-speq": MoeSpeq,
    "moe-spac-released": MoeSpacReleased,
    "moe-spac-described": MoeSpacDescribed,
    "moespac": Moespac,
    "clairvoyant": Clairvoyant,
    "belady-demand": BeladyDemand,
    "belady": Belady,
}
"""Every policy the simulator can run; the last three know the future."""


def policy_class(name: str) -> type[OffloadPolicy]:
    """Raises ValueError for an unknown name."""
    if name not in POLICIES:
        raise ValueError(f"policy {name!r} is unknown; choose among {', '.join(POLICIES)}")
    return POLICIES[name]
