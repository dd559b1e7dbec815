"""Reading a YAML configuration strictly: typed reads, every problem noted with its file and key, unknown keys refused.

Price books are read by ``pricing.document``, where every scalar stays text; here options go to providers as YAML types.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import yaml

from pricing import ImageSize, Problem


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key written twice, which YAML would settle silently by the last one."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} stands twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path, problems: list[Problem]) -> dict[str, Any]:
    try:
        data = yaml.load(path.read_text("utf-8"), _Loader)  # noqa: S506 - a SafeLoader
    except OSError as error:
        problems.append(Problem(str(path), "", f"cannot be read: {error.strerror}"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        problems.append(Problem(str(path), "", f"is not valid YAML: {' '.join(str(error).split())}"))
    else:
        if isinstance(data, dict):
            return data
        problems.append(Problem(str(path), "", "must be a mapping with providers and models"))
    return {}


class Section:
    """One mapping of the file: typed reads that note a problem and go on, and a check for keys nobody read."""

    def __init__(self, file: str, key: str, data: Any, problems: list[Problem]) -> None:
        self.file, self.key, self.problems = file, key, problems
        if not isinstance(data, dict):
            self.problem("", f"must be a mapping, not {_kind(data)}")
            data = {}
        self.data: dict[Any, Any] = data
        self.read: set[Any] = set()

    def path(self, key: str) -> str:
        return f"{self.key}.{key}" if self.key and key else self.key or key

    def problem(self, key: str, message: str) -> None:
        self.problems.append(Problem(self.file, self.path(key), message))

    def _take(self, key: str, kind: type | tuple[type, ...], word: str, default: Any, required: bool = False) -> Any:
        self.read.add(key)
        value = self.data.get(key)
        if value is None:
            if required:
                self.problem(key, "is missing")
            return default
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            self.problem(key, f"must be {word}, not {_kind(value)}")
            return default
        return value

    def text(self, key: str, *, required: bool = False) -> str | None:
        value: str | None = self._take(key, str, "a text", None, required)
        return value

    def text_or(self, key: str, default: str) -> str:
        return self.text(key) or default

    def flag(self, key: str, default: bool = False) -> bool:
        return bool(self._take(key, bool, "true or false", default))

    def integer(self, key: str, default: int, *, least: int = 0) -> int:
        value: int = self._take(key, int, "a whole number", default)
        if value < least:
            self.problem(key, f"must be at least {least}")
            return default
        return value

    def number(self, key: str, *, least: float = 0.0) -> float | None:
        value: float | None = self._take(key, (int, float), "a number", None)
        if value is not None and not value >= least:
            self.problem(key, f"must be at least {least:g}")
            return None
        return value

    def number_or(self, key: str, default: float, *, least: float = 0.0) -> float:
        value = self.number(key, least=least)
        return default if value is None else float(value)

    def amount(self, key: str) -> Decimal | None:
        """Money, to the last digit that is written."""
        words = "an amount of money, such as 0.05"
        value = self._take(key, (int, float, str), words, None)
        try:
            amount = Decimal(str(value)) if value is not None else None
        except InvalidOperation:
            amount = Decimal("nan")
        if amount is not None and not (amount.is_finite() and amount >= 0):
            self.problem(key, f"must be {words}")
            return None
        return amount

    def choice(self, key: str, options: Iterable[str], default: str) -> str:
        value = self.text_or(key, default)
        options = tuple(options)
        if value not in options:
            self.problem(key, f"{value!r} is not one of {', '.join(options)}")
            return default
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        value: list[Any] = self._take(key, list, "a list", [])
        if not all(isinstance(item, str) for item in value):
            self.problem(key, "must be a list of texts")
            return ()
        return tuple(value)

    def numbers(self, key: str) -> tuple[float, ...]:
        """Numbers that are at least 0."""
        value: list[Any] = self._take(key, list, "a list", [])
        if not all(isinstance(item, int | float) and not isinstance(item, bool) and item >= 0 for item in value):
            self.problem(key, "must be a list of numbers that are at least 0")
            return ()
        return tuple(float(item) for item in value)

    def size(self, key: str) -> ImageSize | None:
        text = self.text(key)
        if text is None:
            return None
        try:
            return ImageSize.parse(text)
        except ValueError as error:
            self.problem(key, str(error))
            return None

    def day(self, key: str) -> date | None:
        value: date | None = self._take(key, date, "a date like 2026-11-20", None)
        return value

    def mapping(self, key: str) -> dict[str, Any]:
        value: dict[Any, Any] = self._take(key, dict, "a mapping", {})
        return {str(name): item for name, item in value.items()}

    def section(self, key: str) -> Section:
        return Section(self.file, self.path(key), self.mapping(key), self.problems)

    def sections(self, key: str) -> Iterable[tuple[str, Section]]:
        for name, data in self.mapping(key).items():
            yield name, Section(self.file, f"{self.path(key)}.{name}", data, self.problems)

    def done(self) -> None:
        for key in self.data:
            if key not in self.read:
                known = ", ".join(sorted(str(name) for name in self.read))
                self.problem(str(key), f"is not a known key here (known: {known})")


def _kind(value: Any) -> str:
    return {dict: "a mapping", list: "a list", str: "a text", bool: "true/false", type(None): "nothing"}.get(
        type(value), f"a {type(value).__name__}"
    )
