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

from ...kernels.layout import ExpertLayout
from ..core import ExpertKey, ModelShape
from .families import ExpertsDescription, describe_experts
from .safetensors_files import CheckpointError, Header, TensorEntry, read_headers

__all__ = ["Checkpoint", "CheckpointError", "open_checkpoint", "source_fingerprint"]

_ROUTED = re.compile(r"\blayers\.(\d+)\.(?:.*\.)?experts\.(.+)$")
_ONE_EXPERT = re.compile(r"(\d+)\.(gate_proj|up_proj|down_proj|w1|w2|w3)\.weight$")
_PART = {"gate_proj": "gate", "w1": "gate", "up_proj": "up", "w3": "up", "down_proj": "down", "w2": "down"}
_FUSED = {"gate_up_proj": "gate_up", "down_proj": "down"}
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
        dtype = self._check(description)
        self.layout = ExpertLayout(
            description.hidden_size, description.intermediate_size, dtype, description.activation
        )
        self.shape = ModelShape(
            layer_ids=description.layer_ids,
            n_experts=description.n_experts,
            top_k=description.top_k,
            hidden_size=description.hidden_size,
            intermediate_size=description.intermediate_size,
            expert_bytes=self.layout.expert_bytes,
        )
        self._open: dict[Path, safe_open] = {}

    @cached_property
    def fingerprint(self) -> str:
        """Identity of the files: see `source_fingerprint`."""
        return _fingerprint(self.path, self._headers)

    def expert(self, key: ExpertKey) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(gate [I, H], up [I, H], down [H, I]) of one routed expert."""
        places = self._places[key]
        down = self._read(places["down"])
        if "gate_up" in places:
            gate, up = self._read(places["gate_up"]).chunk(2)
            return gate, up, down
        return self._read(places["gate"]), self._read(places["up"]), down

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
            single = _ONE_EXPERT.fullmatch(routed[2])
            if single is not None:
                key = ExpertKey(layer, int(single[1]))
                places.setdefault(key, {})[_PART[single[2]]] = (name, None)
            elif routed[2] in _FUSED:
                for expert in range(description.n_experts):
                    places.setdefault(ExpertKey(layer, expert), {})[_FUSED[routed[2]]] = (name, expert)
            else:
                raise CheckpointError(
                    entry.file,
                    f"tensor {name} is of no known expert layout",
                    "use a checkpoint without expert biases, scales or packed formats",
                )
        return places

    def _check(self, description: ExpertsDescription) -> str:
        """Raises CheckpointError unless every expert is there, whole and of one type; that type."""
        hidden, inner, n = description.hidden_size, description.intermediate_size, description.n_experts
        single = {"gate": (inner, hidden), "up": (inner, hidden), "down": (hidden, inner)}
        fused = {"gate_up": (n, 2 * inner, hidden), "down": (n, hidden, inner)}
        dtypes: dict[str, str] = {}
        for layer in description.layer_ids:
            for expert in range(n):
                places = self._places.get(ExpertKey(layer, expert), {})
                expected = fused if "gate_up" in places else single
                for part, shape in expected.items():
                    if part not in places:
                        raise CheckpointError(
                            self.path,
                            f"layer {layer}, expert {expert}: no {part} weights found",
                            "download the checkpoint again, or use a model with a supported expert layout",
                        )
                    name = places[part][0]
                    self._check_shape(name, self._tensors[name], shape)
                    dtypes.setdefault(self._tensors[name].dtype, name)
        if len(dtypes) > 1:
            mixed = ", ".join(f"{dtype} ({name})" for dtype, name in dtypes.items())
            raise CheckpointError(self.path, f"expert weights of mixed types: {mixed}", "save them in one type")
        (found,) = dtypes
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
