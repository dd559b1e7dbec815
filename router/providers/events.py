"""Server-sent events, read from a flow.

Format: WHATWG HTML standard, section 9.2, as far as image APIs use it (``event`` and ``data`` lines, comments).
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any

import httpx

from router.errors import Billed, ErrorKind, ProviderError
from router.providers.base import Read

LARGEST_EVENT = 96 * 1024 * 1024
"""Bytes of one event, a picture of up to 72 MB as base64; beyond it the provider is not making sense."""


class EventReader:
    """Bytes in, events out. An event with a picture comes in hundreds of chunks; each byte is looked at once."""

    __slots__ = ("_data", "_line", "_name", "_size")

    def __init__(self) -> None:
        self._line: list[bytes] = []  # pieces of the line that is still coming
        self._data: list[bytes] = []
        self._name = b""
        self._size = 0

    def feed(self, chunk: bytes) -> Iterator[tuple[str, bytes]]:
        """The events (name, data) that this chunk completes."""
        *lines, rest = chunk.split(b"\n")
        for line in lines:
            self._line.append(line)
            event = self._end_of_line(b"".join(self._line).removesuffix(b"\r"))
            self._line.clear()
            if event is not None:
                yield event
        if rest:
            self._line.append(rest)
            self._size += len(rest)
            if self._size > LARGEST_EVENT:
                raise ProviderError(ErrorKind.NO_ANSWER, "The provider's stream has no end.", billed=Billed.MAYBE)

    def _end_of_line(self, line: bytes) -> tuple[str, bytes] | None:
        self._size = 0
        if not line:
            name, data = self._name, b"\n".join(self._data)
            self._name, self._data = b"", []
            return (name.decode("utf-8", "replace"), data) if data else None
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._data.append(value)
        elif field == b"event":
            self._name = value
        return None


def read_all(response: httpx.Response) -> Generator[Read, Any, httpx.Response]:
    """The whole of a streamed answer that turned out not to be a stream, as an ordinary response."""
    chunks: list[bytes] = []
    while chunk := (yield Read()):
        chunks.append(chunk)
    headers = [
        (name, value)
        for name, value in response.headers.raw
        if name.lower() not in (b"content-encoding", b"content-length", b"transfer-encoding")
    ]
    return httpx.Response(response.status_code, headers=headers, content=b"".join(chunks))
