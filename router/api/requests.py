"""What became of recent requests: work outlives its client, so its result can be asked for later.

A request runs in a task of its own. When its client leaves, or never meant to wait (``Prefer: respond-async``), the
pictures go to the media store and the result is kept there; ``GET /v1/requests/{id}`` hands it out to the same key.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Any

import orjson
from starlette.types import Receive, Scope, Send

from router.api.auth import Authenticator
from router.api.http import ClientGone, Exchange, Guarded, Reservation, as_request_error, log, send_json, unless_gone
from router.api.ports import Emit, GatewayPort
from router.api.repeats import Claim, Repeats
from router.api.reply import dump, encode_completed, raw_bytes
from router.api.webhooks import Webhooks
from router.errors import SERVER, RequestError
from router.mediastore import MediaStore
from router.types import Caller, Completed, ImageRequest


@dataclass(slots=True, eq=False)
class Record:
    """One request. ``later``: its client does not wait, so the result must be kept."""

    request_id: str
    created: int  # Unix seconds
    caller: Caller
    request: ImageRequest
    base_url: str
    later: bool = False
    completed: Completed | None = None
    error: RequestError | None = None
    ended: bool = False  # the outcome is known and, if anybody may ask for it later, kept
    claim: Claim | None = None  # of an Idempotency-Key
    task: asyncio.Task[Completed] | None = None

    @property
    def outcome(self) -> str:
        return "completed" if self.completed is not None else "failed"

    async def describe(self) -> bytes:
        """The request as its client sees it: its state, and OpenAI's body or error once it has ended."""
        return await self.described_as(self.outcome if self.ended else "processing")

    async def described_as(self, status: str) -> bytes:
        head = {
            "id": self.request_id,
            "object": "request",
            "status": status,
            "created": self.created,
            "operation": self.request.operation.value,
            "model": self.request.model,
        }
        if status == "failed" and self.error is not None:
            return dump(head | {"status_code": self.error.status} | self.error.body())
        if status != "completed" or self.completed is None:
            return orjson.dumps(head)
        response = await encode_completed(self.completed, self.request, base_url=self.base_url)
        return orjson.dumps(head)[:-1] + b',"response":' + b"".join(response) + b"}"


class Requests:
    """Starts requests and knows the recent ones: in memory, and those that are asked for later in the store too."""

    def __init__(
        self,
        gateway: GatewayPort,
        store: MediaStore | None = None,
        webhooks: Webhooks | None = None,
        *,
        kept: int = 2000,
        running: int = 2000,
    ) -> None:
        self._gateway = gateway
        self._store = store
        self._webhooks = webhooks
        self._repeats = Repeats(store) if store is not None else None
        self._kept = kept
        self._most = running
        self._running: dict[str, Record] = {}
        self._ended: OrderedDict[str, Record] = OrderedDict()

    def start(
        self,
        exchange: Exchange,
        request: ImageRequest,
        caller: Caller,
        reservation: Reservation,
        *,
        base_url: str,
        emit: Emit | None = None,
        routing: bool = False,
        claim: Claim | None = None,
    ) -> Record:
        """Run a request in the background. The reservation is given back when it ends."""
        if request.webhook_url is not None and self._webhooks is None:
            raise RequestError(
                400, "This installation sends no webhooks.", code="unsupported_parameter", param="webhook_url"
            )
        if request.later and len(self._running) >= self._most:
            raise RequestError(
                503,
                "Too many requests are running. Try again shortly.",
                code="overloaded",
                type=SERVER,
                retry=True,
                retry_after_s=5.0,
            )
        later = request.later or claim is not None
        record = Record(exchange.request_id, int(time.time()), caller, request, base_url, later, claim=claim)
        self._running[record.request_id] = record
        record.task = asyncio.create_task(self._run(record, reservation, emit, routing))
        record.task.add_done_callback(_looked_at)
        return record

    async def repeated(
        self, exchange: Exchange, request: ImageRequest, caller: Caller
    ) -> tuple[Claim | None, Record | bytes | None]:
        """Whether this was sent before under the same Idempotency-Key: the running request, or the first answer's body.

        The claim is what ``start`` needs when there is neither.
        """
        if self._repeats is None or b"idempotency-key" not in exchange.headers:
            return None, None
        claim = await self._repeats.claim(exchange, request, caller)
        while claim is not None and claim.request_id != exchange.request_id:
            running = self._running.get(claim.request_id)
            if running is not None and running.task is not None:
                return claim, running
            document = await self._store.recall(claim.request_id) if self._store is not None else None
            kept = orjson.loads(document) if document is not None else {}
            if kept.get("form") and (body := await self._repeats.result(kept["body"].encode(), kept["form"])):
                return claim, body
            claim = self._repeats.take_over(claim, exchange.request_id)
        return claim, None

    async def wait(self, record: Record, receive: Receive) -> Completed:
        """The result, while the client waits. ClientGone if it leaves; the work goes on and its result is kept."""
        assert record.task is not None
        try:
            return await unless_gone(receive, record.task)
        except ClientGone:
            record.later = True
            raise

    async def _run(self, record: Record, reservation: Reservation, emit: Emit | None, routing: bool) -> Completed:
        try:
            completed = await self._gateway.run(
                record.request, record.caller, request_id=record.request_id, emit=emit, routing=routing
            )
        except asyncio.CancelledError:
            record.error = RequestError(503, "The router was stopped.", code="cancelled", type=SERVER)
            raise
        except Exception as error:
            refused = as_request_error(error)
            if refused.status == 500 and record.later:  # nobody is there who would report it
                log.error("unhandled error", exc_info=error, extra={"request_id": record.request_id})
            await self._end(record, None, refused)
            raise
        else:
            await self._end(record, completed, None)
            return completed
        finally:
            reservation.release()
            record.task = None
            record.ended = True
            self._running.pop(record.request_id, None)
            self._ended[record.request_id] = record
            if len(self._ended) > self._kept:
                self._ended.popitem(last=False)

    async def _end(self, record: Record, completed: Completed | None, error: RequestError | None) -> None:
        """Note the outcome: without the pictures' bytes, with links to them if they are to be asked for later."""
        request = record.request
        if request.images or request.extra:
            record.request = replace(request, images=(), mask=None, extra={})
        record.error = error
        try:
            if completed is not None:
                record.completed = await self._lasting(completed, record)
            if record.later and self._store is not None:
                document = {
                    "key": record.caller.key,
                    "form": completed.response_format if completed is not None else None,
                    "body": (await record.described_as(record.outcome)).decode(),
                }
                await self._store.remember(record.request_id, orjson.dumps(document))
                if record.claim is not None and completed is not None and self._repeats is not None:
                    await self._repeats.keep(record.claim)
        except OSError as problem:  # a full disk must not take the picture from a client that is waiting for it
            log.error("result not kept", exc_info=problem, extra={"request_id": record.request_id})
            if record.completed is None:
                record.error = RequestError(500, "The result could not be kept.", code="result_lost", type=SERVER)
        if request.webhook_url is not None and self._webhooks is not None:
            event = b'{"type":"image.%s","timestamp":%d,"data":%s}' % (
                record.outcome.encode(),
                int(time.time()),
                await record.described_as(record.outcome),
            )
            self._webhooks.send(request.webhook_url, f"msg_{record.request_id}", event)

    async def _lasting(self, completed: Completed, record: Record) -> Completed:
        if completed.response_format == "url" and all(image.url is not None for image in completed.images):
            return completed
        images = []
        for image in completed.images:
            url = image.url
            if url is None and record.later and self._store is not None:
                url = await self._store.put(await raw_bytes(image), image.format or "png", record.request_id)
            images.append(replace(image, data=None, b64=None, url=url))
        return replace(completed, images=tuple(images), response_format="url")

    # --- asked for later -------------------------------------------------------------------------------------

    async def described(self, request_id: str, caller: Caller) -> tuple[bytes, bool]:
        """A request of this caller, and whether it still runs; RequestError 404 for all others."""
        record = self._running.get(request_id) or self._ended.get(request_id)
        if record is not None and record.caller.key == caller.key:
            return await record.describe(), not record.ended
        if record is None and self._store is not None:
            document = await self._store.recall(request_id)
            if document is not None and (found := orjson.loads(document))["key"] == caller.key:
                return found["body"].encode(), False
        raise RequestError(404, "There is no such request, or it was too long ago.", code="request_not_found")

    async def purge(self, request_id: str, caller: Caller) -> dict[str, Any]:
        """Delete an ended request's pictures and all that is remembered of it."""
        _, running = await self.described(request_id, caller)
        if running:
            raise RequestError(400, "The request is still running.", code="request_running")
        self._ended.pop(request_id, None)
        deleted = await self._store.purge(request_id) if self._store is not None else 0
        return {"id": request_id, "object": "request.purged", "deleted_pictures": deleted}


def _looked_at(task: asyncio.Task[Completed]) -> None:
    """The outcome is in the record; asyncio need not complain that nobody fetched it."""
    if not task.cancelled():
        task.exception()


class RequestState(Guarded):
    """GET /v1/requests/{id}; DELETE removes its pictures."""

    def __init__(self, requests: Requests, auth: Authenticator) -> None:
        self._requests = requests
        self._auth = auth

    async def handle(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        caller = exchange.caller = self._auth.caller(exchange)
        request_id: str = scope["path_params"]["request_id"]
        if exchange.method == "DELETE":
            await send_json(send, 200, orjson.dumps(await self._requests.purge(request_id, caller)))
            return
        body, running = await self._requests.described(request_id, caller)
        headers = [(b"cache-control", b"no-store"), *([(b"retry-after", b"2")] if running else [])]
        await send_json(send, 200, body, headers)


async def send_accepted(record: Record, send: Send) -> None:
    """202: the work goes on, and this is where to ask."""
    location = f"/v1/requests/{record.request_id}".encode()
    headers = [(b"location", location), (b"retry-after", b"2"), (b"preference-applied", b"respond-async")]
    await send_json(send, 202, await record.describe(), headers)
