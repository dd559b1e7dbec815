"""The body of an answer, read and decoded no further than a bound."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import httpx

from router.blob import Blob
from router.whole import Whole, body_of

INFLATE_BYTES = 256 * 1024  # decoded at once


class TooLarge(Exception):
    """The body goes on past the bound."""

    def __init__(self, most: int) -> None:
        super().__init__(f"The answer is larger than the {most} bytes allowed.")


class Turns:
    """Long bodies are read a few at a time: read all at once, as they tend to come, every one would be held half read.

    Who takes longer than ``patience_s`` reads on, and no longer keeps the others waiting: that host is slow, not we.
    Measured with 64 replies of 4 MB at once (2026-11): 3.7 MB of memory each without turns, about 2 with them.
    """

    def __init__(self, most: int = 8, patience_s: float = 0.2) -> None:
        self._free = asyncio.Semaphore(most)
        self._patience_s = patience_s

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        await self._free.acquire()
        ends = [self._free.release]  # once, by whoever comes first
        timer = asyncio.get_running_loop().call_later(self._patience_s, lambda: ends.pop()())
        try:
            yield
        finally:
            timer.cancel()
            if ends:
                ends.pop()()


async def whole(response: httpx.Response, most: int) -> httpx.Response:
    """The response with its body in memory, decoded, no larger than ``most``. The connection is free then."""
    if response.is_closed and len(body_of(response)) <= most:
        return response
    found = []
    async with aclosing(pieces(response, most)) as reader:
        async for piece in reader:
            found.append(piece)
    headers = [(k, v) for k, v in response.headers.raw if k.lower() not in (b"content-encoding", b"content-length")]
    return Whole(response.status_code, headers, Blob(*found))


async def pieces(response: httpx.Response, most: int) -> AsyncGenerator[bytes, None]:
    """The pieces of a response's body, decoded; raises TooLarge past ``most`` bytes, received or decoded.

    httpx's own decoders have no bound: a megabyte of gzip can become gigabytes. We ask for no compression at all,
    so that what is decoded here is the exception.
    """
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if response.is_closed:
        if len(response.content) > most:
            raise TooLarge(most)
        yield response.content
        return
    inflate: Any = None
    if encoding in ("gzip", "x-gzip", "deflate"):
        inflate = zlib.decompressobj(zlib.MAX_WBITS | 32)
    elif encoding != "identity":
        raise httpx.DecodingError(f"the answer is in an encoding nobody asked for: {encoding[:40]}")
    received = made = 0
    async for chunk in response.stream:  # type: ignore[union-attr]  # a transport answers with an async one
        received += len(chunk)
        if received > most:
            raise TooLarge(most)
        if inflate is None:
            yield chunk
            continue
        while chunk:  # in small steps: a bomb is noticed before it has gone off
            try:
                piece = inflate.decompress(chunk, INFLATE_BYTES)
            except zlib.error as error:
                raise httpx.DecodingError("the answer's compression is broken") from error
            chunk = inflate.unconsumed_tail
            made += len(piece)
            if made > most:
                raise TooLarge(most)
            if piece:
                yield piece
    if inflate is not None:
        if rest := inflate.flush():
            yield rest
        if not inflate.eof:
            raise httpx.DecodingError("the answer's compression is incomplete")
