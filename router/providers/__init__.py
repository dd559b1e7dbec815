"""Image providers: one file each. README.md beside this file says how to add one."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

from router.providers.base import Adapter
from router.providers.bfl import BFL
from router.providers.fal import Fal
from router.providers.google import Google
from router.providers.openai import OpenAI
from router.providers.replicate import Replicate
from router.providers.runware import Runware
from router.providers.stability import Stability
from router.providers.together import Together

ADAPTERS: Mapping[str, type[Adapter]] = {
    "bfl": BFL,
    "fal": Fal,
    "google": Google,
    "openai": OpenAI,
    "replicate": Replicate,
    "runware": Runware,
    "stability": Stability,
    "together": Together,
}
"""Adapters by the names that configuration uses."""


def load_adapter(name: str) -> type[Adapter]:
    """The adapter of this name, or the class at a dotted path ``package.module:Class``. Raises ValueError."""
    if name in ADAPTERS:
        return ADAPTERS[name]
    module, _, attribute = name.partition(":")
    if not attribute:
        raise ValueError(f"no adapter {name!r}; there are {', '.join(ADAPTERS)}, or a path like package.module:Class")
    try:
        adapter = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"no adapter at {name!r}: {error}") from error
    if not isinstance(adapter, type) or not all(hasattr(adapter, part) for part in _PARTS):
        raise ValueError(f"{name!r} is no adapter: it needs {', '.join(_PARTS)}")
    return adapter


_PARTS = ("auth", "urls", "run", "resume", "cancel")
