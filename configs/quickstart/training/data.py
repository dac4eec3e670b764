"""Text files, split into a training part and a held-out part by position alone.

About 2 % of every file is held out, as contiguous blocks spread evenly over the file, so every kind of text is
represented in the held-out part. A paragraph of the held-out part that occurs again in a training part (two editions
of one book, say) is taken out of training: a held-out figure must not measure memory.
"""

import lzma
from dataclasses import dataclass
from pathlib import Path

HELD_OUT_SHARE = 0.02
BLOCK_CHARS = 16_384  # aimed at; a small file gets one shorter block
MAX_BLOCKS = 16
LEAK_CHARS = 200  # shorter paragraphs are licence lines and refrains, which legitimately recur


@dataclass(frozen=True)
class Corpus:
    """One file: ``train`` and ``held_out`` are disjoint contiguous pieces of it, each in file order."""

    name: str
    train: tuple[str, ...]
    held_out: tuple[str, ...]


def read_text(path: Path) -> str:
    """Decode a UTF-8 text file, plain or ``.xz``. Raises ValueError naming a file that is empty or not UTF-8."""
    raw = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"--text {path}: not UTF-8 ({error}); convert the file to UTF-8") from error
    if not text.strip():
        raise ValueError(f"--text {path}: the file holds no text; leave it out")
    return text


def split(text: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Cut ``text`` into (training pieces, held-out pieces); joined in file order they are ``text`` again.

    Cuts fall behind a line end where one is near, so that no piece starts inside a line.
    """
    held_chars = len(text) * HELD_OUT_SHARE
    blocks = min(max(round(held_chars / BLOCK_CHARS), 1), MAX_BLOCKS)
    size = int(held_chars / blocks)
    train, held_out, position = [], [], 0
    for block in range(blocks):
        start = _line_start(text, int(len(text) * (block + 0.5) / blocks) - size // 2)
        end = _line_start(text, start + size)
        train.append(text[position:start])
        held_out.append(text[start:end])
        position = end
    train.append(text[position:])
    return tuple(train), tuple(held_out)


def _line_start(text: str, position: int) -> int:
    newline = text.find("\n", position, position + 400)
    return position if newline < 0 else newline + 1


def _key(paragraph: str) -> str | None:
    """What a paragraph is compared by: its words; None for one too short to count as a leak."""
    words = " ".join(paragraph.split())
    return words if len(words) >= LEAK_CHARS else None


def load(paths: list[Path]) -> list[Corpus]:
    """Read and split every file, then drop from all training parts the paragraphs that any held-out part holds."""
    corpora = [Corpus(path.name.split(".")[0], *split(read_text(path))) for path in paths]
    held = {_key(p) for c in corpora for piece in c.held_out for p in piece.split("\n\n")} - {None}
    return [
        Corpus(
            corpus.name,
            tuple("\n\n".join(p for p in piece.split("\n\n") if _key(p) not in held) for piece in corpus.train),
            corpus.held_out,
        )
        for corpus in corpora
    ]
