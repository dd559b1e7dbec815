"""One HTTP/1.1 connection: a request is written, its answer read, and the connection is free for the next.

llhttp reads the answers, as it does for the server; a request in memory is written without a copy. Nothing is
repeated, followed or decoded here, and every failure is one of httpx's exceptions.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Mapping
from typing import Any, Protocol

import httptools
import httpx

from router.deadline import Deadline
from router.whole import raw_headers

READ_AHEAD = 256 * 1024  # bytes of an answer that may wait for their reader
OVERHEAD = 64 * 1024  # bytes an answer may bring before, between and after those of its body
MAX_HEADERS = 256
WRITE_TOGETHER = 64 * 1024  # a body up to here is joined to its head: one segment, one system call

Failures = Mapping[type[BaseException], type[httpx.TransportError]]
Origin = tuple[str, str, int]  # scheme, host, port

# What the event loop and the parser raise once a request is under way. The nearest base class that is listed decides.
EXCHANGING: Failures = {
    TimeoutError: httpx.ReadTimeout,  # the kernel gave up on a peer that does not acknowledge
    OSError: httpx.ReadError,
    RuntimeError: httpx.ReadError,
    httptools.HttpParserError: httpx.RemoteProtocolError,
    httptools.HttpParserUpgrade: httpx.RemoteProtocolError,
}


def translated(error: BaseException, table: Failures, request: httpx.Request | None) -> httpx.TransportError:
    """The httpx exception for what failed underneath. Its message names no host."""
    known = next((table[kind] for kind in type(error).__mro__ if kind in table), httpx.ReadError)
    return known(type(error).__name__, request=request)


class Owner(Protocol):
    """Who keeps connections: told when one opens, is free for another request, or is gone."""

    def opened(self, connection: Connection) -> None: ...
    def free(self, connection: Connection) -> None: ...
    def lost(self, connection: Connection) -> None: ...


class Answer(httpx.AsyncByteStream):
    """One answer as it arrives; once its head is there, the stream of its body."""

    def __init__(
        self, connection: Connection, request: httpx.Request, read_s: float | None, slots: asyncio.Semaphore | None
    ) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.complete = False
        self._connection = connection
        self._request = request
        self._read_s = read_s
        self._slots = slots
        self._pieces: deque[bytes] = deque()
        self._waiting = 0
        self._error: httpx.TransportError | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def encoded(self) -> bool:
        return any(name.lower() == b"content-encoding" for name, _ in self.headers)

    async def head(self) -> None:
        while not self.status:
            await self._change()

    def rest(self) -> bytes:
        """What has arrived and was not read yet."""
        self._waiting = 0
        pieces, self._pieces = self._pieces, deque()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        while not self._pieces:
            if self.complete:
                raise StopAsyncIteration
            await self._change()
        piece = self._pieces.popleft()
        self._waiting -= len(piece)
        if self._waiting <= READ_AHEAD // 2:
            self._connection.resume(self)
        return piece

    async def aclose(self) -> None:
        if not self.complete:
            self.end(httpx.ReadError("closed before its end", request=self._request))
            self._connection.abort()

    async def _change(self) -> None:
        """Wait for more of the answer; raise what became of it instead."""
        if self._error is not None:
            raise self._error
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            if self._read_s is None:
                await self._waiter
            else:
                with Deadline(self._read_s):
                    await self._waiter
        except TimeoutError:
            await self.aclose()
            raise httpx.ReadTimeout("nothing came in time", request=self._request) from None
        finally:
            self._waiter = None
        if self._error is not None:
            raise self._error

    # --- for the connection -----------------------------------------------------------------------------------------

    def begin(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.status, self.headers = status, headers
        self._wake()

    def feed(self, data: bytes) -> bool:
        """More of the body; False if the reader should catch up first."""
        self._pieces.append(data)
        self._waiting += len(data)
        self._wake()
        return self._waiting <= READ_AHEAD

    def end(self, error: httpx.TransportError | None = None) -> None:
        if self.complete or self._error is not None:
            return
        self.complete, self._error = error is None, error
        if self._slots is not None:
            self._slots.release()
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Connection(asyncio.Protocol):
    """One connection: carries a request, reads its answer, and is then free for the next."""

    def __init__(self, owner: Owner, origin: Origin) -> None:
        self.origin = origin
        self.idle_since = 0.0
        self._owner = owner
        self._parser = httptools.HttpResponseParser(self)
        self._transport: Any = None
        self._request: httpx.Request | None = None
        self._answer: Answer | None = None
        self._headers: list[tuple[bytes, bytes]] = []
        self._sending = False
        self._drained: asyncio.Future[None] | None = None
        self._paused = False
        self._body_bytes = 0
        self._overhead = 0

    @property
    def usable(self) -> bool:
        return not self._transport.is_closing()

    def begin(self, request: httpx.Request, read_s: float | None, slots: asyncio.Semaphore | None) -> Answer:
        self._request = request
        self._body_bytes = self._overhead = 0
        self._answer = Answer(self, request, read_s, slots)
        return self._answer

    async def send(self, head: bytes, body: bytes | httpx.AsyncByteStream, answer: Answer) -> None:
        """Write the request; stop when the answer, or the end of the connection, comes first."""
        assert self._request is not None
        self._request.extensions["sent"] = True
        write = self._transport.write
        if isinstance(body, bytes):
            if len(body) <= WRITE_TOGETHER:
                write(head + body)
            else:
                write(head)
                write(body)
            return
        chunked = b"\r\ntransfer-encoding: chunked\r\n" in head
        write(head)
        self._sending = True
        try:
            async for piece in body:
                if answer.complete or self._answer is not answer:
                    return  # refused halfway, or broken off: the answer says which
                if piece:
                    write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
                if self._drained is not None:
                    await self._drained
            if chunked:
                write(b"0\r\n\r\n")
            self._sending = False
        finally:
            if self._sending:  # what was not sent can never be: the connection ends with this answer
                self.abort()

    def resume(self, answer: Answer) -> None:
        if self._paused and self._answer is answer:
            self._paused = False
            self._transport.resume_reading()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # --- called by the event loop -------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._owner.opened(self)

    def data_received(self, data: bytes) -> None:
        if self._answer is None:
            self.abort()  # an answer nobody asked for
            return
        before = self._body_bytes
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(translated(error, EXCHANGING, self._request))
            return
        if self._body_bytes == before:
            self._overhead += len(data)
            if self._overhead > OVERHEAD:
                self._fail(httpx.RemoteProtocolError("the head of the answer does not end", request=self._request))

    def connection_lost(self, exc: Exception | None) -> None:
        self._owner.lost(self)
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        answer, request = self._answer, self._request
        if answer is None:
            return
        if exc is not None:
            kind = httpx.WriteError if self._sending else None
            self._fail(kind(type(exc).__name__, request=request) if kind else translated(exc, EXCHANGING, request))
        elif answer.status and not _framed(answer.headers):
            self._answer = None  # such an answer ends with its connection
            answer.end()
        else:
            self._fail(httpx.RemoteProtocolError("the peer closed before the answer was complete", request=request))

    def pause_writing(self) -> None:
        self._drained = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        self._drained = None

    # --- called by the parser -----------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._headers = []
        if self._answer is None:
            self.abort()  # an answer nobody asked for, right behind the one that was

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name, value))
        if len(self._headers) > MAX_HEADERS:
            raise ValueError("too many headers")

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status >= 200 and self._answer is not None:
            # Trailers are parsed like headers, into a list nobody looks at.
            headers, self._headers = self._headers, []
            self._answer.begin(status, headers)
            if self._request is not None and self._request.method == "HEAD":
                answer, self._answer = self._answer, None
                answer.end()
                self._transport.close()

    def on_body(self, data: bytes) -> None:
        self._body_bytes += len(data)
        if self._answer is not None and not self._answer.feed(data) and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        answer = self._answer
        if answer is None or not answer.status:
            return  # an interim answer: the real one follows
        self.resume(answer)
        self._answer = self._request = None  # an idle connection must not keep a picture in memory
        if self._sending:
            self.resume_writing()  # let the sender see that nobody wants the rest
        reusable = (
            not self._sending and self._parser.should_keep_alive() and not self._transport.get_write_buffer_size()
        )
        if reusable and self.usable:
            self._owner.free(self)
        elif not self._sending:
            self._transport.close()
        answer.end()

    def _fail(self, error: httpx.TransportError) -> None:
        answer, self._answer = self._answer, None
        self._request = None
        if answer is not None:
            answer.end(error)
        self.abort()


def written(request: httpx.Request) -> tuple[bytes, bytes | httpx.AsyncByteStream]:
    """The request's head as it goes over the wire, and its body. LocalProtocolError if a header would break out."""
    stream = request.stream
    body: Any = b"".join(stream) if isinstance(stream, httpx.ByteStream) else stream  # the one piece itself
    lines = [request.method.encode("ascii") + b" " + request.url.raw_path + b" HTTP/1.1"]
    said = set()
    for name, value in raw_headers(request):
        lowered = name.lower()
        if lowered not in _OURS:
            said.add(lowered)
            lines.append(name + b": " + value)
    if b"host" not in said:
        lines.append(b"Host: " + request.url.netloc)
    if b"content-length" not in said:
        if not isinstance(body, bytes):
            lines.append(b"transfer-encoding: chunked")
        elif body or request.method not in ("GET", "HEAD"):
            lines.append(b"content-length: %d" % len(body))
    lines.append(b"accept-encoding: identity\r\n\r\n")
    head = b"\r\n".join(lines)
    ends = len(lines) + 1
    if head.count(b"\n") != ends or head.count(b"\r") != ends or b"\0" in head:
        raise httpx.LocalProtocolError("a header of the request holds a line break", request=request)
    return head, body


_OURS = frozenset({b"accept-encoding", b"transfer-encoding", b"connection"})


def _framed(headers: list[tuple[bytes, bytes]]) -> bool:
    """Whether the answer said where its body ends."""
    return any(name.lower() in (b"content-length", b"transfer-encoding") for name, _ in headers)
