"""How an expert store lies on disk.

A store is a directory of two files:

`experts.safetensors`
    Valid safetensors. The header is padded with spaces so that the data starts on a page; each expert is one
    contiguous, page-aligned range of `stride` bytes: `layers.<L>.experts.<E>.gate_up` [2·I, H], then
    `layers.<L>.experts.<E>.down` [H, I], then, where the pages are not filled, `pad.<n>` (safetensors allows no holes).
`manifest.json`
    Format version, model, shape, layout, checksums and fingerprints; guarded by a checksum of its own.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import xxhash

from ...errors import UserError
from ...kernels.layout import STORED_DTYPES, ExpertLayout
from ..core import ExpertKey, ModelShape

PAGE = 4096
FORMAT = "moespac-experts"
VERSION = 1
EXPERTS_FILE = "experts.safetensors"
MANIFEST_FILE = "manifest.json"
SAFETENSORS_DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


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


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` says. `checksums`: xxh3-64 of each expert's payload, in the order of `shape.keys()`."""

    model_name: str
    model_type: str
    source_fingerprint: str
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
        """Identity of the stored weights: the same whatever the store's path or its model is called."""
        body = self._body()
        del body["model"], body["source_fingerprint"]
        return digest(canonical(body))

    def to_json(self) -> bytes:
        body = self._body() | {"fingerprint": self.fingerprint}
        body["checksum"] = digest(canonical(body))
        return (json.dumps(body, indent=1) + "\n").encode()

    def _body(self) -> dict[str, Any]:
        shape, layout = self.shape, self.layout
        return {
            "format": FORMAT,
            "version": VERSION,
            "model": {"name": self.model_name, "type": self.model_type},
            "source_fingerprint": self.source_fingerprint,
            "shape": {
                "layer_ids": list(shape.layer_ids),
                "n_experts": shape.n_experts,
                "top_k": shape.top_k,
            },
            "layout": {
                "hidden_size": layout.hidden_size,
                "intermediate_size": layout.intermediate_size,
                "dtype": layout.dtype,
                "activation": layout.activation,
            },
            "data_offset": self.data_offset,
            "stride": self.stride,
            "header_xxh3": self.header_checksum,
            "experts_xxh3": [f"{checksum:016x}" for checksum in self.checksums],
        }

    @classmethod
    def from_json(cls, file: Path, text: bytes) -> Manifest:
        """Raises StoreError for another format or version, StoreCorrupt when the content is damaged."""
        try:
            body = json.loads(text)
            found, version = body["format"], body["version"]
        except (ValueError, KeyError, TypeError) as error:
            raise StoreCorrupt(file, f"not a manifest ({error})") from error
        if (found, version) != (FORMAT, VERSION):
            raise StoreError(
                file,
                f"format {found} version {version}, not {FORMAT} version {VERSION}",
                "convert the checkpoint again",
            )
        try:
            checksum = body.pop("checksum")
            if checksum != digest(canonical(body)):
                raise StoreCorrupt(file, "manifest checksum differs")
            layout = ExpertLayout(**body["layout"])
            shape = ModelShape(
                layer_ids=tuple(body["shape"]["layer_ids"]),
                n_experts=body["shape"]["n_experts"],
                top_k=body["shape"]["top_k"],
                hidden_size=layout.hidden_size,
                intermediate_size=layout.intermediate_size,
                expert_bytes=layout.expert_bytes,
            )
            manifest = cls(
                model_name=body["model"]["name"],
                model_type=body["model"]["type"],
                source_fingerprint=body["source_fingerprint"],
                shape=shape,
                layout=layout,
                data_offset=body["data_offset"],
                header_checksum=body["header_xxh3"],
                checksums=tuple(int(text, 16) for text in body["experts_xxh3"]),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise StoreCorrupt(file, f"not a manifest ({error!r})") from error
        if len(manifest.checksums) != len(shape.keys()) or manifest.fingerprint != body["fingerprint"]:
            raise StoreCorrupt(file, "manifest contradicts itself")
        return manifest


def digest(data: bytes) -> str:
    return xxhash.xxh3_128_hexdigest(data)


def canonical(body: Any) -> bytes:
    return json.dumps(body, sort_keys=True, separators=(",", ":")).encode()


def stride_of(layout: ExpertLayout) -> int:
    return -(-layout.expert_bytes // PAGE) * PAGE


def build_header(shape: ModelShape, layout: ExpertLayout, fingerprint: str) -> bytes:
    """The safetensors header, length field included, padded to whole pages."""
    dtype, size = SAFETENSORS_DTYPES[layout.dtype], STORED_DTYPES[layout.dtype].itemsize
    hidden, inner = layout.hidden_size, layout.intermediate_size
    gate_up, payload, stride = 2 * inner * hidden * size, layout.expert_bytes, stride_of(layout)
    entries: dict[str, Any] = {
        "__metadata__": {"format": "pt", "store": f"{FORMAT}-{VERSION}", "source_fingerprint": fingerprint}
    }
    for index, key in enumerate(shape.keys()):
        at, name = index * stride, f"layers.{key.layer}.experts.{key.expert}"
        entries[f"{name}.gate_up"] = _entry(dtype, [2 * inner, hidden], at, at + gate_up)
        entries[f"{name}.down"] = _entry(dtype, [hidden, inner], at + gate_up, at + payload)
        if stride > payload:
            entries[f"pad.{index}"] = _entry("U8", [stride - payload], at + payload, at + stride)
    text = json.dumps(entries, separators=(",", ":")).encode()
    length = -(-(8 + len(text)) // PAGE) * PAGE - 8
    return length.to_bytes(8, "little") + text.ljust(length, b" ")


def _entry(dtype: str, shape: list[int], start: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
