"""A YAML file as plain values, with the line of every key; keys given twice, which loaders accept, are refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .errors import ConfigError, Problem

_PLAIN = (yaml.resolver.Resolver.DEFAULT_MAPPING_TAG, yaml.resolver.Resolver.DEFAULT_SEQUENCE_TAG)

KeyPath = tuple[str | int, ...]


@dataclass(frozen=True)
class Source:
    """The file's values and where they stand."""

    file: Path
    values: Any
    lines: Mapping[KeyPath, int]
    """Line (from 1) of each key or list item."""

    def line(self, path: KeyPath) -> int | None:
        """Line of `path`, or of the nearest thing that encloses it."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path)

    def at(self, path: KeyPath) -> Any:
        """The value at `path`; None where there is none."""
        value = self.values
        for part in path:
            try:
                value = value[part]
            except (KeyError, IndexError, TypeError):
                return None
        return value


def dotted(path: KeyPath) -> str:
    """`("devices", 0, "name")` -> `devices[0].name`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def read_source(file: Path) -> Source:
    """Reads `file`; raises `ConfigError` where it is not readable, not YAML, or says a key twice."""
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise _error(file, "there is no such file", "check the path") from None
    except IsADirectoryError:
        raise _error(file, "is a folder", "name the YAML file inside it") from None
    except OSError as error:
        raise _error(file, f"cannot be read: {error.strerror}", "make it readable for this user") from None
    except UnicodeDecodeError as error:
        raise _error(file, f"is not UTF-8 text (byte {error.start})", "save it as UTF-8") from None
    loader = None
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            raise _error(file, "is empty", "start from a shipped one, such as configs/cpu-and-disk.yaml")
        walk = _Walk(loader)
        values = walk.value(node, ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else None
        problem = f"is not valid YAML: {error.problem or error.context}"
        raise _error(file, problem, "check indentation, colons and quotes here", line) from None
    except yaml.YAMLError as error:
        raise _error(file, f"is not valid YAML: {error}", "remove what YAML does not allow") from None
    finally:
        if loader is not None:
            loader.dispose()
    if walk.problems:
        raise ConfigError(file, walk.problems)
    return Source(file, values, walk.lines)


def _error(file: Path, problem: str, remedy: str, line: int | None = None) -> ConfigError:
    return ConfigError(file, [Problem("", "", problem, remedy, line)])


class _Walk:
    """Turns nodes into values and remembers lines."""

    def __init__(self, loader: yaml.SafeLoader) -> None:
        self.loader = loader
        self.lines: dict[KeyPath, int] = {(): 1}
        self.problems: list[Problem] = []
        self._open: set[int] = set()

    def value(self, node: yaml.Node, path: KeyPath) -> Any:
        if id(node) in self._open:
            raise yaml.MarkedYAMLError(problem="an alias that contains itself", problem_mark=node.start_mark)
        if not isinstance(node, yaml.ScalarNode) and node.tag not in _PLAIN:
            raise yaml.MarkedYAMLError(problem=f"the tag {node.tag}", problem_mark=node.start_mark)
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, path)
            if isinstance(node, yaml.SequenceNode):
                return [self._item(child, (*path, i)) for i, child in enumerate(node.value)]
            return self._scalar(node)
        finally:
            self._open.discard(id(node))

    def _item(self, node: yaml.Node, path: KeyPath) -> Any:
        self.lines[path] = node.start_mark.line + 1
        return self.value(node, path)

    def _scalar(self, node: yaml.Node) -> Any:
        try:
            return self.loader.construct_object(node)
        except ValueError as error:  # a date or number of the right form but with no meaning
            raise yaml.MarkedYAMLError(problem=str(error), problem_mark=node.start_mark) from None

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                mark = key_node.start_mark
                raise yaml.MarkedYAMLError(problem="a key that is no plain word", problem_mark=mark)
            key = str(key_node.value)
            here = (*path, key)
            if key in values:
                first = self.lines[here]
                twice = f"is given twice, first in line {first}"
                self.problems.append(Problem(dotted(here), "", twice, "remove one of the two", line))
                continue
            self.lines[here] = line
            values[key] = self.value(value_node, here)
        return values
