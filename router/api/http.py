"""The thin layer between ASGI and our endpoints: one Exchange per request, bounded bodies, errors in OpenAI's shape.

Plain ASGI on purpose: a request costs two function calls here, and every answer of the whole application, a crash and a
mounted page included, passes ``Front`` and leaves with a request id.
"""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from router.api.reply import RawHeaders, encode_error
from router.deadline import Deadline
from router.errors import SERVER, RequestError
from router.ids import new_id
from router.limits import Slot
from router.types import Caller

log = logging.getLogger("pixelroute.api")
T = TypeVar("T")

_KEY = "pixelroute.exchange"
_JSON = (b"content-type", b"application/json")
_SMALL = 64 * 1024


class ClientGone(Exception):
    """The client closed its connection before the answer was ready."""


@dataclass(slots=True, eq=False)
class Exchange:
    """One request and what has become of it so far: the source of the canonical log line."""

    request_id: str
    started: float  # perf_counter seconds
    method: str
    path: str
    headers: Mapping[bytes, bytes]
    query: bytes = b""
    caller: Caller | None = None
    operation: str = ""
    model: str = ""
    status: int = 0
    body_in: int = 0
    body_out: int = 0
    error: RequestError | None = None
    gone: bool = False
    answered: bool = False  # the whole answer has been handed to the server
    completed: Any = None  # router.types.Completed once there is one
    limits: RawHeaders | tuple[()] = ()  # what the answer says of its key's limits

    @property
    def elapsed_s(self) -> float:
        return time.perf_counter() - self.started

    def header(self, name: bytes) -> str:
        return self.headers.get(name, b"").decode("latin-1").strip()

    def asks(self, name: str) -> bool:
        """Whether the query string holds ``name=true``. RequestError for another word: a dry run must not be paid."""
        if not self.query:
            return False
        wanted = name.lower().encode()
        asked = False
        for pair in self.query.split(b"&"):
            key, _, value = pair.partition(b"=")
            if key.lower() == wanted:
                if value.lower() not in (b"true", b"false"):
                    raise RequestError(400, f"'{name}' must be true or false.", code="invalid_value", param=name)
                asked = value.lower() == b"true"
        return asked


def exchange_of(scope: Scope) -> Exchange:
    exchange: Exchange = scope[_KEY]
    return exchange


def new_request_id() -> str:
    return new_id("req")


class Front:
    """The outermost layer: request ids and standard headers on every answer, and no answer that is not ours.

    ``lanes`` are endpoints by method and exact path that are gone to directly: they answer their errors themselves, so
    that nothing between adds but time.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        new_id: Callable[[], str] = new_request_id,
        finished: Callable[[Exchange], None] | None = None,
        lanes: Mapping[tuple[str, str], ASGIApp] | None = None,
    ) -> None:
        self.app = app
        self._lanes = lanes or {}
        self._new_id = new_id
        self._finished = finished

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = Exchange(
            self._new_id(),
            time.perf_counter(),
            scope["method"],
            scope["path"],
            dict(scope["headers"]),
            scope["query_string"],
        )
        scope[_KEY] = exchange

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"x-request-id", exchange.request_id.encode()),
                    (b"openai-processing-ms", b"%d" % (exchange.elapsed_s * 1000)),
                    (b"openai-version", b"2020-10-01"),
                    *exchange.limits,
                ]
            else:
                exchange.body_out += len(message.get("body", b""))
                exchange.answered = not message.get("more_body", False)
            await send(message)

        try:
            app = self._lanes.get((exchange.method, exchange.path), self.app)
            await app(scope, receive, answer)
        except ClientGone:
            exchange.gone = True
        except Exception as error:
            if exchange.status and not exchange.answered:
                raise  # half an answer is out: only closing the connection is honest
            if not exchange.answered:
                await fail(exchange, answer, error)
        finally:
            if self._finished is not None:
                try:
                    self._finished(exchange)
                except Exception:
                    log.exception("observer failed", extra={"request_id": exchange.request_id})
            del scope[_KEY]  # the server keeps the scope while the connection is idle, and with it would keep a picture


class Guarded(ABC):
    """An endpoint: its errors become answers. ``handle`` does the work."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchange_of(scope)
        try:
            await self.handle(exchange, scope, receive, send)
        except ClientGone:
            exchange.gone = True
        except Exception as error:
            if exchange.status:
                raise
            await fail(exchange, send, error, receive)

    @abstractmethod
    async def handle(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request. Any exception becomes an error answer, as long as nothing has been sent."""


# --- answers ----------------------------------------------------------------------------------------------------


async def send_json(send: Send, status: int, body: bytes | Sequence[bytes], headers: RawHeaders | None = None) -> None:
    """A JSON answer. Large pieces are sent one by one, so that nothing large is copied."""
    pieces = [body] if isinstance(body, bytes) else list(body)
    length = sum(map(len, pieces))
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [_JSON, (b"content-length", b"%d" % length), *(headers or ())],
        }
    )
    if length <= _SMALL:
        await send({"type": "http.response.body", "body": b"".join(pieces)})
        return
    last = len(pieces) - 1
    for number, piece in enumerate(pieces):
        await send({"type": "http.response.body", "body": piece, "more_body": number < last})


async def fail(exchange: Exchange, send: Send, error: Exception, receive: Receive | None = None) -> None:
    """Answer with an error object. What is not a RequestError is a bug: logged whole, told to nobody."""
    refused = as_request_error(error)
    if refused.status == 500:
        log.error("unhandled error", exc_info=error, extra={"request_id": exchange.request_id})
    exchange.error = refused
    body, headers = encode_error(refused)
    if refused.status != 413 or receive is None:
        await send_json(send, refused.status, body, headers)
        return
    # The client is still sending. Answer at once, then read on for a moment: closing a socket with unread bytes
    # resets it, and the client would never see the answer.
    headers.append((b"connection", b"close"))
    await send(
        {
            "type": "http.response.start",
            "status": 413,
            "headers": [_JSON, (b"content-length", b"%d" % len(body)), *headers],
        }
    )
    await send({"type": "http.response.body", "body": body, "more_body": True})
    try:
        with Deadline(2.0):
            while (message := await receive())["type"] == "http.request" and message.get("more_body"):
                pass
    except TimeoutError:
        pass
    await send({"type": "http.response.body", "body": b""})


def as_request_error(error: Exception) -> RequestError:
    """Any exception as the answer it deserves."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, HTTPException):
        if error.status_code == 404:
            return RequestError(404, "Unknown path. The Images API is under /v1.", code=None)
        if error.status_code == 405:
            return RequestError(
                405, "This path does not support that method.", code="method_not_allowed", headers=error.headers
            )
        if error.status_code < 500:
            return RequestError(error.status_code, "The request cannot be served.", headers=error.headers)
    return RequestError(500, "The router failed to handle this request. It has been logged.", type=SERVER)


# --- bodies -----------------------------------------------------------------------------------------------------


class Intake:
    """Reads request bodies, each within a limit, all together within another."""

    def __init__(self, *, body_bytes: int, in_flight_bytes: int, idle_s: float = 60.0) -> None:
        self.body_bytes = body_bytes
        self._in_flight_bytes = in_flight_bytes
        self._idle_s = idle_s
        self.in_flight = 0  # bytes of bodies of requests not yet answered

    def reserve(self, exchange: Exchange) -> Reservation:
        """A claim on memory for one request, to be released at its end. RequestError before anything is read."""
        declared = _declared(exchange)
        if declared is not None and declared > self.body_bytes:
            raise self._too_large()
        reservation = Reservation(self)
        if declared:
            reservation.grow(declared)
        return reservation

    def _too_large(self) -> RequestError:
        return RequestError(413, f"The request body is larger than {self.body_bytes} bytes.", code="request_too_large")

    async def feed(
        self, exchange: Exchange, receive: Receive, reservation: Reservation, take: Callable[[bytes], object]
    ) -> None:
        """Give the body to ``take`` as it arrives."""
        try:
            with Deadline(self._idle_s) as patience:
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGone
                    chunk: bytes = message.get("body", b"")
                    exchange.body_in += len(chunk)
                    if exchange.body_in > self.body_bytes:
                        raise self._too_large()
                    if exchange.body_in > reservation.held:
                        reservation.grow(exchange.body_in - reservation.held)
                    if chunk:
                        take(chunk)
                    if not message.get("more_body", False):
                        return
                    patience.again()
        except TimeoutError:
            raise RequestError(
                408, "The request body did not arrive in time.", code="request_timeout", headers={"Connection": "close"}
            ) from None

    async def whole(self, exchange: Exchange, receive: Receive, reservation: Reservation) -> bytes:
        """The body in one piece."""
        pieces: list[bytes] = []
        await self.feed(exchange, receive, reservation, pieces.append)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class Reservation:
    """What one request holds while it is worked on: bytes in flight, and its place among those of its key."""

    __slots__ = ("_intake", "held", "slot")

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self.held = 0
        self.slot: Slot | None = None

    def grow(self, by: int) -> None:
        if self._intake.in_flight + by > self._intake._in_flight_bytes and self._intake.in_flight > self.held:
            raise RequestError(
                503,
                "The router is handling as many pictures as it can hold. Try again shortly.",
                code="overloaded",
                type=SERVER,
                retry=True,
                retry_after_s=1.0,
            )
        self._intake.in_flight += by
        self.held += by

    def release(self) -> None:
        self._intake.in_flight -= self.held
        self.held = 0
        if self.slot is not None:
            self.slot.release()


def _declared(exchange: Exchange) -> int | None:
    text = exchange.headers.get(b"content-length")
    if text is None:
        return None
    if not text.isdigit():
        raise RequestError(400, "The Content-Length header is not a number.")
    return int(text[:20])


# --- clients that leave -----------------------------------------------------------------------------------------

_WATCH_AFTER_S = 0.2


async def unless_gone(receive: Receive, task: asyncio.Future[T]) -> T:
    """The task's result; ClientGone if the client leaves before it is there. The task goes on, whoever stops waiting.

    Watching costs a task, so it begins only when the answer takes longer than a moment.
    """
    loop = asyncio.get_running_loop()
    waiting: asyncio.Future[None] = loop.create_future()
    watcher: asyncio.Task[None] | None = None

    def wake(_: object = None) -> None:
        if not waiting.done():
            waiting.set_result(None)

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        wake()

    def start() -> None:
        nonlocal watcher
        watcher = asyncio.ensure_future(watch())

    task.add_done_callback(wake)
    timer = loop.call_later(_WATCH_AFTER_S, start)
    try:
        await waiting
    finally:
        timer.cancel()
        if watcher is not None:
            watcher.cancel()
    if not task.done():
        raise ClientGone
    return task.result()
