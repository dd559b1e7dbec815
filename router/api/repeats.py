"""What is sent twice is made once.

Idempotency-Key: the same request sent again by the same caller gets the first result and costs nothing. While the first
is running, the second waits for it; afterwards the kept result is handed out for as long as the media store keeps it. A
request that failed may be sent again, and runs. Streams are not repeated.

Without a key OpenAI's clients send again by themselves when a connection breaks, and say so: such a request goes on
with the one whose client left, once, within some minutes.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

import orjson
import pybase64

from router.api.http import Exchange
from router.errors import RequestError
from router.mediastore import MediaStore
from router.records import changed
from router.types import Caller, Completed, ImageRequest

KEPT = 10_000
"""Claims remembered in memory; those of finished requests are in the store as well."""


@dataclass(frozen=True, slots=True)
class Claim:
    """Who was first under a key: what it asked for, and its request id."""

    name: str
    digest: str
    request_id: str


class Repeats:
    """Knows the keys in use."""

    def __init__(self, store: MediaStore) -> None:
        self._store = store
        self._claims: OrderedDict[str, Claim] = OrderedDict()

    async def claim(self, exchange: Exchange, request: ImageRequest, caller: Caller) -> Claim | None:
        """The claim this request falls under: an earlier one, or its own. None without a key.

        RequestError if the key was used for another request: not 409, which clients would repeat.
        """
        key = exchange.headers.get(b"idempotency-key")
        if not key or request.stream:
            return None
        name = "key_" + hashlib.sha256(caller.key.encode() + b"\0" + key).hexdigest()
        digest = await asyncio.to_thread(digest_of, request)
        kept = await self._store.recall(name) if name not in self._claims else None
        first = self._claims.get(name)  # looked up again: others have run in the meantime
        if first is None and kept is not None:
            first = Claim(name, **orjson.loads(kept))
        if first is None:
            first = self._claims[name] = Claim(name, digest, exchange.request_id)
            if len(self._claims) > KEPT:
                self._claims.popitem(last=False)
        elif first.digest != digest:
            raise RequestError(400, "This Idempotency-Key was used for another request.", code="idempotency_key_reused")
        return first

    def take_over(self, claim: Claim, request_id: str) -> Claim:
        """The first one left no result, so this request is the first now, unless another was quicker to see it."""
        current = self._claims.get(claim.name)
        if current is None or current.request_id == claim.request_id:
            current = self._claims[claim.name] = replace(claim, request_id=request_id)
        return current

    async def keep(self, claim: Claim) -> None:
        """Remember beyond a restart who was first under this key."""
        told = {"digest": claim.digest, "request_id": claim.request_id}
        await self._store.remember(claim.name, orjson.dumps(told))

    async def result(self, document: bytes, form: str) -> bytes | None:
        """The body of the first answer again, from its kept description; None if a picture is gone."""
        body = orjson.loads(document)["response"]
        for item in body["data"]:
            data = await self._picture(item.get("url"))
            if data is None:
                return None
            if form != "url":
                item["b64_json"] = (await asyncio.to_thread(pybase64.b64encode, data)).decode()
            if form == "b64_json":
                del item["url"]
        return orjson.dumps(body)

    async def completed(self, kept: Completed, form: str) -> Completed | None:
        """The first answer again, as it was before its pictures were put away; None if one is gone."""
        images = []
        for image in kept.images:
            data = image.data if image.data is not None else await self._picture(image.url)
            if data is None:
                return None
            images.append(changed(image, data=data, url=None if form == "b64_json" else image.url))
        return changed(kept, images=tuple(images), response_format=form)

    async def _picture(self, url: str | None) -> bytes | None:
        link = urlsplit(url or "")
        media = await self._store.open(link.path.rpartition("/")[2], link.query)
        return b"".join([chunk async for chunk in media.chunks()]) if media is not None else None


def digest_of(request: ImageRequest) -> str:
    """What is asked for, whatever order or boundary a client's second try is sent with."""
    pictures = [*request.images, *(one for one in (request.mask, request.markup) if one is not None)]
    plain = replace(request, images=(), mask=None, markup=None, extra={}, warnings=(), deadline_s=None)
    extra = orjson.dumps(request.extra, option=orjson.OPT_SORT_KEYS, default=str)
    whole = hashlib.sha256(f"{len(request.images)} {plain!r}".encode("utf-8", "backslashreplace") + extra)
    for picture in pictures:
        one = hashlib.sha256()
        for piece in picture.data:
            one.update(piece)
        whole.update(one.digest())
    return whole.hexdigest()
