"""Values that are made anew for every request: immutable as far as the type checker can see, cheap to make."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import cache
from operator import attrgetter
from typing import Any, TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def record(cls: type[T]) -> type[T]:
    """A dataclass with slots that mypy holds to be frozen.

    Frozen at run time too, each field would be set by a call, and making one would take two and a half times as long:
    5 % of the CPU of a request. What is shared between requests (configuration, catalogue, prices) is really frozen.
    """
    return dataclass(slots=True, unsafe_hash=True)(cls)


def changed(value: T, **changes: Any) -> T:
    """A record with some of its fields changed, without the checks that make ``dataclasses.replace`` cost as much as
    ten calls. AttributeError for a field it does not have.
    """
    kind: Any = type(value)
    made: T = kind(*_values(kind)(value))
    for name, given in changes.items():
        setattr(made, name, given)
    return made


@cache
def _values(kind: Any) -> Callable[[Any], tuple[Any, ...]]:
    """What reads all fields of such a record at once."""
    names = [each.name for each in fields(kind)]
    if len(names) > 1:
        return attrgetter(*names)
    return lambda value: tuple(getattr(value, name) for name in names)
