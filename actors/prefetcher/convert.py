"""From a checkpoint to an expert store, expert by expert, all or nothing."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import xxhash
from safetensors import SafetensorError

from ...errors import UserError
from ...kernels.layout import FORMATS, GROUP_SIZES, SCALE_DTYPES, ExpertLayout
from ..core import ExpertKey
from .checkpoint import Checkpoint, CheckpointError, open_checkpoint, source_fingerprint
from .expert_blocks import Deviation, NotRepresentable, block_pieces
from .journal import JOURNAL_FILE, Done, Journal, claims, verified, write_all
from .partial import clear, growing, put_in_place, sync_directory
from .store import ExpertStore, StoreError
from .store_format import (
    EXPERTS_FILE,
    MANIFEST_FILE,
    VERSION,
    Manifest,
    OtherVersion,
    build_header,
    canonical,
    digest,
    stride_of,
)

__all__ = ["Conversion", "Progress", "UnknownFormat", "convert", "ensure_store", "format_called", "store_path_for"]

ALIASES = {"int4": "int4-g32"}

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all), in the format written."""


class UnknownFormat(UserError, ValueError):
    """A format or a type of scales that no kernel knows."""


@dataclass(frozen=True)
class Conversion:
    """What a conversion did."""

    layout: ExpertLayout
    """As stored."""
    source_format: str
    experts: int
    taken_over: int
    """Of the experts, those that an earlier conversion, ended half-way, had done."""
    weight_errors: dict[int, float]
    """By layer: root mean square of the weights' change over that of the weights, from a sample of rows; 0 where
    nothing was to be changed."""


def convert(
    checkpoint: Path | str,
    store: Path | str,
    progress: Progress | None = None,
    format: str | None = None,
    scale_dtype: str = "float16",
) -> Conversion:
    """Writes the routed experts of `checkpoint` to the directory `store`, replacing a store that is there.

    `format`: None keeps the checkpoint's; else float32, bfloat16 or float16 (rounded to nearest where it has fewer
    bits), int8, int4-g32 (or int4), int4-g128. `scale_dtype`: of int4's scales, float16 or bfloat16.

    Memory stays bounded by one expert and some rows of it. The store grows beside its place and is renamed when it is
    complete and on disk, so a crash leaves the old one or none. A conversion that is killed or interrupted leaves what
    it did, and the next one of the same checkpoint to the same place and format goes on from there; one that fails
    leaves nothing. Raises CheckpointError for the source, StoreError for the target, UnknownFormat.
    """
    format, scale_dtype = format_called(format), _scales_called(scale_dtype)
    source, target = open_checkpoint(checkpoint), Path(store).absolute()
    with growing(target) as partial:
        return _write(source, _stored(source.layout, format, scale_dtype), partial, target, progress)


def format_called(name: str | None) -> str | None:
    """The format of that name or alias; None stays None, the checkpoint's own. Raises UnknownFormat."""
    if name is None or name in FORMATS:
        return name
    if name not in ALIASES:
        raise UnknownFormat(f"no expert format {name!r}: choose one of {', '.join((*FORMATS, *ALIASES))}")
    return ALIASES[name]


def store_path_for(
    checkpoint: Path | str,
    configured: Path | str | None,
    format: str | None = None,
    scale_dtype: str = "float16",
) -> Path:
    """Where the store of `checkpoint` is: as configured, else in the user's cache, named by model, fingerprint, format.

    Raises CheckpointError, UnknownFormat.
    """
    format, scale_dtype = format_called(format), _scales_called(scale_dtype)
    if configured is not None:
        return Path(configured).expanduser().absolute()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = [Path(checkpoint).resolve().name, source_fingerprint(checkpoint)[:16]]
    if format is not None and format != open_checkpoint(checkpoint).layout.format:
        name += [format, scale_dtype] if format in GROUP_SIZES else [format]
    return cache / "moespac" / "stores" / "-".join(name)


def ensure_store(
    checkpoint: Path | str,
    configured: Path | str | None = None,
    progress: Progress | None = None,
    format: str | None = None,
    scale_dtype: str = "float16",
) -> Path:
    """Path of an intact store of `checkpoint` in the format asked for (see `convert`), converted now if need be.

    It is where there is none, or one made from other files or in another format; in the cache also where there is one
    of another version. Raises what `convert` does, and StoreCorrupt for a damaged store: a disk that flips bits is
    something to know of, not to write over.
    """
    path = store_path_for(checkpoint, configured, format, scale_dtype)
    format, fingerprint = format_called(format), source_fingerprint(checkpoint)

    def made() -> bool:
        return _is_made(path, fingerprint, format, scale_dtype, cached=configured is None)

    if not made():
        source = open_checkpoint(checkpoint)
        with growing(path) as partial:
            if not made():  # another process may have converted while this one waited
                _write(source, _stored(source.layout, format, scale_dtype), partial, path, progress)
    return path


def _scales_called(name: str) -> str:
    if name not in SCALE_DTYPES:
        raise UnknownFormat(f"no type of scales {name!r}: choose one of {', '.join(SCALE_DTYPES)}")
    return name


def _stored(source: ExpertLayout, format: str | None, scale_dtype: str) -> ExpertLayout:
    """The layout to write. Without int4 there is no choice of scales: equal weights must have equal layouts."""
    return source.stored_as(format or source.format, scale_dtype if format in GROUP_SIZES else source.scale_dtype)


def _is_made(path: Path, fingerprint: str, format: str | None, scale_dtype: str, cached: bool) -> bool:
    if not (path / MANIFEST_FILE).exists():
        return False
    try:
        store = ExpertStore.open(path)
    except OtherVersion:
        if cached:
            return False
        raise
    store.close()
    manifest = store.manifest
    wanted = _stored(manifest.layout, format or manifest.source_format, scale_dtype)
    return manifest.source_fingerprint == fingerprint and manifest.layout == wanted


def _write(
    source: Checkpoint, layout: ExpertLayout, partial: Path, store: Path, progress: Progress | None
) -> Conversion:
    if store.exists() and not (store / MANIFEST_FILE).exists() and (not store.is_dir() or any(store.iterdir())):
        raise StoreError(store, "exists and is no expert store", "choose another path")
    report = progress or (lambda done, total: None)
    header = build_header(source.shape, layout, source.fingerprint)
    identity = digest(canonical([VERSION, source.fingerprint, repr(layout), digest(header)]))
    keys, stride, size = source.shape.keys(), stride_of(layout), layout.expert_bytes
    claimed = claims(partial, identity)
    if not claimed:
        clear(partial)
    done: dict[int, Done] = {}
    report(0, len(keys) * size)
    for kept in verified(partial / EXPERTS_FILE, len(header), stride, size, claimed):
        done[kept.index] = kept
        report(len(done) * size, len(keys) * size)
    taken_over = len(done)
    fd = os.open(partial / EXPERTS_FILE, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        # Takes the space now: a full disk shows before the work, not after it. What is not written stays zero.
        os.posix_fallocate(fd, 0, len(header) + len(keys) * stride)
        write_all(fd, memoryview(header), 0)
        journal = Journal(partial, fd, identity, done.values())
        try:
            for index, key in enumerate(keys):
                if index not in done:
                    done[index] = _write_expert(source, layout, key, fd, len(header) + index * stride, index)
                    journal.add(done[index], size)
                    report(len(done) * size, len(keys) * size)
            journal.finish()
        except KeyboardInterrupt:
            journal.finish()
            raise
        finally:
            journal.close()
        os.fsync(fd)
    finally:
        os.close(fd)
    manifest = Manifest(
        model_name=source.name,
        model_type=source.model_type,
        source_fingerprint=source.fingerprint,
        source_format=source.layout.format,
        shape=replace(source.shape, expert_bytes=size),
        layout=layout,
        data_offset=len(header),
        header_checksum=digest(header),
        checksums=tuple(done[index].checksum for index in range(len(keys))),
    )
    with (partial / MANIFEST_FILE).open("wb") as stream:
        stream.write(manifest.to_json())
        stream.flush()
        os.fsync(stream.fileno())
    sync_directory(partial)
    (partial / JOURNAL_FILE).unlink()
    put_in_place(partial, store)
    return Conversion(layout, source.layout.format, len(keys), taken_over, _weight_errors(source, done))


def _write_expert(source: Checkpoint, layout: ExpertLayout, key: ExpertKey, fd: int, at: int, index: int) -> Done:
    """Writes one expert's block to `at` in the file `fd`."""
    state, deviation = xxhash.xxh3_64(), Deviation()
    try:
        parts = source.expert(key)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            source.path, f"layer {key.layer}, expert {key.expert}: cannot be read ({error})", "restore the file"
        ) from error
    try:
        for piece in block_pieces(layout, parts, deviation):
            state.update(piece)
            write_all(fd, memoryview(piece), at)
            at += piece.size
    except NotRepresentable as error:
        raise CheckpointError(
            source.path, f"layer {key.layer}, expert {key.expert}: {error}", "or choose another format of experts"
        ) from error
    return Done(index, state.intdigest(), deviation.squared_error, deviation.squared_weights)


def _weight_errors(source: Checkpoint, done: Mapping[int, Done]) -> dict[int, float]:
    layers = {layer: Deviation() for layer in source.shape.layer_ids}
    for index, key in enumerate(source.shape.keys()):
        layers[key.layer].squared_error += done[index].squared_error
        layers[key.layer].squared_weights += done[index].squared_weights
    return {layer: deviation.relative for layer, deviation in layers.items()}
