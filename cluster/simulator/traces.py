"""Router traces: which experts a model chose, token by token.

An npz holds `ids` uint8 [tokens, layers, k], `seq_offsets` int64 [n + 1], `n_experts`, and may hold `seq_names` and
`layer_ids`. Beside it `NAME.meta.jsonl.gz` may give, one line a sequence, `full_text_tokens` (prompt and generated
token strings), `first_pos` (index of the token whose routing is row 0) and `repetition` (a looping generation).
"""

from __future__ import annotations

import gzip
import json
import zipfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import UserError


class BadTrace(UserError, ValueError):
    """A trace that cannot be replayed."""


@dataclass(frozen=True)
class Sequence:
    """One generation."""

    name: str
    ids: np.ndarray
    """int64 [tokens, layers, k]."""
    token_ids: tuple[int, ...]
    """Of the same tokens; numbers stand for strings, alike in all sequences of the file; empty where not known."""
    prompt_ids: tuple[int, ...]
    """Tokens before them."""
    repetition: bool


@dataclass(frozen=True)
class Trace:
    """All sequences of one file."""

    name: str
    layer_ids: tuple[int, ...]
    n_experts: int
    top_k: int
    sequences: tuple[Sequence, ...]

    @property
    def tokens(self) -> int:
        return sum(len(sequence.ids) for sequence in self.sequences)


def read_trace(path: Path, vocabulary: dict[str, int] | None = None) -> Trace:
    """Reads a trace. Raises BadTrace naming the file, what is wrong with it and what it should be.

    `vocabulary`: token ids by string, extended by new strings, so that several traces share their ids.
    """
    arrays = _arrays(path)
    for name in ("ids", "seq_offsets", "n_experts"):
        if name not in arrays:
            raise BadTrace(f"{path}: holds no array {name!r}; expected ids, seq_offsets and n_experts")
    ids, offsets, n_experts = arrays["ids"], arrays["seq_offsets"], int(arrays["n_experts"])
    if ids.ndim != 3 or not ids.size or ids.dtype.kind not in "ui":
        raise BadTrace(f"{path}: ids is {ids.dtype} {ids.shape}; expected integers [tokens, layers, k], not empty")
    if ids.min() < 0 or ids.max() >= n_experts:
        raise BadTrace(f"{path}: ids holds {ids.min()}..{ids.max()}; expected experts 0..{n_experts - 1}")
    rising = offsets.ndim == 1 and len(offsets) > 1 and (np.diff(offsets) >= 0).all()
    if not rising or offsets[0] != 0 or offsets[-1] != len(ids):
        raise BadTrace(f"{path}: seq_offsets must rise from 0 to {len(ids)}, the number of tokens")
    layer_ids = arrays.get("layer_ids", np.arange(ids.shape[1]))
    if layer_ids.shape != (ids.shape[1],):
        raise BadTrace(f"{path}: layer_ids has shape {layer_ids.shape}; expected one for each of {ids.shape[1]} layers")
    names = arrays.get("seq_names", np.arange(len(offsets) - 1).astype(str))
    texts = _texts(path, len(offsets) - 1)
    vocabulary = {} if vocabulary is None else vocabulary
    sequences = []
    for i, (start, end) in enumerate(pairwise(offsets)):
        prompt, tokens = _token_ids(texts[i], int(end - start), vocabulary) if texts else ((), ())
        looping = bool(texts and texts[i].get("repetition"))
        sequences.append(Sequence(str(names[i]), ids[start:end].astype(np.int64), tokens, prompt, looping))
    return Trace(path.stem, tuple(map(int, layer_ids)), n_experts, ids.shape[2], tuple(sequences))


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise BadTrace(f"{path}: there is no such file; check the path") from None
    except (OSError, ValueError, zipfile.BadZipFile, AttributeError) as error:
        raise BadTrace(f"{path}: cannot be read as an npz file ({error}); give a router trace") from None


def _texts(path: Path, sequences: int) -> list[dict[str, Any]]:
    file = path.with_name(path.stem + ".meta.jsonl.gz")
    if not file.exists():
        return []
    try:
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            texts = [json.loads(line) for line in lines]
    except (OSError, EOFError, ValueError) as error:
        raise BadTrace(f"{file}: cannot be read as gzipped JSON lines ({error}); remove or mend it") from None
    if len(texts) != sequences:
        raise BadTrace(f"{file}: has {len(texts)} lines; expected one for each of the {sequences} sequences")
    return texts


Ids = tuple[int, ...]


def _token_ids(text: dict[str, Any], tokens: int, vocabulary: dict[str, int]) -> tuple[Ids, Ids]:
    """Ids of the prompt and of the tokens that have routing; empty where the text does not fit the trace."""
    strings, first = text.get("full_text_tokens"), text.get("first_pos")
    if not isinstance(strings, list) or not isinstance(first, int) or not 0 <= first <= len(strings) - tokens:
        return (), ()
    numbers = tuple(vocabulary.setdefault(str(string), len(vocabulary)) for string in strings)
    return numbers[:first], numbers[first : first + tokens]
