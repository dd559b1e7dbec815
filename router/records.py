"""Values that are made anew for every request: immutable as far as the type checker can see, cheap to make."""

from __future__ import annotations

from dataclasses import dataclass, field
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
    ten calls. TypeError for a field it does not have.
    """
    made = object.__new__(type(value))
    for name in type(value).__slots__:  # type: ignore[attr-defined]  # every record has them
        setattr(made, name, changes.pop(name) if name in changes else getattr(value, name))
    if changes:
        raise TypeError(f"{type(value).__name__} has no field {', '.join(changes)}")
    return made
