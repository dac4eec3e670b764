"""From a YAML file to a `Deployment`, or to one error that names every problem with its line and remedy."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from .errors import ConfigError, Invalid, Problem
from .schema import FOLDER, CpuDeviceConfig, Deployment, GpuDeviceConfig
from .source import KeyPath, Source, dotted, read_source

_KINDS: dict[str, type[BaseModel]] = {"gpu": GpuDeviceConfig, "cpu": CpuDeviceConfig}
_WANTED = {
    "string_type": "text; put quotes around it",
    "int_type": "a whole number without unit or quotes",
    "bool_type": "true or false",
    "tuple_type": "a list, each item starting with a hyphen",
    "list_type": "a list, each item starting with a hyphen",
    "model_type": "a section: its keys on the lines below, indented",
    "model_attributes_type": "a section: its keys on the lines below, indented",
    "dict_type": "a section: its keys on the lines below, indented",
}
_LIMITS = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}


def load_deployment(path: str | Path) -> Deployment:
    """Reads and checks a deployment file; relative paths in it start at its own folder.

    Raises `ConfigError` with every problem that can be found without opening the model.
    """
    file = Path(path)
    source = read_source(file)
    try:
        return Deployment.model_validate(source.values, context={FOLDER: file.resolve().parent})
    except ValidationError as error:
        problems = [_problem(source, dict(e)) for e in _without_echoes(error.errors(include_url=False))]
        raise ConfigError(file, sorted(problems, key=lambda p: p.line or 0)) from None


def key_lines(path: str | Path) -> dict[str, int]:
    """Line of every key of a deployment file, by dotted key: for problems found after it was loaded."""
    return {dotted(key): line for key, line in read_source(Path(path)).lines.items() if key}


def _without_echoes(errors: Sequence[Any]) -> list[Any]:
    """Leaves out that a key is missing where the same section has it misspelt: one mistake, one message."""
    unknown = [e["loc"] for e in errors if e["type"] == "extra_forbidden"]
    misspelt = {
        (*loc[:-1], close)
        for loc in unknown
        for close in _nearest(str(loc[-1]), [str(e["loc"][-1]) for e in errors if e["loc"][:-1] == loc[:-1]])
    }
    return [e for e in errors if e["type"] != "missing" or e["loc"] not in misspelt]


def _nearest(word: str, names: Sequence[str]) -> list[str]:
    return difflib.get_close_matches(word, [n for n in names if n != word], n=1, cutoff=0.5)


def _problem(source: Source, error: dict[str, Any]) -> Problem:
    path = _without_tags(error["loc"])
    context = error.get("ctx") or {}
    kind = error["type"]
    cause = context.get("error")
    if isinstance(cause, Invalid):
        path = (*path, *cause.key)
        return _at(source, path, cause.problem, cause.remedy)
    if kind == "extra_forbidden":
        return _unknown_key(source, path)
    if kind == "missing":
        about = _description(path)
        return _at(source, path, "is missing", f"add {path[-1]}" + (f": {about}" if about else ""))
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        given = source.at(path)
        path = (*path, "kind")
        if not isinstance(given, dict):
            return _at(source, path[:-1], "is not a device", "write keys, starting with kind: gpu or kind: cpu")
        missing = "is missing" if kind == "union_tag_not_found" else "is not a kind of device"
        return _at(source, path, missing, "write kind: gpu or kind: cpu")
    if kind == "literal_error":
        return _at(source, path, "is none of the choices", _choices(source, path, context["expected"]))
    remedy = _description(path) or "see the comments in configs/schema.py"
    if kind in _WANTED:
        return _at(source, path, f"should be {_WANTED[kind]}", remedy)
    for limit, words in _LIMITS.items():
        if limit in context:
            return _at(source, path, f"must be {words} {context[limit]}", remedy)
    return _at(source, path, error["msg"][:1].lower() + error["msg"][1:], remedy)


def _at(source: Source, path: KeyPath, problem: str, remedy: str) -> Problem:
    value = source.at(path)
    text = "" if value is None else repr(value) if not isinstance(value, dict | list) else ""
    if len(text) > 80:
        text = text[:77] + "..."
    return Problem(dotted(path), text, problem, remedy, source.line(path))


def _unknown_key(source: Source, path: KeyPath) -> Problem:
    section = _section(path[:-1], source)
    names = sorted(section.model_fields) if section else []
    close = _nearest(str(path[-1]), names)
    hint = f"did you mean {close[0]}? " if close else ""
    return _at(source, path, "is not a known key", f"{hint}keys here are {', '.join(names)}")


def _choices(source: Source, path: KeyPath, expected: str) -> str:
    names = [name.strip("' ") for name in expected.replace(" or ", ", ").split(",")]
    close = _nearest(str(source.at(path)), names)
    return (f"did you mean {close[0]}? " if close else "") + f"write one of {', '.join(names)}"


def _without_tags(loc: tuple[str | int, ...]) -> KeyPath:
    """Pydantic names the chosen kind after the index (`devices, 0, gpu`); the file has no such level."""
    tagged = len(loc) > 2 and loc[0] == "devices" and loc[2] in _KINDS
    return loc[:2] + loc[3:] if tagged else loc


def _description(path: KeyPath) -> str:
    section = _section(path[:-1], None)
    field = section.model_fields.get(str(path[-1])) if section and path else None
    return field.description or "" if field else ""


def _section(path: KeyPath, source: Source | None) -> type[BaseModel] | None:
    """The model that describes what stands at `path`."""
    model: type[BaseModel] | None = Deployment
    for i, part in enumerate(path):
        if part == "devices" and i == 0:
            continue
        if isinstance(part, int):
            device = source.at(path[: i + 1]) if source else None
            model = _KINDS.get(device.get("kind", "")) if isinstance(device, dict) else GpuDeviceConfig
            continue
        field = model.model_fields.get(part) if model else None
        model = _model_in(field.annotation) if field else None
    return model


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((m for a in get_args(annotation) if (m := _model_in(a))), None)
