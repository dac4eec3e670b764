"""Prompts of six kinds, as far as their sources are there, for measurements of speculation."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import moespac
from moespac.configs.quickstart.training.data import load

HERE = Path(__file__).parent
DATA = Path(moespac.__file__).resolve().parent.parent / "shared" / "data"
"""Texts and prompts made by others."""
HELD_OUT = ("thealgorithms_python", "eips", "state_union")
"""Corpora whose held-out parts the bundled models have not seen: code, specifications, speeches."""
PROMPTS = ("humaneval.jsonl.gz", "cnn_dm_80.jsonl", "gsm8k_test.jsonl")
"""Functions to write, articles to summarise, sums in words."""
CHARACTERS = 450
"""Of a prompt: some 100 to 200 tokens of the bundled models."""


def families(count: int, data: Path = DATA) -> dict[str, list[str]]:
    """By name `count` different prompts each; where `data` is absent, of the texts that come with the project only."""
    found = {}
    for corpus in load(_present(data / "corpora", [f"{name}.txt.xz" for name in HELD_OUT])):
        found[corpus.name] = _spread(list(_pieces("\n".join(corpus.held_out))), count)
    for file in _present(data / "prompts", PROMPTS):
        found[file.name.split(".")[0]] = _spread([text[:CHARACTERS] for text in _texts(file)], count)
    if not found:
        own = (HERE.parent / "data" / "held_out.txt").read_text(encoding="utf-8")
        found["held_out"] = _spread(list(_pieces(own)), count)
    short = [name for name, prompts in found.items() if len(set(prompts)) < count]
    if short:
        raise SystemExit(f"{', '.join(short)}: fewer than {count} different prompts; ask for fewer with --pairs")
    return found


def _present(folder: Path, names: Sequence[str]) -> list[Path]:
    return [folder / name for name in names if (folder / name).exists()]


def _texts(file: Path) -> Iterator[str]:
    raw = file.read_bytes()
    for line in (gzip.decompress(raw) if file.suffix == ".gz" else raw).decode("utf-8").splitlines():
        entry = json.loads(line)
        yield entry["turns"][0] if "turns" in entry else entry.get("prompt") or entry["question"]


def _pieces(text: str) -> Iterator[str]:
    """Consecutive pieces that begin at a line's start."""
    start = 0
    while start + CHARACTERS < len(text):
        yield text[start : start + CHARACTERS]
        start = text.find("\n", start + CHARACTERS) + 1 or len(text)


def _spread(texts: list[str], count: int) -> list[str]:
    """`count` of them, evenly over the whole."""
    return [texts[i * len(texts) // count] for i in range(min(count, len(texts)))]
