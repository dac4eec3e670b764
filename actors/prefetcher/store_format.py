"""How an expert store lies on disk.

A store is a directory of two files:

`experts.safetensors`
    Valid safetensors. The header is padded with spaces so that the data starts on a page; each expert is one
    contiguous, page-aligned range of `stride` bytes that holds its parts, `layers.<L>.experts.<E>.<part>`, where
    `ExpertLayout.parts` says. What is left between parts (64-byte alignment) and after them (pages) are zeros, called
    `pad.<n>`: safetensors allows no holes.
`manifest.json`
    Format version, model, source, shape, layout, a checksum of each expert and of the header, and the store's
    fingerprint; guarded by a checksum of its own.

An expert's checksum covers its block without the zeros that fill the last page; nobody reads those as weights.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import xxhash

from ...errors import UserError
from ...kernels.layout import ExpertLayout
from ..core import ExpertKey, ModelShape

PAGE = 4096
FORMAT = "moespac-experts"
VERSION = 2
EXPERTS_FILE = "experts.safetensors"
MANIFEST_FILE = "manifest.json"
_SAFETENSORS_DTYPES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int8: "I8",
    torch.uint8: "U8",
}


class StoreError(UserError, RuntimeError):
    """A store cannot be used or written. Names the file, what is wrong with it and what to do."""

    def __init__(self, file: Path, what: str, remedy: str) -> None:
        super().__init__(f"{file}: {what}; {remedy}")
        self.file, self.what, self.remedy = file, what, remedy

    def __reduce__(self):
        return type(self), (self.file, self.what, self.remedy)  # survives a process boundary


class StoreCorrupt(StoreError):
    """What is on disk is not what was written. `key` is the expert concerned, None for header or manifest."""

    def __init__(self, file: Path, what: str, key: ExpertKey | None = None) -> None:
        where = "" if key is None else f"layer {key.layer}, expert {key.expert}: "
        super().__init__(file, where + what, "delete the store and convert the checkpoint again")
        self.key, self._plain = key, what

    def __reduce__(self):
        return type(self), (self.file, self._plain, self.key)


class OtherVersion(StoreError):
    """An intact store that another version of this program made."""


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` says. `checksums`: xxh3-64 of each expert's block, in the order of `shape.keys()`."""

    model_name: str
    model_type: str
    source_fingerprint: str
    source_format: str
    """Of the checkpoint's experts."""
    shape: ModelShape
    layout: ExpertLayout
    data_offset: int
    """Bytes before the first expert: the padded safetensors header."""
    header_checksum: str
    checksums: tuple[int, ...]

    @property
    def stride(self) -> int:
        """Bytes from one expert to the next."""
        return stride_of(self.layout)

    @property
    def file_bytes(self) -> int:
        """Size of `experts.safetensors`."""
        return self.data_offset + len(self.checksums) * self.stride

    @cached_property
    def fingerprint(self) -> str:
        """Identity of the stored weights: the same whatever files they came from, and wherever they lie."""
        body = self._body()
        return digest(
            canonical({name: body[name] for name in ("format", "version", "shape", "layout", "experts_xxh3")})
        )

    def to_json(self) -> bytes:
        body = self._body() | {"fingerprint": self.fingerprint}
        body["checksum"] = digest(canonical(body))
        return (json.dumps(body, indent=1) + "\n").encode()

    def _body(self) -> dict[str, Any]:
        shape = self.shape
        return {
            "format": FORMAT,
            "version": VERSION,
            "model": {"name": self.model_name, "type": self.model_type},
            "source": {"fingerprint": self.source_fingerprint, "format": self.source_format},
            "shape": {
                "layer_ids": list(shape.layer_ids),
                "n_experts": shape.n_experts,
                "top_k": shape.top_k,
            },
            "layout": asdict(self.layout),
            "parts": [
                {"name": p.name, "dtype": _SAFETENSORS_DTYPES[p.dtype], "shape": list(p.shape), "offset": p.offset}
                for p in self.layout.parts
            ],
            "data_offset": self.data_offset,
            "stride": self.stride,
            "header_xxh3": self.header_checksum,
            "experts_xxh3": [f"{checksum:016x}" for checksum in self.checksums],
        }

    @classmethod
    def from_json(cls, file: Path, text: bytes) -> Manifest:
        """Raises OtherVersion for a store of another version, StoreCorrupt when the content is damaged."""
        try:
            body = json.loads(text)
            checksum = body.pop("checksum")
            found, version = body["format"], body["version"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreCorrupt(file, f"not a manifest ({error})") from error
        if checksum != digest(canonical(body)):
            raise StoreCorrupt(file, "manifest checksum differs")
        if (found, version) != (FORMAT, VERSION):
            raise OtherVersion(
                file,
                f"format {found} version {version}, not {FORMAT} version {VERSION}",
                "convert the checkpoint again",
            )
        try:
            layout = ExpertLayout(**body["layout"])
            manifest = cls(
                model_name=body["model"]["name"],
                model_type=body["model"]["type"],
                source_fingerprint=body["source"]["fingerprint"],
                source_format=body["source"]["format"],
                shape=ModelShape(
                    layer_ids=tuple(body["shape"]["layer_ids"]),
                    n_experts=body["shape"]["n_experts"],
                    top_k=body["shape"]["top_k"],
                    hidden_size=layout.hidden_size,
                    intermediate_size=layout.intermediate_size,
                    expert_bytes=layout.expert_bytes,
                ),
                layout=layout,
                data_offset=body["data_offset"],
                header_checksum=body["header_xxh3"],
                checksums=tuple(int(text, 16) for text in body["experts_xxh3"]),
            )
            again = manifest.to_json()
        except (ValueError, KeyError, TypeError) as error:
            raise StoreCorrupt(file, f"not a manifest ({error!r})") from error
        if len(manifest.checksums) != len(manifest.shape.keys()) or again != text:
            raise StoreCorrupt(file, "manifest contradicts itself")
        return manifest


def digest(data: bytes) -> str:
    return xxhash.xxh3_128_hexdigest(data)


def canonical(body: Any) -> bytes:
    return json.dumps(body, sort_keys=True, separators=(",", ":")).encode()


def stride_of(layout: ExpertLayout) -> int:
    return -(-layout.expert_bytes // PAGE) * PAGE


def build_header(shape: ModelShape, layout: ExpertLayout, source_fingerprint: str) -> bytes:
    """The safetensors header, length field included, padded to whole pages."""
    entries: dict[str, Any] = {
        "__metadata__": {"format": "pt", "store": f"{FORMAT}-{VERSION}", "source_fingerprint": source_fingerprint}
    }
    stride, pads = stride_of(layout), 0
    for index, key in enumerate(shape.keys()):
        start = index * stride
        ends = [part.offset for part in layout.parts[1:]] + [stride]
        for part, next_start in zip(layout.parts, ends, strict=True):
            at, end = start + part.offset, start + part.offset + part.nbytes
            name = f"layers.{key.layer}.experts.{key.expert}.{part.name}"
            entries[name] = _entry(_SAFETENSORS_DTYPES[part.dtype], part.shape, at, end)
            if end < start + next_start:
                entries[f"pad.{pads}"] = _entry("U8", (start + next_start - end,), end, start + next_start)
                pads += 1
    text = json.dumps(entries, separators=(",", ":")).encode()
    length = -(-(8 + len(text)) // PAGE) * PAGE - 8
    return length.to_bytes(8, "little") + text.ljust(length, b" ")


def _entry(dtype: str, shape: tuple[int, ...], start: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
