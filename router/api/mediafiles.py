"""GET /v1/media/...: pictures behind signed links. The link is the key; no other one is asked for."""

from __future__ import annotations

from starlette.types import Receive, Scope, Send

from router.api.http import Exchange, Guarded
from router.errors import RequestError
from router.mediastore import MediaStore, response_headers


class MediaFile(Guarded):
    """One picture, for GET and HEAD."""

    def __init__(self, store: MediaStore) -> None:
        self._store = store

    async def handle(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        media = await self._store.open(scope["path_params"]["name"], exchange.query.decode("latin-1"))
        if media is None:
            raise RequestError(404, "There is no such picture, or the link has expired.", code="media_not_found")
        headers = [(name.encode(), value.encode("latin-1")) for name, value in response_headers(media).items()]
        if any(name == b"etag" and value == exchange.headers.get(b"if-none-match") for name, value in headers):
            headers = [header for header in headers if header[0] != b"content-length"]
            await send({"type": "http.response.start", "status": 304, "headers": headers})
            await send({"type": "http.response.body", "body": b""})
            return
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        if exchange.method != "HEAD":
            async for chunk in media.chunks():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
