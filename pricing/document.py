"""Reading YAML strictly: every scalar stays the text that was written, and every problem is noted, not only the first.

YAML guesses types (``0.008`` becomes a float, ``on`` becomes True, ``010`` becomes 8). Nothing is guessed here: the
reader of a field says what it must be. The same reader takes price snapshots out of JSON, whose scalars are text too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import yaml

from pricing.usage import ImageSize

Tree = Any
"""Text, or a list of trees, or a dict of trees by text."""

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_DECIMAL = re.compile(r"(0|[1-9][0-9]*)(\.[0-9]+)?")
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong in a file. ``key`` is the path of the field, readable; ``severity`` is error or warning."""

    file: str
    key: str
    message: str
    severity: str = "error"

    def __str__(self) -> str:
        return f"{self.file}: {self.key}: {self.message}" if self.key else f"{self.file}: {self.message}"


class PricingError(Exception):
    """Price data that must not be used. ``problems`` has all of them."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


def read_yaml(path: Path, problems: list[Problem]) -> Tree | None:
    """The document as a tree of text; None, with a problem noted, if it is not readable YAML."""
    try:
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=_LOADER)
        if node is not None:
            return _tree(node, path.name, problems)
        problems.append(Problem(path.name, "", "is empty"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        problems.append(Problem(path.name, "", f"cannot be read: {' '.join(str(error).split())}"))
    except RecursionError:
        problems.append(Problem(path.name, "", "is nested too deeply, or refers to itself"))
    return None


def _tree(node: Any, file: str, problems: list[Problem]) -> Tree:
    if isinstance(node, yaml.ScalarNode):
        return str(node.value)
    if isinstance(node, yaml.SequenceNode):
        return [_tree(item, file, problems) for item in node.value]
    result: dict[str, Tree] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            problems.append(Problem(file, f"line {line}", "a key must be plain text"))
        elif key_node.value in result:
            problems.append(Problem(file, f"line {line}", f"the key {key_node.value!r} is there twice"))
        else:
            result[str(key_node.value)] = _tree(value_node, file, problems)
    return result


class Fields:
    """One mapping of a document. Fields are taken by name; ``end`` complains about those nobody took.

    A field that is missing or wrong is noted as a problem and read as a harmless value, so that reading goes on;
    whoever owns ``problems`` must not use the result while it holds errors.
    """

    def __init__(self, tree: Tree, file: str, key: str, problems: list[Problem]) -> None:
        self.file, self.key, self.problems = file, key, problems
        self._left: dict[str, Tree] = dict(tree) if isinstance(tree, Mapping) else {}
        if not isinstance(tree, Mapping):
            self.problem("", "must be a mapping of fields")

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def path(self, name: str) -> str:
        return ".".join(part for part in (self.key, name) if part)

    def problem(self, name: str, message: str, severity: str = "error") -> None:
        self.problems.append(Problem(self.file, self.path(name), message, severity))

    def text(self, name: str, default: str | None = None, choices: Sequence[str] = ()) -> str:
        """Text; required unless there is a default."""
        value = self._left.pop(name, default)
        if value is None or value == "":
            if default is None:
                self.problem(name, "is missing")
            return default or ""
        if not isinstance(value, str):
            self.problem(name, "must be plain text")
            return default or ""
        if choices and value not in choices:
            self.problem(name, f"{value!r} is none of {', '.join(choices)}")
        return value

    def decimal(self, name: str, default: Decimal | None = None, *, optional: bool = False) -> Decimal | None:
        """A plain decimal number, not negative. Exactly the digits written; exponents and signs are refused."""
        if name not in self._left:
            if default is None and not optional:
                self.problem(name, "is missing")
            return default
        text = self.text(name)
        if not _DECIMAL.fullmatch(text):
            if text:
                self.problem(name, f"{text!r} is not a plain decimal number such as 0.008")
            return default
        return Decimal(text)

    def positive(self, name: str) -> Decimal | None:
        """An optional decimal that must be more than 0 if it is there."""
        value = self.decimal(name, optional=True)
        if value == 0:
            self.problem(name, "must be more than 0")
        return value

    def amount(self, name: str) -> Decimal:
        """A required decimal."""
        return self.decimal(name) or Decimal(0)

    def integer(self, name: str, default: int | None = None) -> int | None:
        value = self.decimal(name, optional=True)
        if value is None:
            return default
        if value != int(value):
            self.problem(name, f"{value} must be a whole number")
        return int(value)

    def day(self, name: str) -> date:
        """A required calendar day, YYYY-MM-DD."""
        text = self.text(name)
        try:
            if _DATE.fullmatch(text):
                return date.fromisoformat(text)
        except ValueError:
            pass
        if text:
            self.problem(name, f"{text!r} is not a date such as 2026-11-20")
        return date.min

    def instant(self, name: str, *, optional: bool = False) -> datetime:
        """A moment in UTC: a day (its first moment) or a full time with its offset."""
        if optional and name not in self._left:
            return datetime.max.replace(tzinfo=UTC)
        text = self.text(name)
        try:
            if _DATE.fullmatch(text):
                return datetime.fromisoformat(text).replace(tzinfo=UTC)
            moment = datetime.fromisoformat(text)
            if moment.tzinfo is not None:
                return moment.astimezone(UTC)
        except (ValueError, OverflowError):
            pass
        if text:
            self.problem(name, f"{text!r} is neither a date such as 2026-11-20 nor a time such as 2026-11-20T12:00:00Z")
        return datetime.min.replace(tzinfo=UTC)

    def size(self, name: str) -> ImageSize | None:
        if name not in self._left:
            return None
        try:
            return ImageSize.parse(self.text(name))
        except ValueError as error:
            self.problem(name, str(error))
            return None

    def words(self, name: str) -> dict[str, str]:
        """A mapping of word to word; empty if it is not there."""
        tree = self._left.pop(name, {})
        if not isinstance(tree, Mapping) or not all(isinstance(value, str) and value for value in tree.values()):
            self.problem(name, "must be a mapping of word to word")
            return {}
        return dict(tree)

    def texts(self, name: str, *, optional: bool = False) -> tuple[str, ...]:
        """A list of texts, without repetitions."""
        if optional and name not in self._left:
            return ()
        tree = self._left.pop(name, [])
        if not isinstance(tree, list) or not tree or not all(isinstance(value, str) and value for value in tree):
            self.problem(name, "must be a list of names")
            return ()
        if len(set(tree)) < len(tree):
            self.problem(name, "names something twice")
        return tuple(tree)

    def fields(self, name: str) -> Fields | None:
        """A nested mapping, or None if it is not there."""
        if name not in self._left:
            return None
        return Fields(self._left.pop(name), self.file, self.path(name), self.problems)

    def each(self, name: str, *, optional: bool = False) -> list[Fields]:
        """A list of nested mappings."""
        tree = self._left.pop(name, [])
        if not isinstance(tree, list) or not (tree or optional):
            self.problem(name, "must be a list with at least one entry" if not optional else "must be a list")
            return []
        return [
            Fields(item, self.file, f"{self.path(name)}[{index}]", self.problems) for index, item in enumerate(tree)
        ]

    def names(self) -> list[str]:
        """The names not taken yet, for mappings whose keys are data."""
        return list(self._left)

    def end(self) -> None:
        """Every field must have been taken."""
        for name in self._left:
            self.problem(name, "is not a known field")
