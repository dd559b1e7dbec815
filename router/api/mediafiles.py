"""GET /v1/media/...: pictures behind signed links. The link is the key; no other one is asked for."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.types import Receive, Scope, Send

from router.api.http import Exchange, Guarded
from router.errors import SERVER, RequestError
from router.mediastore import MediaStore, byte_range, response_headers


class MediaFile(Guarded):
    """One picture, for GET and HEAD."""

    def __init__(self, store: MediaStore) -> None:
        self._store = store

    async def handle(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            media = await self._store.open(scope["path_params"]["name"], exchange.query.decode("latin-1"))
        except OSError as problem:
            raise RequestError(
                503, "The pictures' storage does not answer.", code="storage_unavailable", type=SERVER, retry=True
            ) from problem
        if media is None:
            raise RequestError(404, "There is no such picture, or the link has expired.", code="media_not_found")
        headers = response_headers(media)
        if exchange.headers.get(b"if-none-match") == headers["etag"].encode():
            del headers["content-length"]
            await _start(send, 304, headers)
            await send({"type": "http.response.body", "body": b""})
            return
        status, part = 200, (0, media.length)
        asked = exchange.header(b"range") if exchange.method == "GET" else ""
        if asked and exchange.header(b"if-range") in ("", headers["etag"]):
            try:
                found = byte_range(asked, media.length)
            except ValueError:
                raise RequestError(
                    416,
                    "The picture has no such bytes.",
                    code="range_not_satisfiable",
                    headers={"Content-Range": f"bytes */{media.length}"},
                ) from None
            if found is not None:
                status, part = 206, found
                headers["content-range"] = f"bytes {part[0]}-{part[1] - 1}/{media.length}"
                headers["content-length"] = str(part[1] - part[0])
        await _start(send, status, headers)
        if exchange.method != "HEAD":
            async for chunk in media.chunks(*part):
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def _start(send: Send, status: int, headers: Mapping[str, str]) -> None:
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
