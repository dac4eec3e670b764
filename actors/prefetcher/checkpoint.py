"""Hugging Face checkpoints, read tensor by tensor: routed experts on one side, the trunk on the other."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import torch
import xxhash
from safetensors import safe_open

from ..core import ExpertKey, ModelShape
from .families import ExpertsDescription, ExpertsKind, describe_experts
from .safetensors_files import CheckpointError, Header, TensorEntry, read_headers

__all__ = ["Checkpoint", "CheckpointError", "open_checkpoint", "source_fingerprint"]

# Some families keep the router's correction beside the experts; it belongs to the trunk. Granite's files name the two
# projections themselves, where others have `experts`.
_ROUTED = re.compile(
    r"\blayers\.(\d+)\.(?:.*\.)?"
    r"(?:experts\.(?!e_score_correction_bias)|block_sparse_moe\.(?=(?:input|output)_linear\.))(.+)$"
)
_ONE_EXPERT = re.compile(r"(\d+)\.(gate_proj|up_proj|down_proj|w1|w2|w3)\.(weight|bias)$")
_PART = {"gate_proj": "gate", "w1": "gate", "up_proj": "up", "w3": "up", "down_proj": "down", "w2": "down"}
_FUSED = re.compile(
    r"(?:(gate_up_proj|up_proj|fc1\.weight|input_linear\.weight)|down_proj|fc2\.weight|output_linear\.weight)(_bias)?$"
)
_NORM = "post_expert_norm.weight"
_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_WHOLE_BYTES = 64 * 1024 * 1024
_SAMPLES, _SAMPLE_BYTES = 256, 4096

Place = tuple[str, int | None]
"""A tensor's name, and the row to take of a fused one."""


class Checkpoint:
    """An open checkpoint. Nothing is held in memory but headers; tensors are read from memory-mapped files."""

    def __init__(self, path: Path, headers: list[Header], description: ExpertsDescription) -> None:
        self.path = path
        self.name = path.resolve().name
        self.model_type = description.model_type
        self._headers = headers
        self._tensors = {name: entry for header in headers for name, entry in header.tensors.items()}
        self._routed: set[str] = set()
        self._places = self._find_experts(description)
        self._kind = description.kind
        self.layout = description.kind.layout(self._check(description))
        self.shape = ModelShape(
            layer_ids=description.layer_ids,
            n_experts=description.kind.n_experts,
            top_k=description.top_k,
            hidden_size=description.kind.hidden_size,
            intermediate_size=description.kind.intermediate_size,
            expert_bytes=self.layout.expert_bytes,
        )
        self._open: dict[Path, safe_open] = {}

    @cached_property
    def fingerprint(self) -> str:
        """Identity of the files: see `source_fingerprint`."""
        return _fingerprint(self.path, self._headers)

    def expert(self, key: ExpertKey) -> dict[str, torch.Tensor]:
        """One routed expert by the parts of our own layout, whatever that of the files.

        `gate_up` [2·I, H] (gate rows first; [I, H] without a gate) and `down` [H, I] in the checkpoint's type; where
        the model has them `gate_up_bias` [2·I] or [I], `down_bias` [H] and `norm` [H] in float32.
        """
        places, kind = self._places[key], self._kind
        read = {part: self._read(place) for part, place in places.items()}
        fused = "gate_up" in read
        if fused and kind.transposed:
            read |= {part: read[part].T.contiguous() for part in ("gate_up", "down")}
        for suffix in ("", "_bias"):
            if fused and kind.interleaved and f"gate_up{suffix}" in read:
                rows = read[f"gate_up{suffix}"]
                read[f"gate_up{suffix}"] = torch.cat([rows[::2], rows[1::2]])
            elif f"gate{suffix}" in read:
                read[f"gate_up{suffix}"] = torch.cat([read.pop(f"gate{suffix}"), read.pop(f"up{suffix}")])
            elif f"up{suffix}" in read:
                read[f"gate_up{suffix}"] = read.pop(f"up{suffix}")
        return {
            part.name: read[part.name].float() if part.name not in ("gate_up", "down") else read[part.name]
            for part in self.layout.parts
        }

    def trunk_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Everything that is no routed expert's weight, named as in the checkpoint."""
        for name in self._tensors:
            if name not in self._routed:
                yield name, self._read((name, None))

    def _read(self, place: Place) -> torch.Tensor:
        name, row = place
        file = self._tensors[name].file
        handle = self._open.get(file)
        if handle is None:
            handle = self._open[file] = safe_open(file, framework="pt")
        return handle.get_tensor(name) if row is None else handle.get_slice(name)[row]

    def _find_experts(self, description: ExpertsDescription) -> dict[ExpertKey, dict[str, Place]]:
        places: dict[ExpertKey, dict[str, Place]] = {}
        for name, entry in self._tensors.items():
            routed = _ROUTED.search(name)
            if routed is None:
                continue
            self._routed.add(name)
            layer = int(routed[1])
            if layer not in description.layer_ids:
                continue  # layers beyond the model proper, such as those for multi-token prediction
            single, fused = _ONE_EXPERT.fullmatch(routed[2]), _FUSED.fullmatch(routed[2])
            everyone = [ExpertKey(layer, expert) for expert in range(description.kind.n_experts)]
            if single is not None:
                part = _PART[single[2]] + ("_bias" if single[3] == "bias" else "")
                places.setdefault(ExpertKey(layer, int(single[1])), {})[part] = (name, None)
            elif fused is not None:
                part = ("gate_up" if fused[1] else "down") + (fused[2] or "")
                for expert, key in enumerate(everyone):
                    places.setdefault(key, {})[part] = (name, expert)
            elif routed[2] == _NORM:
                for key in everyone:
                    places.setdefault(key, {})["norm"] = (name, None)
            else:
                raise CheckpointError(
                    entry.file,
                    f"tensor {name} is of no known expert layout",
                    "use a checkpoint without expert scales or packed formats",
                )
        return places

    def _check(self, description: ExpertsDescription) -> str:
        """Raises CheckpointError unless every expert is there, whole and of one type; that type."""
        single, fused = _expected(description.kind)
        dtypes: dict[str, str] = {}
        for layer in description.layer_ids:
            for expert in range(description.kind.n_experts):
                places = self._places.get(ExpertKey(layer, expert), {})
                expected = fused if "gate_up" in places else single
                for part, shape in expected.items():
                    if part not in places:
                        raise CheckpointError(
                            self.path,
                            f"layer {layer}, expert {expert}: no {_spoken(part)} found",
                            "download the checkpoint again, or use a model with a supported expert layout",
                        )
                    name = places[part][0]
                    self._check_shape(name, self._tensors[name], shape)
                    if part.endswith("_bias") or part == "norm":
                        self._check_type(self._tensors[name].dtype)  # read as float32, whatever the weights are
                    else:
                        dtypes.setdefault(self._tensors[name].dtype, name)
                if superfluous := places.keys() - expected.keys():
                    name = places[min(superfluous)][0]
                    raise CheckpointError(
                        self._tensors[name].file,
                        f"tensor {name} is not part of an expert of {description.model_type} as its config.json says",
                        "use weights and config.json of the same model",
                    )
        if len(dtypes) > 1:
            mixed = ", ".join(f"{dtype} ({name})" for dtype, name in dtypes.items())
            raise CheckpointError(self.path, f"expert weights of mixed types: {mixed}", "save them in one type")
        (found,) = dtypes
        return self._check_type(found)

    def _check_type(self, found: str) -> str:
        if found not in _DTYPES:
            raise CheckpointError(
                self.path, f"expert weights of type {found}", f"supported types are {', '.join(_DTYPES)}"
            )
        return _DTYPES[found]

    @staticmethod
    def _check_shape(name: str, entry: TensorEntry, shape: tuple[int, ...]) -> None:
        if entry.shape != shape:
            raise CheckpointError(
                entry.file,
                f"tensor {name} has shape {list(entry.shape)}, its config.json asks for {list(shape)}",
                "use weights and config.json of the same model",
            )


def _expected(kind: ExpertsKind) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    """Shapes of an expert's tensors by part: where each expert has its own, and where a layer's are fused."""
    n, hidden, inner, rows = (
        kind.n_experts,
        kind.hidden_size,
        kind.intermediate_size,
        kind.first_rows,
    )
    single = {"up": (inner, hidden), "down": (hidden, inner)}
    if rows > inner:
        single = {"gate": (inner, hidden)} | single
    fused = {"gate_up": (n, rows, hidden), "down": (n, hidden, inner)}
    if kind.transposed:
        fused = {part: (n, columns, rows_) for part, (_, rows_, columns) in fused.items()}
    if kind.arithmetic.bias:
        single |= {f"{part}_bias": shape[:1] for part, shape in single.items()}
        fused |= {"gate_up_bias": (n, rows), "down_bias": (n, hidden)}
    if kind.arithmetic.norm_eps is not None:
        single, fused = single | {"norm": (hidden,)}, fused | {"norm": (hidden,)}
    return single, fused


def _spoken(part: str) -> str:
    if part == "norm":
        return "norm after the expert"
    return f"{part.removesuffix('_bias')} bias" if part.endswith("_bias") else f"{part} weights"


def open_checkpoint(path: Path | str) -> Checkpoint:
    """Checks configuration and headers, loads no weight. Raises CheckpointError."""
    path = Path(path)
    description = describe_experts(path)
    return Checkpoint(path, read_headers(path), description)


def source_fingerprint(path: Path | str) -> str:
    """Identity of a checkpoint's files whatever their path and dates.

    Hashes config.json, headers and sizes, files of up to 64 MiB whole and 256 pages of each larger one: weights
    trained on differ in practically every page, and reading them all would take minutes at every start.
    """
    return _fingerprint(Path(path), read_headers(Path(path)))


def _fingerprint(path: Path, headers: list[Header]) -> str:
    state = xxhash.xxh3_128()
    try:
        state.update((path / "config.json").read_bytes())
    except OSError as error:
        raise CheckpointError(path / "config.json", f"cannot be read ({error})", "restore the file") from error
    for header in headers:
        state.update(f"{header.file.name}:{header.file_bytes}:".encode())
        state.update(header.raw)
        with header.file.open("rb", buffering=0) as stream:
            if header.file_bytes <= _WHOLE_BYTES:
                while block := stream.read(1 << 20):
                    state.update(block)
                continue
            last = header.file_bytes - _SAMPLE_BYTES
            for index in range(_SAMPLES):
                state.update(os.pread(stream.fileno(), _SAMPLE_BYTES, last * index // (_SAMPLES - 1)))
    return state.hexdigest()
