"""Structured logs: one line per event, JSON for machines and plain text for a terminal, without secrets or content.

Two nets catch what must not be written. Fields whose *name* says that they hold a secret, a prompt or a picture lose
their value, at any depth; then the finished line loses everything that *looks* like a credential, and every secret
that was registered, wherever it hides (an exception's text, a URL, a header quoted by a library).
"""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
import sys
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import IO, Any

import orjson
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

REDACTED = "[redacted]"

_SECRET_NAMES = frozenset(
    {
        *("authorization", "proxy-authorization", "x-api-key", "x-key", "x-goog-api-key", "api_key", "apikey"),
        *("access_token", "refresh_token", "password", "secret", "client_secret", "cookie", "set-cookie"),
    }
)
_CONTENT_NAMES = frozenset(
    {"prompt", "revised_prompt", "negative_prompt", "b64_json", "image", "mask", "markup", "body"}
)
_NEVER = _SECRET_NAMES | _CONTENT_NAMES

# What a credential looks like: a scheme and its value, a named value, well-known beginnings of keys, a signed link.
_CREDENTIAL = re.compile(
    r"(?P<scheme>\b(?:bearer|basic|key|token)\s+)(?=[^\s\"']*[\d:])[\w.~+/:=-]{8,}"
    r"|(?P<name>\b(?:authorization|x-api-key|x-key|api[_-]?key|access_token|client_secret|password)"
    r"[\"']?\s*[:=]\s*[\"']?(?:(?:bearer|basic|key|token)\s+)?)[^\s\"',;&}\[][^\s\"',;&}]*"
    r"|(?P<query>[?&](?:[\w-]*(?:token|signature|sig|key|secret))=)[^\s\"'&]+"
    r"|(?P<user>://[^\s/:@\"']*:)[^\s/@\"']+(?=@)"
    r"|\b(?:sk-|r8_|hf_|AIza|xai-|tgp_)[\w-]{12,}",
    re.IGNORECASE,
)
# A line with none of these cannot match; most lines are spared the expression's cost. Each is a scan of the line, so
# they are few and short rather than exact.
_MARKS = (
    *("=", "@", "bearer ", "basic ", "key ", "token ", "authorization", "-key", "_key", "apikey", "_token", "secret"),
    *("password", "sk-", "r8_", "hf_", "aiza", "xai-", "tgp_"),
)
_WORDS = 4096  # most that are remembered
_NESTED = (dict, list, tuple)
_FLAT = frozenset({str, int, float, bool, type(None)})  # the types of a line with nothing nested


class Redactor:
    """Takes credentials out of text. ``secrets`` are exact strings (keys in use); those under 8 characters are no
    secrets worth the name, and would tear holes into ordinary words.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._secrets: frozenset[str] = frozenset()
        self._words: dict[str | None, str] = {}
        self.add(secrets)

    def add(self, secrets: Iterable[str]) -> None:
        """More strings that must never be written: as they are, as JSON and as Python writes them."""
        known = {secret for secret in secrets if len(secret) >= 8}
        self._secrets |= known | {form(secret)[1:-1] for secret in known for form in (json.dumps, repr)}
        self._words.clear()

    def word(self, text: str | None) -> str:
        """JSON of a text that comes again and again, such as a name: looked through once. None is null."""
        word = self._words.get(text)
        if word is None:
            if len(self._words) >= _WORDS:
                self._words.clear()
            word = self._words[text] = "null" if text is None else json.dumps(self(text))
        return word

    def __call__(self, text: str) -> str:
        for secret in self._secrets:
            if secret in text:
                text = text.replace(secret, REDACTED)
        lower = text.lower()
        for mark in _MARKS:
            if mark in lower:
                return _CREDENTIAL.sub(_replacement, text)
        return text


def _replacement(match: re.Match[str]) -> str:
    return (match["scheme"] or match["name"] or match["query"] or match["user"] or "") + REDACTED


def without_content(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """A processor: fields named like a secret or like content keep their name only."""
    if not _NEVER.isdisjoint(event):
        event.update(dict.fromkeys(_NEVER & event.keys(), REDACTED))
    if not _FLAT.issuperset(map(type, event.values())):
        for name, value in event.items():
            if isinstance(value, _NESTED):
                event[name] = _pruned(value)
    return event


def _pruned(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: REDACTED if str(name).lower() in _NEVER else _pruned(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_pruned(inner) for inner in value]
    return value


def _plain(value: object) -> str:
    """What JSON has no form for: pictures by their length, the rest as Python shows it."""
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    return str(value)


class _JsonLine:
    """The last processor: an event as one line of JSON, time and level first."""

    def __init__(self, redact: Redactor) -> None:
        self._redact = redact

    def __call__(self, _logger: WrappedLogger, method: str, event: EventDict) -> bytes:
        name = event.pop("event", "")
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        fields = {"ts": at[:-6] + "Z", "level": method, "event": name, **event}
        try:
            line = orjson.dumps(fields, default=_plain, option=orjson.OPT_NON_STR_KEYS).decode()
        except TypeError:  # lone surrogates, integers beyond 64 bits: rare, and no reason to lose the line
            line = json.dumps(fields, default=_plain)
        return self._redact(line).encode("utf-8", "replace")


class _ConsoleLine:
    """The last processor on a terminal: the same for people."""

    def __init__(self, redact: Redactor, *, colors: bool) -> None:
        self._redact = redact
        # Not rich's tracebacks: they show local variables, and with them keys and prompts.
        self._render = structlog.dev.ConsoleRenderer(
            colors=colors, exception_formatter=structlog.dev.plain_traceback, pad_event_to=24
        )

    def __call__(self, logger: WrappedLogger, method: str, event: EventDict) -> bytes:
        at = datetime.now().astimezone().strftime("%H:%M:%S")
        line = self._render(logger, method, {"timestamp": at, "level": method, **event})
        return self._redact(line).encode("utf-8", "replace")


class RequestLog:
    """Writes the one line of each request: JSON, put together by whoever knows the request.

    It passes none of the layers above, which would cost more than the line: it holds nothing but numbers and ids of our
    own making and words that ``word`` has looked through. Lines of one turn of the event loop are written together.
    """

    def __init__(self, redact: Redactor, out: IO[bytes]) -> None:
        self.word = redact.word
        self._out = out
        self._second, self._date = 0, ""
        self._lines: list[bytes] = []
        self._writes: asyncio.AbstractEventLoop | None = None  # the loop that is going to

    def line(self, level: str, fields: str) -> None:
        """``fields``: the inside of a JSON object."""
        now = time.time()
        second = int(now)
        if second != self._second:
            self._second, self._date = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        at = f"{self._date}.{int((now - second) * 1000):03}Z"
        self._lines.append(f'{{"ts":"{at}","level":"{level}","event":"request",{fields}}}\n'.encode())
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self._write()
        else:
            if self._writes is not loop:
                self._writes = loop
                loop.call_soon(self._write)

    def _write(self) -> None:
        self._writes = None
        lines = b"".join(self._lines)
        self._lines.clear()
        self._out.write(lines)
        self._out.flush()


class _ThroughStructlog(RequestLog):
    """The same for people, and for whoever has configured structlog for themselves."""

    def __init__(self) -> None:
        super().__init__(Redactor(), io.BytesIO())

    def line(self, level: str, fields: str) -> None:
        getattr(structlog.get_logger(), level)("request", **orjson.loads(f"{{{fields}}}"))


_OF_EVERY_RECORD = {*vars(logging.LogRecord("", 0, "", 0, "", (), None)), "message", "asctime", "taskName"}
_OF_OUR_LINES = {"ts", "timestamp", "level", "event", "logger", "message", "exc_info", "exception"}


class _Bridge(logging.Handler):
    """Lets what libraries say through the standard logging come out the same way, ``extra`` fields included."""

    def emit(self, record: logging.LogRecord) -> None:
        level = max(10, min(50, record.levelno // 10 * 10))
        try:
            fields = {
                f"{name}_" if name in _OF_OUR_LINES else name: value
                for name, value in vars(record).items()
                if name not in _OF_EVERY_RECORD
            }
            fields |= {"logger": record.name, "message": record.getMessage(), "exc_info": record.exc_info or None}
            structlog.get_logger().log(level, "log", **fields)
        except Exception:
            self.handleError(record)


_request_log: RequestLog = _ThroughStructlog()


def request_log() -> RequestLog:
    """Where the lines of requests go, as configured."""
    return _request_log


def configure_logs(
    format: str = "auto", *, secrets: Iterable[str] = (), stream: io.TextIOBase | None = None
) -> Redactor:
    """Set structlog and the standard logging up for this process, and return what redacts (to register more secrets).

    ``format`` is ``json``, ``console``, or ``auto``: console where ``stream`` (standard output) is a terminal.
    """
    global _request_log
    if format not in ("auto", "json", "console"):
        raise ValueError(f"log format {format!r} is none of auto, json, console")
    out: Any = stream or sys.stdout
    redact = Redactor(secrets)
    terminal = out.isatty()
    last: Processor
    if format == "console" or (format == "auto" and terminal):
        chain: list[Processor] = [without_content]
        last = _ConsoleLine(redact, colors=terminal)
        _request_log = _ThroughStructlog()
    else:
        chain = [structlog.processors.format_exc_info, without_content]
        last = _JsonLine(redact)
        _request_log = RequestLog(redact, out.buffer)
    structlog.configure(
        processors=[*chain, last],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.BytesLoggerFactory(out.buffer),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(handlers=[_Bridge()], level=logging.WARNING, force=True)
    return redact
