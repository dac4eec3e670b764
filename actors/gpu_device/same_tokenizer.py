"""Draft and target must mean the same by a token id: checked on their tokenizer files, without loading models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ...errors import UserError


class TokenizerMismatch(UserError, ValueError):
    """The draft's tokens are not the target's."""


def check_same_tokenizer(target_dir: Path, draft_dir: Path) -> None:
    """Raises TokenizerMismatch unless both directories' tokenizer.json give every token the same id.

    Two differences are none: embedding tables padded to different lengths, as padded ids are no tokens, and a tail of
    tokens, above all that the other has, in one of the two.
    """
    target, draft = _without_tail(_tokens(target_dir), _tokens(draft_dir))
    for what in ("vocabulary", "merges", "special tokens"):
        if target[what] != draft[what]:
            raise TokenizerMismatch(
                f"the draft {draft_dir} has another tokenizer than the target {target_dir}: {what} differ"
                f"{_example(target[what], draft[what])}; use a draft made with the target's tokenizer, "
                "or leave `draft` out"
            )


def _tokens(directory: Path) -> dict[str, Any]:
    file = directory / "tokenizer.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise TokenizerMismatch(f"{file} is missing: a checkpoint needs its tokenizer.json") from error
    except ValueError as error:
        raise TokenizerMismatch(f"{file} is damaged ({error}): fetch it again") from error
    model = content.get("model", {})
    vocabulary = model.get("vocab", {})
    if isinstance(vocabulary, list):
        # Unigram models list [token, score]; the id is the position.
        vocabulary = {entry[0]: position for position, entry in enumerate(vocabulary)}
    # Older files write a merge as "a b", newer ones as ["a", "b"].
    merges = [m.split(" ") if isinstance(m, str) else list(m) for m in model.get("merges", [])]
    special = {token["content"]: token["id"] for token in content.get("added_tokens", [])}
    return {"vocabulary": vocabulary, "merges": merges, "special tokens": special}


def _without_tail(target: dict[str, Any], draft: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both without the tokens above the smaller one's largest id."""
    kinds = ("vocabulary", "special tokens")
    last = min(max((i for kind in kinds for i in one[kind].values()), default=-1) for one in (target, draft))
    return tuple(
        one | {kind: {token: i for token, i in one[kind].items() if i <= last} for kind in kinds}
        for one in (target, draft)
    )


def _example(target: Any, draft: Any) -> str:
    if isinstance(target, list):
        return f" ({len(target)} against {len(draft)})" if len(target) != len(draft) else ""
    token = next(t for t in [*target, *draft] if target.get(t) != draft.get(t))
    return f" ({token!r} is {target.get(token, 'absent')} in the target, {draft.get(token, 'absent')} in the draft)"
