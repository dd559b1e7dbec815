"""The floor: a bare ASGI function that passes requests on with aiohttp. No router does its work with less."""

from __future__ import annotations

import os
from typing import Any

import aiohttp

UPSTREAM = os.environ.get("FLOOR_UPSTREAM", "")
_session: aiohttp.ClientSession | None = None


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    global _session
    if scope["type"] == "lifespan":
        await _lifespan(receive, send)
        return
    if scope["method"] == "GET":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})
        return
    if _session is None:
        _session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False
        )
    parts = []
    while True:
        message = await receive()
        parts.append(message["body"])
        if not message["more_body"]:
            break
    headers = dict(scope["headers"])
    async with _session.post(
        UPSTREAM + scope["path"],
        data=_pieces(parts),
        headers={
            "Content-Type": headers[b"content-type"].decode(),
            "Content-Length": headers[b"content-length"].decode(),
        },
    ) as answer:
        body = await answer.read()
    content = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": answer.status, "headers": content})
    await send({"type": "http.response.body", "body": body})


async def _pieces(parts: list[bytes]) -> Any:
    for part in parts:
        yield part


async def _lifespan(receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    if _session is not None:
        await _session.close()
    await send({"type": "lifespan.shutdown.complete"})
