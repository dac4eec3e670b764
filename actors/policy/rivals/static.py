"""Fixed placements: chosen once, never changed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...core import ExpertKey
from .interface import Decision, Layer, OffloadPolicy


class Static(OffloadPolicy):
    """The experts most used in the profile stay on the device; without a profile, as many of each layer's first."""

    keeps_fetched = False

    def initial(self) -> Sequence[ExpertKey]:
        shape, profile = self.setting.shape, self.setting.profile
        # Expert by expert, so that a stable sort interleaves the layers where the profile has nothing to say.
        order = np.argsort(-profile.T.ravel(), kind="stable")[: self.setting.slots]
        return [ExpertKey(shape.layer_ids[i % shape.n_layers], int(i // shape.n_layers)) for i in order]


class KTransformers(Static):
    """A mask by frequency; misses on the CPU, beside the device."""

    def layer(self, at: Layer) -> Decision:
        return Decision(cpu=at.misses)


class Fiddler(Static):
    """arXiv 2402.07033: static popularity; each miss by the cheaper of CPU and fetch; what is fetched is not kept."""

    def layer(self, at: Layer) -> Decision:
        setting = self.setting
        fetch = [
            e
            for e in at.misses
            if setting.transfer_s + setting.device.seconds(at.pairs[e]) < setting.cpu.seconds(at.pairs[e])
        ]
        return Decision(fetch=fetch, cpu=[e for e in at.misses if e not in fetch])


class LlamaCpp(Static):
    """Whole layers' experts on the device, the last ones, as `--n-cpu-moe` does; CPU and device take turns.

    A layer whose experts do not all fit has none on the device.
    """

    serial = True

    def initial(self) -> Sequence[ExpertKey]:
        shape = self.setting.shape
        whole = self.setting.slots // shape.n_experts
        layers = shape.layer_ids[shape.n_layers - whole :]
        return [ExpertKey(layer, e) for layer in layers for e in range(shape.n_experts)]

    def layer(self, at: Layer) -> Decision:
        return Decision(cpu=at.misses)


class LlamaCppSpeculative(LlamaCpp):
    """The same with a draft model."""

    speculates = True


class Vllm(Static):
    """`cpu_offload_gb`: a fixed part on the device, the rest read across the link whenever it is used."""

    def initial(self) -> Sequence[ExpertKey]:
        return LlamaCpp.initial(self)


class Accelerate(Vllm):
    """`device_map="auto"`: as `Vllm`, by copies from pageable memory."""

    pageable = True
