"""What experts and transfers were measured to cost, kept beside the expert store: the next start goes on from it.

`moespac profile` writes it, and every service now and then and at its end. An actor's samples are taken up only where
everything they depend on is as it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import structlog
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError

from .core import CostSample
from .cost_conditions import Conditions
from .replaced_file import replace_file

log = structlog.get_logger()

MAX_BYTES = 16 << 20
"""Largest file that is read."""
SUFFIX = ".costs.json"

_Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Measured(_Section):
    """One actor's samples and what they depend on."""

    conditions: dict[str, str]
    samples: tuple[tuple[PositiveInt, NonNegativeInt, _Seconds, _Seconds, _Seconds], ...]
    """Oldest first: experts, pairs, seconds, seconds waited for weights, seconds of the call's way."""


class Saved(_Section):
    """The file's content."""

    version: Literal[1] = 1
    saved: AwareDatetime
    """When it was written."""
    actors: dict[str, Measured]

    def samples(self, actor: str) -> list[CostSample]:
        """Of one that is in `actors`."""
        return [CostSample(actor, *sample) for sample in self.actors[actor].samples]


class CostFileUnreadable(ValueError):
    """The file is damaged, or of another version; the message says where."""


class CostFile:
    """The one file of a store."""

    def __init__(self, store: Path) -> None:
        self.path = store.with_name(store.name + SUFFIX)

    def read(self) -> Saved | None:
        """What was saved last; None where nothing was. Raises CostFileUnreadable."""
        try:
            with self.path.open("rb") as file:
                content = file.read(MAX_BYTES + 1)
            if len(content) > MAX_BYTES:
                raise CostFileUnreadable(f"{self.path}: larger than {MAX_BYTES} bytes")
            return Saved.model_validate_json(content)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise CostFileUnreadable(f"{self.path}: {error.strerror}") from error
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            at = ".".join(map(str, first["loc"]))
            raise CostFileUnreadable(f"{self.path}: {at + ': ' if at else ''}{first['msg']}") from error

    def described(self) -> tuple[str, str]:
        """For people: of when it is, and of which actors, or why there is none."""
        try:
            saved = self.read()
        except CostFileUnreadable as error:
            return "not readable", str(error)
        if saved is None:
            return "none", "the first start begins with usual ones; or run `moespac profile` before"
        return f"of {saved.saved:%Y-%m-%d %H:%M} UTC", ", ".join(sorted(saved.actors))

    def load(self, conditions: Conditions) -> list[CostSample]:
        """Samples of the actors whose `conditions` are those they were measured under; the log says which are not."""
        try:
            saved = self.read()
        except CostFileUnreadable as error:
            log.warning("costs start from usual ones: the file is refused", reason=str(error))
            return []
        if saved is None:
            return []
        samples: list[CostSample] = []
        for actor, here in conditions.items():
            measured = saved.actors.get(actor)
            if measured is None:
                continue
            if measured.conditions != here:
                changed = _differences(measured.conditions, here)
                log.warning("measured costs are of something else", actor=actor, **changed)
                continue
            samples += saved.samples(actor)
        log.info("costs start from measured ones", path=str(self.path), actors=sorted({s.actor for s in samples}))
        return samples

    def save(self, conditions: Conditions, samples: Iterable[CostSample]) -> None:
        """Puts `samples` in the place of those of the same actors, in one step; others stay.

        Samples of actors without `conditions` are left out. What cannot be written is logged and left.
        """
        fresh: dict[str, list[tuple[int, int, float, float, float]]] = {}
        for sample in samples:
            if sample.actor in conditions:
                row = (sample.experts, sample.pairs, sample.seconds, sample.waited_s, sample.called_s)
                fresh.setdefault(sample.actor, []).append(row)
        if not fresh:
            return
        try:
            before = self.read()
        except CostFileUnreadable:
            before = None  # it is written anew
        actors = dict(before.actors) if before else {}
        for actor, rows in fresh.items():
            actors[actor] = Measured(conditions=conditions[actor], samples=tuple(rows))
        try:
            saved = Saved(saved=datetime.now(UTC), actors=actors)
            replace_file(self.path, lambda file: file.write(saved.model_dump_json().encode()))
        except OSError as error:
            log.warning("measured costs not saved", path=str(self.path), reason=str(error))


def _differences(then: Mapping[str, str], now: Mapping[str, str]) -> dict[str, str]:
    names = sorted(name for name in then.keys() | now.keys() if then.get(name) != now.get(name))
    return {name: f"then {then.get(name, 'unknown')}, now {now.get(name, 'unknown')}" for name in names}
