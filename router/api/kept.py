"""What is on disk about requests whose clients do not wait: written before the work begins, kept until it is told.

A document per request lies in the media store under the request's id: whose it is, what form the result is to have,
what a client is told who asks, and whether somebody is still to be called. Never the prompt or a picture. Beside it,
while anything is left to do, an empty document says so: by it the router that took the request finds it again after a
restart. Several routers may share a store, so its name holds the identity of the router's ledger.
"""

from __future__ import annotations

from typing import Any

import orjson

from pricing import ImageSize
from router.mediastore import MediaStore
from router.types import ImageRequest, Operation, Warn

PROCESSING, ENDED = "processing", "ended"

Document = dict[str, Any]

_PLAIN = (
    "model",
    "n",
    "size_policy",
    "quality",
    "background",
    "output_format",
    "output_compression",
    "response_format",
    "webhook_url",
)


class Kept:
    """The documents of one router in its media store. Every method may raise OSError."""

    def __init__(self, store: MediaStore) -> None:
        self._store = store
        self.owner = ""  # the router's ledger, once it is started

    async def begin(self, request_id: str, document: Document) -> None:
        """A request is about to run: durable when this returns."""
        await self._store.remember(self._mark(request_id), b"")
        await self.write(request_id, document)

    async def write(self, request_id: str, document: Document) -> None:
        await self._store.remember(request_id, orjson.dumps(document))

    async def finish(self, request_id: str) -> None:
        """Nothing is left to do for it. Its document stays to be asked for."""
        await self._store.forget(self._mark(request_id))

    async def find(self, request_id: str) -> Document | None:
        found = await self._store.recall(request_id)
        return orjson.loads(found) if found is not None else None

    async def unfinished(self) -> list[tuple[str, Document]]:
        """What an earlier process of this router has left to do."""
        left = []
        prefix = self._mark("")
        for name in await self._store.remembered(prefix):
            request_id = name[len(prefix) :]
            document = await self.find(request_id)
            if document is None:  # killed between the two writes: nobody has been told of it
                await self.finish(request_id)
            else:
                left.append((request_id, document))
        return left

    def _mark(self, request_id: str) -> str:
        return f"job_{self.owner}_{request_id}"


def request_as_dict(request: ImageRequest) -> Document:
    """What a result needs to know of its request: its form, never its content."""
    wanted: Document = {name: value for name in _PLAIN if (value := getattr(request, name)) is not None}
    wanted["operation"] = request.operation.value
    if request.size is not None:
        wanted["size"] = str(request.size)
    if request.warnings:
        wanted["warnings"] = [warning.as_dict() for warning in request.warnings]
    return wanted


def request_from_dict(wanted: Document) -> ImageRequest:
    """The inverse, with an empty prompt."""
    return ImageRequest(
        operation=Operation(wanted["operation"]),
        prompt="",
        size=ImageSize.parse(wanted["size"]) if "size" in wanted else None,
        warnings=tuple(Warn(**warning) for warning in wanted.get("warnings", ())),
        later=True,
        **{name: wanted[name] for name in _PLAIN if name in wanted},
    )
