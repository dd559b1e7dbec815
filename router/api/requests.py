"""What became of recent requests: work outlives its client, so its result can be asked for later.

A request runs in a task of its own. When its client leaves, or never meant to wait (``Prefer: respond-async``), the
pictures go to the media store and the result is kept there; ``GET /v1/requests/{id}`` hands it out to the same key.
Requests that somebody is sure to ask for are on disk before they run (``kept.py``), so that a restart can go on.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, replace
from typing import Any

import orjson
from starlette.types import Receive, Scope, Send

from router.api.auth import Authenticator
from router.api.http import ClientGone, Exchange, Guarded, Reservation, as_request_error, log, send_json, unless_gone
from router.api.kept import ENDED, PROCESSING, Document, Kept, request_as_dict, request_from_dict
from router.api.ports import Emit, GatewayPort
from router.api.repeats import Claim, Repeats, digest_of
from router.api.reply import dump, encode_completed, raw_bytes
from router.api.webhooks import Event, Webhooks
from router.errors import SERVER, RequestError
from router.mediastore import MediaStore
from router.records import changed
from router.types import Caller, Completed, ImageRequest
from router.unserved import given_up

SENT_AGAIN_S = 600.0  # what a client's library sends again by itself, it sends within this


@dataclass(slots=True, eq=False)
class Record:
    """One request.

    ``later``: its client does not wait, so the result must be kept; ``sure``: known from the start. ``wanted``: also
    when every client that waits for it has left.
    """

    request_id: str
    created: int  # Unix seconds
    caller: Caller
    request: ImageRequest
    base_url: str
    later: bool = False
    sure: bool = False
    wanted: bool = True
    waiting: int = 0  # clients
    completed: Completed | None = None
    error: RequestError | None = None
    ended: bool = False  # the outcome is known and, if anybody may ask for it later, kept
    claim: Claim | None = None  # of an Idempotency-Key
    task: asyncio.Future[Completed] | None = None
    left: asyncio.Task[str] | None = None  # its client is gone; what was asked for, as a digest
    begun: asyncio.Future[None] | None = None  # of a ``sure`` one: it is on disk, a restart will not lose it

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


@dataclass(frozen=True, slots=True)
class CutOff:
    """A request that was under way when its router was stopped, as far as it is known."""

    request_id: str
    created: int  # Unix seconds
    caller: Caller
    request: ImageRequest
    base_url: str = ""


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
        self._kept = Kept(store) if store is not None else None
        self._repeats = Repeats(store) if store is not None else None
        self._remembered = kept
        self._most = running
        self._running: dict[str, Record] = {}
        self._ended: OrderedDict[str, Record] = OrderedDict()
        self._left: OrderedDict[str, Record] = OrderedDict()  # those whose clients may send again

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
        if request.webhook_url is not None:
            if self._webhooks is None:
                raise RequestError(
                    400, "This installation sends no webhooks.", code="unsupported_parameter", param="webhook_url"
                )
            self._webhooks.check(request.webhook_url)
        if request.later:
            if len(self._running) >= self._most:
                raise RequestError(
                    503,
                    "Too many requests are running. Try again shortly.",
                    code="overloaded",
                    type=SERVER,
                    retry=True,
                    retry_after_s=5.0,
                )
            self._gateway.check(request, caller)  # what can be refused is refused now, not when it is asked for
        wanted = request.later or request.webhook_url is not None
        sure = wanted or claim is not None
        record = Record(
            exchange.request_id, int(time.time()), caller, request, base_url, sure, sure, wanted, claim=claim
        )
        record.waiting = 1
        self._go(
            record,
            lambda: self._gateway.run(record.request, caller, request_id=record.request_id, emit=emit, routing=routing),
            reservation,
        )
        return record

    def _go(
        self, record: Record, work: Callable[[], Coroutine[Any, Any, Completed]], reservation: Reservation | None
    ) -> None:
        if record.sure:
            record.begun = asyncio.get_running_loop().create_future()
            record.begun.add_done_callback(asyncio.Future.exception)  # nobody may be waiting for it
        self._running[record.request_id] = record
        record.task = asyncio.create_task(self._run(record, work, reservation))

    async def accepted(self, record: Record) -> None:
        """Return when a restart cannot lose the request any more. RequestError if it cannot be kept."""
        if record.begun is not None:
            await asyncio.shield(record.begun)

    async def repeated(
        self, exchange: Exchange, request: ImageRequest, caller: Caller
    ) -> tuple[Claim | None, Record | bytes | None]:
        """Whether this was sent before: the running request, or the body of the answer to an Idempotency-Key.

        The claim is what ``start`` needs when there is neither. RequestError if the first failed and it may have cost
        money, so that it must not run again.
        """
        if self._repeats is None:
            return None, None
        if b"idempotency-key" not in exchange.headers:
            return None, await self._sent_again(request, caller, self._repeats) if caller.retry_count else None
        claim = await self._repeats.claim(exchange, request, caller)
        while claim is not None and claim.request_id != exchange.request_id:
            running = self._running.get(claim.request_id)
            if running is not None and running.task is not None:
                running.waiting += 1
                return claim, running
            kept = (await self._kept.find(claim.request_id) if self._kept is not None else None) or {}
            if kept.get("form") and (body := await self._repeats.result(kept["body"].encode(), kept["form"])):
                return claim, body
            if kept.get("state") == PROCESSING and claim.request_id not in self._ended:  # at another router
                raise RequestError(
                    409,
                    "The first request under this Idempotency-Key is still running.",
                    code="idempotency_key_in_use",
                    retry=True,
                    retry_after_s=2.0,
                )
            claim = self._repeats.take_over(claim, exchange.request_id)
        return claim, None

    async def _sent_again(self, request: ImageRequest, caller: Caller, repeats: Repeats) -> Record | None:
        """The same request of the same caller, whose client left a short time ago. Each is gone on with by one."""
        digest = await asyncio.to_thread(digest_of, request) if self._left else None
        for request_id, record in tuple(self._left.items()):
            if record.created < time.time() - SENT_AGAIN_S:
                self._left.pop(request_id, None)
            elif record.caller.key == caller.key and record.left is not None and await record.left == digest:
                if self._left.pop(request_id, None) is None:
                    continue  # another was quicker
                if record.task is not None:
                    record.waiting += 1
                    return record
                if record.error is not None and not record.error.retry:
                    raise record.error
                if record.completed is not None and (again := await self._again(record, record.completed, repeats)):
                    return again
        return None

    async def _again(self, record: Record, kept: Completed, repeats: Repeats) -> Record | None:
        """An ended request as if it ended now; None if its pictures are gone."""
        document = (await self._kept.find(record.request_id) if self._kept is not None else None) or {}
        completed = await repeats.completed(kept, document["form"]) if document.get("form") else None
        if completed is None:
            return None
        ended = asyncio.get_running_loop().create_future()
        ended.set_result(completed)
        return replace(record, task=ended)

    async def wait(self, record: Record, receive: Receive) -> Completed:
        """The result, while the client waits. ClientGone if it leaves.

        What is to go on without it is kept for a client that asks, or sends the request again.
        """
        assert record.task is not None
        try:
            return await unless_gone(receive, record.task)
        except ClientGone:
            record.later = True
            record.waiting -= 1
            if self._unwanted(record) and self._gateway.abandon(record.request_id):
                raise
            if record.claim is None:
                record.left = asyncio.create_task(asyncio.to_thread(digest_of, record.request))
                self._left[record.request_id] = record
                if len(self._left) > self._remembered:
                    self._left.popitem(last=False)
            raise

    @staticmethod
    def _unwanted(record: Record) -> bool:
        return not (record.waiting or record.wanted)

    async def _run(
        self, record: Record, work: Callable[[], Coroutine[Any, Any, Completed]], reservation: Reservation | None
    ) -> Completed:
        try:
            if record.begun is not None:
                await self._begin(record, record.begun)
                if self._unwanted(record):  # while that was written
                    raise given_up()
            completed = await work()
        except asyncio.CancelledError:
            record.error = RequestError(503, "The router was stopped.", code="cancelled", type=SERVER)
            raise
        except Exception as error:
            if record.task is not None:
                record.task.add_done_callback(_looked_at)
            refused = as_request_error(error)
            if refused.status == 500 and record.later:  # nobody is there who would report it
                log.error("unhandled error", exc_info=error, extra={"request_id": record.request_id})
            await self._end(record, None, refused)
            raise
        else:
            await self._end(record, completed, None)
            return completed
        finally:
            if reservation is not None:
                reservation.release()
            record.task = None
            record.ended = True
            self._running.pop(record.request_id, None)
            self._ended[record.request_id] = record
            if len(self._ended) > self._remembered:
                self._ended.popitem(last=False)

    async def _begin(self, record: Record, begun: asyncio.Future[None]) -> None:
        """Write down what a restart needs, before anything is sent."""
        try:
            if self._kept is not None:
                await self._kept.begin(record.request_id, await self._document(record, PROCESSING))
                if record.claim is not None and self._repeats is not None:
                    await self._repeats.keep(record.claim)
        except OSError as problem:
            log.error("request %s not kept", record.request_id, exc_info=problem)
            record.sure = record.later = False
            refused = RequestError(
                503,
                "The request could not be written down, so nothing was sent to a provider.",
                code="storage_unavailable",
                type=SERVER,
                retry=True,
                retry_after_s=5.0,
            )
            begun.set_exception(refused)
            raise refused from problem
        except BaseException:
            begun.cancel()
            raise
        begun.set_result(None)

    async def _end(self, record: Record, completed: Completed | None, error: RequestError | None) -> None:
        """Note the outcome: without the pictures' bytes, with links to them if they are to be asked for later."""
        request = record.request
        if request.images or request.extra:
            record.request = replace(request, images=(), mask=None, markup=None, extra={})
        record.error = error
        try:
            if completed is not None:
                record.completed = await self._lasting(completed, record)
            if record.later:
                await self._keep(record, completed.response_format if completed is not None else None)
        except OSError as problem:  # a full disk must not take the picture from a client that is waiting for it
            log.error("result of %s not kept", record.request_id, exc_info=problem)
            if record.completed is None:
                record.error = RequestError(500, "The result could not be kept.", code="result_lost", type=SERVER)

    async def _keep(self, record: Record, form: str | None) -> None:
        """The outcome on disk; then whoever is to be told of it is told."""
        document = await self._document(record, ENDED)
        document["form"] = form
        if self._kept is not None:
            await self._kept.write(record.request_id, document)
        if document["webhook"] is not None:
            self._call_back(record.request_id, document)
        elif record.sure and self._kept is not None:
            await self._kept.finish(record.request_id)

    async def _document(self, record: Record, state: str) -> Document:
        """What is kept of a request: see ``kept.py``."""
        url = record.request.webhook_url
        told = record.outcome if state == ENDED else PROCESSING
        return {
            "state": state,
            "key": record.caller.key,
            "created": record.created,
            "base_url": record.base_url,
            "request": request_as_dict(record.request),
            "body": (await record.described_as(told)).decode(),
            "webhook": {"url": url, "at": int(time.time()), "tries": 0, "due": 0.0} if url is not None else None,
        }

    def _call_back(self, request_id: str, document: Document) -> None:
        """Tell the receiver how the request ended; how often that was tried is kept."""
        hook, data = document["webhook"], document["body"]
        if self._webhooks is None:
            log.warning("nobody is told of %s: webhooks are no longer configured", request_id)
            return
        outcome = orjson.loads(data)["status"]
        body = f'{{"type":"image.{outcome}","timestamp":{hook["at"]},"data":{data}}}'.encode()

        async def note(event: Event | None) -> None:
            if self._kept is None:
                return
            if event is None:
                await self._kept.finish(request_id)
            else:
                hook.update(tries=event.tries, due=event.due)
                await self._kept.write(request_id, document)

        event = Event(hook["url"], _message(request_id), body, hook["tries"], hook["due"], hook["at"])
        self._webhooks.send(event, note)

    # --- from one process to the next -------------------------------------------------------------------------

    async def resume(self, owner: str, cut_off: Iterable[CutOff]) -> None:
        """Go on where an earlier process stopped; returns when everything it left can be asked for.

        ``owner``: this router's ledger. ``cut_off``: the ledger's requests that were at a provider, so that those
        whose clients meant to wait are not forgotten either. OSError if the store cannot be read.
        """
        if self._kept is None:
            return
        self._kept.owner = owner
        for request_id, document in await self._kept.unfinished():
            if document["state"] == PROCESSING:
                caller, request = Caller(key=document["key"]), request_from_dict(document["request"])
                left = CutOff(request_id, document["created"], caller, request, document["base_url"])
                self._take_up(left, awaited=True)
            elif document["webhook"] is not None:
                self._call_back(request_id, document)
            else:
                await self._kept.finish(request_id)
        for left in cut_off:
            if left.request_id not in self._running:
                self._take_up(left, awaited=False)

    def _take_up(self, left: CutOff, *, awaited: bool) -> None:
        record = Record(left.request_id, left.created, left.caller, left.request, left.base_url, later=True, sure=True)
        self._go(
            record, lambda: self._gateway.resume(record.request_id, record.request, awaited=awaited), reservation=None
        )

    async def close(self, grace_s: float = 5.0) -> None:
        """After the gateway: write down how the last requests ended, and let running calls to receivers end."""
        tasks = [record.task for record in self._running.values() if record.task is not None]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=grace_s)
            for task in late:
                task.cancel()
        if self._webhooks is not None:
            await self._webhooks.close(grace_s)

    async def _lasting(self, completed: Completed, record: Record) -> Completed:
        if completed.response_format == "url" and all(image.url is not None for image in completed.images):
            return completed
        images = []
        for image in completed.images:
            url = image.url
            if url is None and record.later and self._store is not None:
                url = await self._store.put(await raw_bytes(image), image.format or "png", record.request_id)
            images.append(image.linked(url))
        return changed(completed, images=tuple(images), response_format="url")

    # --- asked for later -------------------------------------------------------------------------------------

    async def described(self, request_id: str, caller: Caller, base_url: str) -> tuple[bytes, bool]:
        """A request of this caller, and whether it still runs; RequestError 404 for all others.

        ``base_url``: where this caller reaches us, for links to pictures of a request that only the ledger remembers.
        """
        record = self._running.get(request_id) or self._ended.get(request_id)
        if record is not None and record.caller.key == caller.key:
            return await record.describe(), not record.ended
        if record is None and self._kept is not None:
            document = await self._kept.find(request_id)
            if document is not None and document["key"] == caller.key:
                return document["body"].encode(), document["state"] == PROCESSING
            if document is None and (past := await self._past(request_id, caller, base_url)) is not None:
                return await past.describe(), False
        raise RequestError(404, "There is no such request, or it was too long ago.", code="request_not_found")

    async def _past(self, request_id: str, caller: Caller, base_url: str) -> Record | None:
        """A request that an earlier process answered, as far as its pictures are still kept: from the ledger's rows."""
        images = await self._store.pictures(request_id) if self._store is not None else ()
        completed = await self._gateway.recorded(request_id, caller.key, images) if images else None
        if completed is None:
            return None
        request = ImageRequest(completed.operation, completed.model, "", len(images), quality=completed.quality)
        return Record(request_id, completed.created, caller, request, base_url, True, completed=completed, ended=True)

    async def purge(self, request_id: str, caller: Caller) -> dict[str, Any]:
        """Delete an ended request's pictures and all that is remembered of it."""
        _, running = await self.described(request_id, caller, "")
        if running:
            raise RequestError(400, "The request is still running.", code="request_running")
        self._ended.pop(request_id, None)
        if self._webhooks is not None:
            await self._webhooks.cancel(_message(request_id))
        if self._kept is not None:
            await self._kept.finish(request_id)
        deleted = await self._store.purge(request_id) if self._store is not None else 0
        return {"id": request_id, "object": "request.purged", "deleted_pictures": deleted}


def _message(request_id: str) -> str:
    return f"msg_{request_id}"


def _looked_at(task: asyncio.Future[Completed]) -> None:
    """The outcome is in the record; asyncio need not complain that nobody fetched it."""
    if not task.cancelled():
        task.exception()


class RequestState(Guarded):
    """GET /v1/requests/{id}; DELETE removes its pictures."""

    def __init__(
        self, requests: Requests, auth: Authenticator, base_url: Callable[[Exchange, Scope], str] = lambda *_: ""
    ) -> None:
        self._requests = requests
        self._auth = auth
        self._base_url = base_url

    async def handle(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        caller = exchange.caller = self._auth.caller(exchange)
        request_id: str = scope["path_params"]["request_id"]
        if exchange.method == "DELETE":
            await send_json(send, 200, orjson.dumps(await self._requests.purge(request_id, caller)))
            return
        body, running = await self._requests.described(request_id, caller, self._base_url(exchange, scope))
        headers = [(b"cache-control", b"no-store"), *([(b"retry-after", b"2")] if running else [])]
        await send_json(send, 200, body, headers)


async def send_accepted(record: Record, send: Send) -> None:
    """202: the work goes on, and this is where to ask."""
    location = f"/v1/requests/{record.request_id}".encode()
    headers = [(b"location", location), (b"retry-after", b"2"), (b"preference-applied", b"respond-async")]
    await send_json(send, 202, await record.describe(), headers)
