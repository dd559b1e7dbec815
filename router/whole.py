"""An answer whose body has been read, in the pieces it came in."""

from __future__ import annotations

from collections.abc import Sequence

import httpx

from router.blob import Blob


class Whole(httpx.Response):
    """A response whose body is in memory as it is meant to be read: httpx's own would send it through its decoders."""

    def __init__(self, status: int, headers: Sequence[tuple[bytes, bytes]], body: Blob) -> None:
        super().__init__(status, headers=headers, stream=_SPENT)
        self.is_closed = self.is_stream_consumed = True
        self.body = body

    @property
    def content(self) -> bytes:
        return bytes(self.body)

    def read(self) -> bytes:
        return self.content

    async def aread(self) -> bytes:
        return self.content


_SPENT = httpx.ByteStream(b"")


def body_of(response: httpx.Response) -> Blob:
    """The body of a response that has been read, in the pieces it came in."""
    return response.body if isinstance(response, Whole) else Blob(response.content)
