"""Misbehaviour on demand: what can go wrong, and how a test or a person asks for it.

Four ways to ask, all with the same words (``README.md`` lists them):

- the control endpoint ``POST /_control/faults``: for a provider, a model, a number of calls, a share, a time;
- a header ``X-Sandbox-Fault: rate_limited; retry_after=2, delay; seconds=0.5``;
- the end of the model id: ``flux.2-dev-turbo--server_error:status=503``;
- the prompt: ``[fault: refused]`` anywhere in it; and words a provider would refuse by itself (``nsfw``).

A fault changes what the emulator *does*, so each provider shows it in its own shape: ``refused`` is a flag beside a
blank picture at one and an error object at the next.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

KINDS: Mapping[str, str] = {
    # the answer comes late or never
    "delay": "answers `seconds` later (real time), or `factor` times as slow as usual",
    "hang": "takes the request and never answers (`seconds`, default 600)",
    "stuck": "a submitted job never finishes; without jobs the same as hang",
    # the connection
    "reset": "closes the connection without an answer; `billed=1` does the work first",
    "cut": "closes the connection in the middle of the body (`share`, default 0.5); the work is done and billed",
    "break_stream": "closes a stream after `after` partial pictures (default 1); the work is billed",
    "stream_error": "sends an error event in a stream after `after` partial pictures (default 1); not billed",
    # another status
    "rate_limited": "429; `retry_after` seconds (default 1) where the provider has such a hint, 0 for none",
    "concurrency": "429 while `limit` calls (default 1) are already being served",
    "server_error": "`status` (default 500) before any work; `billed=1` does the work, bills it, then fails",
    "unauthenticated": "the key is refused",
    "no_credit": "the account has no money left",
    # a bad success
    "truncated": "a complete response whose JSON ends in the middle (`share`, default 0.5)",
    "wrong_type": "200 with an HTML page instead of the reply",
    "empty": "200 without any picture",
    "fewer": "makes `n` pictures (default one fewer than asked)",
    "wrong_size": "makes pictures of `width` x `height` (default: half of what was asked)",
    "corrupt": "delivers bytes that are no picture",
    "refused": "refuses the content in the provider's own shape",
    "text_only": "answers in words where the provider can; else as empty",
    "failed": "the job itself fails, in the provider's own shape",
    # afterwards
    "expired_link": "the picture's URL answers `status` (default 404)",
    "duplicate_webhook": "delivers every webhook `times` times (default 2)",
}

SPELLINGS: Mapping[str, tuple[str, dict[str, str]]] = {
    "slow": ("delay", {"factor": "10"}),
    "down": ("server_error", {"status": "503"}),
    "billed_error": ("server_error", {"billed": "1"}),
    "429": ("rate_limited", {}),
    "500": ("server_error", {"status": "500"}),
    "502": ("server_error", {"status": "502"}),
    "503": ("server_error", {"status": "503"}),
    "504": ("server_error", {"status": "504"}),
}

STEPS = ("create", "poll", "result", "cancel", "file", "upload", "other")
_AFTERWARDS = {"expired_link": "file"}
_REFUSED_WORDS = re.compile(r"\b(?:nsfw|gore|explicit nudity)\b", re.IGNORECASE)
_IN_PROMPT = re.compile(r"\[faults?:\s*([^\]]+)\]")


class UnknownFault(ValueError):
    """A fault was asked for that nobody knows; the text names the known ones."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong in one exchange."""

    kind: str
    params: Mapping[str, Any] = field(default_factory=dict)

    def number(self, name: str, default: float) -> float:
        return float(self.params.get(name, default))

    def flag(self, name: str) -> bool:
        return str(self.params.get(name, "")).lower() in ("1", "true", "yes")


def parse(text: str) -> tuple[Fault, ...]:
    """``rate_limited; retry_after=2, delay; seconds=0.5`` -> two faults. Raises UnknownFault."""
    return tuple(_one(part, ";") for part in text.split(",") if part.strip())


def split_model(model: str) -> tuple[str, tuple[Fault, ...]]:
    """``name--delay:seconds=2--wrong_size`` -> the plain model id and its faults. Raises UnknownFault."""
    name, *asked = model.split("--")
    return name, tuple(_one(part, ":") for part in asked)


def _one(text: str, separator: str) -> Fault:
    word, *settings = (part.strip() for part in text.split(separator))
    params = dict(setting.partition("=")[::2] for setting in settings if setting)
    return make(word, params)


def make(word: str, params: Mapping[str, Any]) -> Fault:
    """A fault by one of its names, checked. Raises UnknownFault."""
    kind, implied = SPELLINGS.get(word, (word, {}))
    if kind not in KINDS:
        raise UnknownFault(f"unknown fault {word!r}; known: {', '.join((*KINDS, *SPELLINGS))}")
    return Fault(kind, {**implied, **params})


@dataclass(slots=True)
class Rule:
    """A fault ordered through the control endpoint, and for which calls it counts."""

    fault: Fault
    provider: str | None = None  # None: all
    model: str | None = None
    step: str = "create"
    count: int | None = None  # calls left; None: no limit
    until: float | None = None  # clock time; None: no limit
    share: float = 1.0

    def matches(self, provider: str, model: str, step: str, now: float) -> bool:
        return (
            self.provider in (None, provider)
            and self.model in (None, model)
            and self.step in ("any", step)
            and (self.count is None or self.count > 0)
            and (self.until is None or now < self.until)
        )

    def as_dict(self, now: float) -> dict[str, Any]:
        return {
            "fault": self.fault.kind,
            "params": dict(self.fault.params),
            "provider": self.provider,
            "model": self.model,
            "on": self.step,
            "count": self.count,
            "seconds_left": None if self.until is None else round(self.until - now, 3),
            "share": self.share,
        }


class FaultPlan:
    """All standing orders, and the choice of what happens to one exchange."""

    def __init__(self, clock: Callable[[], float], rng: random.Random) -> None:
        self._clock = clock
        self._rng = rng
        self.rules: list[Rule] = []

    def order(self, settings: Mapping[str, Any]) -> Rule:
        """Add a rule from JSON: fault, and optionally params, provider, model, on, count, until, share.

        ``until`` is a number of seconds from now. Raises UnknownFault, ValueError or TypeError for a bad order.
        """
        known = {"fault", "params", "provider", "model", "on", "count", "until", "share"}
        if unknown := set(settings) - known:
            raise ValueError(f"unknown settings {sorted(unknown)}; known: {sorted(known)}")
        fault = make(str(settings.get("fault", "")), dict(settings.get("params") or {}))
        step = settings.get("on") or _AFTERWARDS.get(fault.kind, "create")
        if step not in (*STEPS, "any"):
            raise ValueError(f"on must be one of {', '.join((*STEPS, 'any'))}")
        count, until = settings.get("count"), settings.get("until")
        rule = Rule(
            fault,
            settings.get("provider"),
            settings.get("model"),
            step,
            None if count is None else int(count),
            None if until is None else self._clock() + float(until),
            float(settings.get("share", 1)),
        )
        self.rules.append(rule)
        return rule

    def clear(self) -> None:
        self.rules.clear()

    def listing(self) -> list[dict[str, Any]]:
        now = self._clock()
        return [rule.as_dict(now) for rule in self.rules]

    def ordered(self, provider: str, model: str, step: str) -> tuple[Fault, ...]:
        """The standing orders that strike this exchange; each counts down when it does."""
        now, struck = self._clock(), []
        for rule in self.rules:
            if rule.matches(provider, model, step, now) and (rule.share >= 1 or self._rng.random() < rule.share):
                if rule.count is not None:
                    rule.count -= 1
                struck.append(rule.fault)
        self.rules = [rule for rule in self.rules if rule.count != 0 and (rule.until is None or now < rule.until)]
        return tuple(struck)


def in_prompt(prompt: str) -> Iterable[Fault]:
    """Faults the prompt asks for, and the refusal that some words earn at every provider. Raises UnknownFault."""
    for match in _IN_PROMPT.finditer(prompt):
        yield from parse(match.group(1))
    if _REFUSED_WORDS.search(prompt):
        yield Fault("refused")
