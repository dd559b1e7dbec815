"""httpx's messages as they are when everything about them is known: made at once, their headers looked at when asked.

httpx takes every header apart and puts it together again; for the small messages of a request that was a seventh of
its CPU time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import httpx

from router.blob import Blob

RawHeaders = Sequence[tuple[bytes, bytes]]


class Endpoint(httpx.URL):
    """A URL that many requests go to: each of its parts is worked out once."""

    @cached_property
    def scheme(self) -> str:
        return super().scheme

    @cached_property
    def host(self) -> str:
        return super().host

    @cached_property
    def port(self) -> int | None:
        return super().port

    @cached_property
    def netloc(self) -> bytes:
        return super().netloc

    @cached_property
    def raw_path(self) -> bytes:
        return super().raw_path


class Ready(httpx.Request):
    """A request with all the headers that it is sent with, and its body as a stream."""

    def __init__(
        self,
        method: str,
        url: httpx.URL,
        raw: RawHeaders,
        stream: Any,
        extensions: Mapping[str, Any] | None = None,
    ) -> None:
        self.method = method
        self.url = url
        self.raw = raw
        self.stream = stream
        self.extensions = dict(extensions) if extensions is not None else {}

    @cached_property
    def headers(self) -> httpx.Headers:  # type: ignore[override]  # there an attribute, set when it is made
        return httpx.Headers(self.raw)


class Whole(httpx.Response):
    """A response whose body is in memory as it is meant to be read: httpx's own would send it through its decoders."""

    def __init__(self, status: int, raw: RawHeaders, body: Blob) -> None:
        self.status_code = status
        self.raw = raw
        self.body = body
        self.stream = _SPENT
        self.is_closed = self.is_stream_consumed = True
        self.extensions = {}
        self.history = []
        self.next_request = None
        self.default_encoding = "utf-8"
        self._request = None
        self._num_bytes_downloaded = len(body)

    @cached_property
    def headers(self) -> httpx.Headers:  # type: ignore[override]  # there an attribute, set when it is made
        return httpx.Headers(self.raw)

    @property
    def content(self) -> bytes:
        return bytes(self.body)

    def read(self) -> bytes:
        return self.content

    async def aread(self) -> bytes:
        return self.content


_SPENT = httpx.ByteStream(b"")
_MADE_AT_ONCE = (Ready, Whole)


def body_of(response: httpx.Response) -> Blob:
    """The body of a response that has been read, in the pieces it came in."""
    return response.body if isinstance(response, Whole) else Blob(response.content)


def raw_headers(message: httpx.Request | httpx.Response) -> RawHeaders:
    """The headers of a message as they are on the wire."""
    if isinstance(message, _MADE_AT_ONCE) and "headers" not in message.__dict__:
        return message.raw
    return message.headers.raw  # also where somebody asked, and may have changed them


def header(response: httpx.Response, name: bytes) -> str | None:
    """One header by its lower-case name; the first, if there are several."""
    for key, value in raw_headers(response):
        if len(key) == len(name) and key.lower() == name:
            return value.decode("latin-1")
    return None
