"""The safetensors files of a checkpoint: found, and their headers checked, before any tensor is read."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from ...errors import UserError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_MOST_HEADER_BYTES = 100_000_000  # what safetensors itself accepts
_ITEM_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64,
}  # fmt: skip


class CheckpointError(UserError, RuntimeError):
    """A checkpoint cannot be used. Names the file, what is wrong with it and what to do."""

    def __init__(self, file: Path, what: str, remedy: str) -> None:
        super().__init__(f"{file}: {what}; {remedy}")
        self.file, self.what, self.remedy = file, what, remedy

    def __reduce__(self):
        return type(self), (self.file, self.what, self.remedy)  # survives a process boundary


@dataclass(frozen=True)
class TensorEntry:
    """One tensor as a header describes it."""

    file: Path
    dtype: str
    """As safetensors names it: F32, BF16, …"""
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Header:
    """One file's header: raw bytes (for fingerprints), and its tensors."""

    file: Path
    file_bytes: int
    raw: bytes
    tensors: dict[str, TensorEntry]


def find_files(directory: Path) -> list[Path]:
    """The safetensors files of a checkpoint, in a fixed order. Raises CheckpointError."""
    if not directory.is_dir():
        raise CheckpointError(
            directory, "no such model directory", "give the path of a Hugging Face checkpoint directory"
        )
    single, index = directory / SINGLE_FILE, directory / INDEX_FILE
    if single.is_file():
        return [single]
    if not index.is_file():
        raise CheckpointError(
            directory,
            f"has neither {SINGLE_FILE} nor {INDEX_FILE}",
            "save the model as safetensors (other weight files are not read)",
        )
    files = [directory / name for name in sorted(set(_weight_map(index).values()))]
    for file in files:
        if not file.is_file():
            raise CheckpointError(file, f"named by {INDEX_FILE} but missing", "download the checkpoint again")
    return files


def read_headers(directory: Path) -> list[Header]:
    """Headers of all files, each checked against its file's size, and against the index. Raises CheckpointError."""
    headers = [read_header(file) for file in find_files(directory)]
    if headers[0].file.name != SINGLE_FILE:
        found = {name: header.file.name for header in headers for name in header.tensors}
        for name, file in _weight_map(directory / INDEX_FILE).items():
            if found.get(name) != file:
                raise CheckpointError(directory / file, f"tensor {name} is missing", "download the checkpoint again")
    return headers


def read_header(file: Path) -> Header:
    """Raises CheckpointError for what is no safetensors file or a truncated one, with expected and actual bytes."""
    again = "download or copy the file again"
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > _MOST_HEADER_BYTES:
            raise CheckpointError(file, f"not a safetensors file ({size:,} bytes)", again)
        raw = stream.read(length)
    if len(raw) < length:
        raise CheckpointError(
            file, f"truncated: its header alone needs {8 + length:,} bytes, the file has {size:,}", again
        )
    try:
        entries = json.loads(raw)
        entries.pop("__metadata__", None)
        tensors = {name: TensorEntry(file, entry["dtype"], tuple(entry["shape"])) for name, entry in entries.items()}
        spans = {name: tuple(entry["data_offsets"]) for name, entry in entries.items()}
        expected = 8 + length + max((end for _, end in spans.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(file, f"its safetensors header is damaged ({error})", again) from error
    if size != expected:
        kind = "truncated" if size < expected else "too long"
        raise CheckpointError(file, f"{kind}: expected {expected:,} bytes, the file has {size:,}", again)
    for name, entry in tensors.items():
        bits, (start, end) = _ITEM_BITS.get(entry.dtype), spans[name]
        if bits is not None and math.prod(entry.shape) * bits != (end - start) * 8:
            raise CheckpointError(file, f"its header contradicts itself at tensor {name}", again)
    return Header(file, size, raw, tensors)


def _weight_map(index: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(index.read_bytes())["weight_map"]
        if not isinstance(weight_map, dict) or not weight_map:
            raise TypeError("weight_map is empty")
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(index, f"not a safetensors index ({error})", "download it again") from error
    return weight_map
