"""What is wrong with a deployment file, said so that it can be put right: where, what, what instead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError


class Invalid(ValueError):
    """A value a field refuses. Validators raise it without knowing the file; `load` adds file and line."""

    def __init__(self, problem: str, remedy: str, key: tuple[str | int, ...] = ()) -> None:
        """`key`: path below the validated value where the culprit is, () for the value itself."""
        super().__init__(f"{problem}; {remedy}")
        self.problem = problem
        self.remedy = remedy
        self.key = key


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a deployment."""

    key: str
    """Dotted key, `devices[0].expert_memory`; "" for the file as a whole."""
    value: str
    """What was written there, shortened; "" where nothing was."""
    problem: str
    remedy: str
    line: int | None = None
    """Line of the file, from 1; None where no line can be blamed."""

    def __str__(self) -> str:
        where = f"line {self.line}: " if self.line else ""
        what = self.key + (f": {self.value}" if self.value else "") if self.key else self.value
        head = f"{where}{what}".rstrip().rstrip(":")
        body = f"problem: {self.problem}\n  remedy:  {self.remedy}"
        return f"{head}\n  {body}" if head else f"  {body}"


class ConfigError(UserError):
    """A deployment file that cannot be used; carries every problem found in it, first one first.

    `file`, `line`, `key`, `value`, `problem` and `remedy` are those of the first problem.
    """

    def __init__(self, file: Path, problems: Sequence[Problem]) -> None:
        self.file = file
        self.problems = tuple(problems)
        first = self.problems[0]
        self.line = first.line
        self.key = first.key
        self.value = first.value
        self.problem = first.problem
        self.remedy = first.remedy
        super().__init__(self._message())

    def _message(self) -> str:
        count = len(self.problems)
        lines = [f"{self.file}: {count} problem{'s' if count > 1 else ''}"]
        for problem in self.problems:
            lines += ["  " + line for line in str(problem).splitlines()]
        return "\n".join(lines)

    def __reduce__(self):
        # The message is derived from the fields: pickle those, so that the error survives a process boundary.
        return (ConfigError, (self.file, self.problems))
