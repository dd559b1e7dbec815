"""The connection pool against real hosts on loopback: what goes over the wire, what comes back, and how it fails."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import httptools
import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.http1 import EXCHANGING, Connection, translated
from router.pool import CONNECTING, AddressRefused, PoolTransport, is_public
from tests.router.loopback import CERTIFICATE, Exchange, closed_port, host

pytestmark = pytest.mark.anyio


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """Both event loops: uvloop serves, asyncio is what embeds."""
    return "asyncio", {"use_uvloop": request.param}


@pytest.fixture
async def pool() -> AsyncIterator[PoolTransport]:
    transport = PoolTransport()
    yield transport
    await transport.aclose()


async def ok(exchange: Exchange) -> None:
    await exchange.reply()


async def whole(response: httpx.Response) -> bytes:
    return response.content if response.is_closed else b"".join([chunk async for chunk in response.aiter_raw()])


def post(url: str, content: Any = b"{}", **extensions: Any) -> httpx.Request:
    return httpx.Request("POST", url, content=content, extensions=extensions)


# --- the wire ------------------------------------------------------------------------------------------------------


async def test_a_request_goes_out_as_it_is(pool: PoolTransport) -> None:
    async with host(ok) as peer:
        headers = [("X-One", "1"), ("X-Two", "a"), ("X-Two", "b"), ("Accept-Encoding", "gzip, br")]
        request = httpx.Request("POST", peer.url("/a%2Fb?c=d%20e"), headers=headers, content=b'{"prompt": "\xc3\xa9"}')
        response = await pool.handle_async_request(request)
    (received,) = peer.requests
    assert received.line == "POST /a%2Fb?c=d%20e HTTP/1.1"
    assert received.body == b'{"prompt": "\xc3\xa9"}'
    assert received.header("host") == f"127.0.0.1:{peer.port}"
    assert [value for name, value in received.headers if name == "X-Two"] == ["a", "b"]
    assert received.header("accept-encoding") == "identity", "compression is never asked for"
    assert (response.status_code, response.content, response.is_closed) == (200, b"ok", True)
    assert request.extensions["sent"] is True


async def test_a_large_body_goes_out_whole(pool: PoolTransport) -> None:
    content = bytes(range(256)) * 20_000
    async with host(ok) as peer:
        await pool.handle_async_request(post(peer.url(), content))
    assert peer.requests[0].body == content
    assert peer.requests[0].header("content-length") == str(len(content))


@pytest.mark.parametrize("length", [None, 300_000])
async def test_a_body_may_be_produced_while_it_is_sent(pool: PoolTransport, length: int | None) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b"x" * 100_000

    async with host(ok) as peer:
        headers = {} if length is None else {"Content-Length": str(length)}
        await pool.handle_async_request(httpx.Request("POST", peer.url(), content=pieces(), headers=headers))
    (received,) = peer.requests
    assert received.body == b"x" * 300_000
    assert (received.header("transfer-encoding") == "chunked") is (length is None)


async def test_cookies_redirects_and_proxies_are_left_alone(
    pool: PoolTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def answer(exchange: Exchange) -> None:
        await exchange.reply(status="307 Temporary Redirect", headers="Set-Cookie: a=b\r\nLocation: /elsewhere\r\n")

    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{closed_port()}")
    async with host(answer) as peer:
        for _ in range(2):
            response = await pool.handle_async_request(post(peer.url("/first")))
            assert (response.status_code, response.headers["location"]) == (307, "/elsewhere")
    assert [received.path for received in peer.requests] == ["/first", "/first"]
    assert all(received.header("cookie") is None for received in peer.requests)


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "POST", "PUT"])
async def test_a_request_without_a_body_has_none(pool: PoolTransport, method: str) -> None:
    async with host(ok) as peer:
        for _ in range(2):
            request = httpx.Request(method, peer.url(), headers={"Host": "other.example"})
            assert (await pool.handle_async_request(request)).status_code == 200
    for received in peer.requests:
        assert received.header("host") == "other.example"
        assert received.header("transfer-encoding") is None
        assert received.header("content-length") == (None if method in ("GET", "HEAD") else "0")


async def test_an_early_refusal_is_read_while_the_body_is_still_being_sent(pool: PoolTransport) -> None:
    taken = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal taken
        while True:
            taken += 1
            yield b"x" * 100_000

    async def answer(exchange: Exchange) -> None:
        await exchange.reply(b"too large", status="413 Content Too Large")
        await asyncio.Event().wait()  # and never reads what is still coming

    async with host(answer, read_body=False) as peer:
        request = httpx.Request("POST", peer.url(), content=endless())
        async with asyncio.timeout(5):
            response = await pool.handle_async_request(request)
        assert (response.status_code, await whole(response)) == (413, b"too large")
        at_the_answer = taken
        await asyncio.sleep(0.05)
        assert taken == at_the_answer, "nobody goes on sending"


async def test_a_connection_with_an_unsent_body_is_not_used_again(pool: PoolTransport) -> None:
    async def answer(exchange: Exchange) -> None:
        await exchange.reply()
        if exchange.request.path == "/first":
            await asyncio.Event().wait()

    async with host(answer, read_body=False) as peer:
        assert (await pool.handle_async_request(post(peer.url("/first"), b"x" * 50_000_000))).status_code == 200
        assert (await pool.handle_async_request(post(peer.url("/second")))).status_code == 200
    assert peer.connections == 2


async def test_a_body_that_cannot_be_produced_ends_its_connection(pool: PoolTransport) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"x"
        raise LookupError("no more")

    async with host(ok) as peer:
        with pytest.raises(LookupError):
            await pool.handle_async_request(httpx.Request("POST", peer.url(), content=broken()))
        assert (await pool.handle_async_request(post(peer.url()))).status_code == 200
    assert [received.body for received in peer.requests] == [b"{}"]


# --- answers -------------------------------------------------------------------------------------------------------

HELLO = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
BODIES = {
    "whole": (HELLO, b"hello"),
    "empty": (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b""),
    "no content": (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
    "chunked": (CHUNKED + b"2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\nT: 1\r\n\r\n", b"hello"),
    "after an interim answer": (b"HTTP/1.1 103 Early Hints\r\nLink: </>\r\n\r\n" + HELLO, b"hello"),
}


@pytest.mark.parametrize("kind", BODIES)
async def test_every_way_of_framing_an_answer_is_read(pool: PoolTransport, kind: str) -> None:
    wire, expected = BODIES[kind]

    async def answer(exchange: Exchange) -> None:
        await exchange.write(wire)

    async with host(answer) as peer:
        for _ in range(2):
            assert await whole(await pool.handle_async_request(post(peer.url()))) == expected
    assert peer.connections == 1, "the connection was free for the next request"


async def test_an_answer_may_end_with_its_connection(pool: PoolTransport) -> None:
    async def answer(exchange: Exchange) -> None:
        await exchange.write(b"HTTP/1.0 200 OK\r\n\r\nhello")
        exchange.close()

    async with host(answer) as peer:
        assert await whole(await pool.handle_async_request(post(peer.url()))) == b"hello"


async def test_an_answer_to_head_has_no_body(pool: PoolTransport) -> None:
    async def answer(exchange: Exchange) -> None:
        await exchange.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")

    async with host(answer) as peer:
        response = await pool.handle_async_request(httpx.Request("HEAD", peer.url()))
        assert (response.headers["content-length"], await whole(response)) == ("5", b"")


WIRE = b"HTTP/1.1 100 Continue\r\n\r\n" + CHUNKED + b"5\r\nhello\r\n1;a=b\r\n \r\n5\r\nworld\r\n0\r\nTrailer: x\r\n\r\n"


class Wire:
    """Stands in for a socket's transport where a test plays the event loop."""

    def __init__(self) -> None:
        self.open = True

    def is_closing(self) -> bool:
        return not self.open

    def abort(self) -> None:
        self.open = False

    close = abort

    def get_write_buffer_size(self) -> int:
        return 0


@settings(max_examples=60, deadline=None)
@given(cuts=st.lists(st.integers(0, len(WIRE)), max_size=12))
def test_an_answer_is_the_same_however_it_is_cut(cuts: list[int]) -> None:
    async def play() -> tuple[int, list[tuple[bytes, bytes]], bytes, bool]:
        pool = PoolTransport()
        connection = Connection(pool, ("http", "peer.example", 80))
        connection.connection_made(Wire())  # type: ignore[arg-type]
        answer = connection.begin(post("http://peer.example"), None, None)
        for start, end in pairwise([0, *sorted(cuts), len(WIRE)]):
            connection.data_received(WIRE[start:end])
        await pool.aclose()
        return answer.status, answer.headers, answer.rest(), answer.complete

    assert asyncio.run(play()) == (200, [(b"Transfer-Encoding", b"chunked")], b"hello world", True)


async def test_a_large_answer_is_streamed_and_waits_for_its_reader(pool: PoolTransport) -> None:
    size = 64 * 1024 * 1024
    written = 0

    async def answer(exchange: Exchange) -> None:
        nonlocal written
        await exchange.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        while written < size:
            await exchange.write(b"x" * 65536)
            written += 65536

    async with host(answer) as peer:
        response = await pool.handle_async_request(post(peer.url()))
        assert not response.is_closed
        before = -1
        while written != before:  # the host is stopped by back-pressure when nothing moves any more
            before = written
            await asyncio.sleep(0.05)
        assert written < size / 2
        assert sum([len(chunk) async for chunk in response.aiter_raw()]) == size
        await response.aclose()
        await pool.handle_async_request(post(peer.url()))
    assert peer.connections == 1


async def test_leaving_an_answer_early_gives_its_connection_up(pool: PoolTransport) -> None:
    async def answer(exchange: Exchange) -> None:
        await exchange.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 1000)
        await exchange.hang()

    async with host(answer) as peer:
        for _ in range(2):
            response = await pool.handle_async_request(post(peer.url()))
            await response.aclose()
    assert peer.connections == 2


async def test_an_encoding_nobody_asked_for_is_not_undone(pool: PoolTransport) -> None:
    async def answer(exchange: Exchange) -> None:
        await exchange.reply(b"\x1f\x8b not really", headers="Content-Encoding: gzip\r\n")

    async with host(answer) as peer:
        response = await pool.handle_async_request(post(peer.url()))
        assert [chunk async for chunk in response.aiter_raw()] == [b"\x1f\x8b not really"]


# --- failures ------------------------------------------------------------------------------------------------------

BELOW = (OSError, httptools.HttpParserError, httptools.HttpParserUpgrade)


def kinds(kind: type[BaseException]) -> set[type[BaseException]]:
    """The class and everything below it that the loop, TLS, name look-up or the parser can raise."""
    known = {kind}.union(*(kinds(child) for child in kind.__subclasses__()))
    return {each for each in known if each.__module__.partition(".")[0] in ("builtins", "ssl", "socket", "httptools")}


async def test_every_failure_underneath_has_its_place() -> None:
    """Listed by hand, so that a class that appears underneath cannot pass unseen."""
    connecting = {kind: translated(kind.__new__(kind), CONNECTING, None) for kind in kinds(OSError)}
    assert {kind for kind, error in connecting.items() if type(error) is not httpx.ConnectError} == {TimeoutError}
    assert type(connecting[TimeoutError]) is httpx.ConnectTimeout
    exchanging = {kind: translated(kind.__new__(kind), EXCHANGING, None) for base in BELOW for kind in kinds(base)}
    found = {kind: type(error) for kind, error in exchanging.items()}
    assert {kind for kind, error in found.items() if error is httpx.RemoteProtocolError} == {
        httptools.HttpParserError,
        httptools.HttpParserCallbackError,
        httptools.HttpParserInvalidMethodError,
        httptools.HttpParserInvalidStatusError,
        httptools.HttpParserInvalidURLError,
        httptools.HttpParserUpgrade,
    }
    assert {kind for kind, error in found.items() if error is httpx.ReadTimeout} == {TimeoutError}
    assert {kind for kind, error in found.items() if error is httpx.ReadError} == kinds(OSError) - {TimeoutError}


async def test_a_translated_failure_tells_nothing() -> None:
    request = post("https://secret-host.example/v1")
    error = translated(OSError(111, "connect to secret-host.example refused"), CONNECTING, request)
    assert error.request is request
    assert "secret-host" not in str(error)


async def cut_before_the_answer(exchange: Exchange) -> None:
    exchange.close()


async def reset_before_the_answer(exchange: Exchange) -> None:
    exchange.reset()


async def cut_in_the_head(exchange: Exchange) -> None:
    await exchange.write(b"HTTP/1.1 200 OK\r\nContent-Le")
    exchange.close()


async def cut_in_the_body(exchange: Exchange) -> None:
    await exchange.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
    exchange.close()


async def cut_in_a_chunk(exchange: Exchange) -> None:
    await exchange.write(CHUNKED + b"64\r\nhalf")
    exchange.close()


async def cut_between_chunks(exchange: Exchange) -> None:
    await exchange.write(CHUNKED + b"4\r\nhalf\r\n")
    exchange.close()


async def reset_in_the_body(exchange: Exchange) -> None:
    await exchange.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nhalf")
    await asyncio.sleep(0.05)
    exchange.reset()


async def not_http(exchange: Exchange) -> None:
    await exchange.write(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")


async def bad_chunk(exchange: Exchange) -> None:
    await exchange.write(CHUNKED + b"zz\r\n")


async def two_lengths(exchange: Exchange) -> None:
    await exchange.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxy")


async def endless_header(exchange: Exchange) -> None:
    await exchange.write(b"HTTP/1.1 200 OK\r\nX-A: " + b"a" * 100_000 + b"\r\n\r\n")


async def endless_headers(exchange: Exchange) -> None:
    await exchange.write(b"HTTP/1.1 200 OK\r\n" + b"".join(b"X-%d: a\r\n" % n for n in range(5000)) + b"\r\n")


async def switching(exchange: Exchange) -> None:
    await exchange.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nabc")


async def length_and_chunks(exchange: Exchange) -> None:
    await exchange.write(CHUNKED[:-2] + b"Content-Length: 5\r\n\r\n5\r\nhello\r\n0\r\n\r\n")


async def endless_trailers(exchange: Exchange) -> None:
    await exchange.write(CHUNKED + b"2\r\nok\r\n0\r\n" + b"".join(b"X-%d: a\r\n" % n for n in range(5000)))
    await exchange.hang()


async def silence(exchange: Exchange) -> None:
    await exchange.hang()


async def silence_in_the_body(exchange: Exchange) -> None:
    await exchange.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
    await exchange.hang()


FAULTS = [
    (cut_before_the_answer, httpx.RemoteProtocolError),
    (reset_before_the_answer, httpx.ReadError),
    (cut_in_the_head, httpx.RemoteProtocolError),
    (cut_in_the_body, httpx.RemoteProtocolError),
    (cut_in_a_chunk, httpx.RemoteProtocolError),
    (cut_between_chunks, httpx.RemoteProtocolError),
    (reset_in_the_body, httpx.ReadError),
    (not_http, httpx.RemoteProtocolError),
    (bad_chunk, httpx.RemoteProtocolError),
    (two_lengths, httpx.RemoteProtocolError),
    (endless_header, httpx.RemoteProtocolError),
    (endless_headers, httpx.RemoteProtocolError),
    (switching, httpx.RemoteProtocolError),
    (length_and_chunks, httpx.RemoteProtocolError),
    (endless_trailers, httpx.RemoteProtocolError),
    (silence, httpx.ReadTimeout),
    (silence_in_the_body, httpx.ReadTimeout),
]


@pytest.mark.parametrize(("fault", "expected"), FAULTS, ids=[fault.__name__ for fault, _ in FAULTS])
async def test_a_broken_answer_is_told_apart(pool: PoolTransport, fault: Any, expected: type[Exception]) -> None:
    async with host(fault) as peer:
        request = post(peer.url(), timeout={"read": 0.2})
        with pytest.raises(httpx.TransportError) as caught:
            await whole(await pool.handle_async_request(request))
        assert type(caught.value) is expected
        assert request.extensions["sent"] is True, "the provider may have begun to work"
        assert str(peer.port) not in str(caught.value)


async def test_a_peer_that_stops_reading_is_a_failed_send(pool: PoolTransport) -> None:
    async def answer(exchange: Exchange) -> None:
        exchange.reset()

    async with host(answer, read_body=False) as peer:
        with pytest.raises(httpx.NetworkError):
            await pool.handle_async_request(post(peer.url(), b"x" * 50_000_000))


class Names:
    """Answers with these addresses, one list per question; an exception is raised, None never answers."""

    def __init__(self, *answers: list[str] | Exception | None) -> None:
        self._answers = list(answers)
        self.asked = 0

    async def __call__(self, host: str, port: int) -> list[str]:
        answer = self._answers[min(self.asked, len(self._answers) - 1)]
        self.asked += 1
        if answer is None:
            await asyncio.Event().wait()
        if isinstance(answer, Exception):
            raise answer
        return answer or []


async def not_sent(pool: PoolTransport, url: str, **timeout: float) -> httpx.TransportError:
    """The error of a request that provably never left."""
    request = post(url, timeout=timeout)
    with pytest.raises(httpx.TransportError) as caught:
        await pool.handle_async_request(request)
    await pool.aclose()
    assert request.extensions["sent"] is False
    return caught.value


async def test_nobody_listens() -> None:
    error = await not_sent(PoolTransport(), f"http://127.0.0.1:{closed_port()}")
    assert type(error) is httpx.ConnectError


async def test_the_name_does_not_exist() -> None:
    names = Names(socket.gaierror(socket.EAI_NONAME, "Name or service not known"))
    assert type(await not_sent(PoolTransport(resolve=names), "http://no.example")) is httpx.ConnectError


async def test_connecting_takes_too_long() -> None:
    error = await not_sent(PoolTransport(resolve=Names(None)), "http://slow.example", connect=0.05)
    assert type(error) is httpx.ConnectTimeout


async def test_the_host_speaks_no_tls() -> None:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await reader.read()
        writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        assert type(await not_sent(PoolTransport(), f"https://127.0.0.1:{port}")) is httpx.ConnectError


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1"])
async def test_a_certificate_nobody_vouches_for_is_refused(name: str) -> None:
    async with host(ok, tls=True) as peer:
        error = await not_sent(PoolTransport(), peer.url(scheme="https", name=name))
        assert type(error) is httpx.ConnectError
    assert not peer.requests


async def test_a_private_authority_may_be_trusted_but_never_nobody() -> None:
    trusting = ssl.create_default_context(cafile=CERTIFICATE)
    async with host(ok, tls=True) as peer:
        pool = PoolTransport(ssl_context=trusting)
        response = await pool.handle_async_request(post(peer.url(scheme="https", name="localhost")))
        assert response.status_code == 200
        await pool.aclose()
        error = await not_sent(PoolTransport(ssl_context=trusting), peer.url(scheme="https"))
        assert type(error) is httpx.ConnectError, "the certificate is for another name"
    careless = ssl.create_default_context()
    careless.check_hostname = False
    with pytest.raises(ValueError, match="must verify"):
        PoolTransport(ssl_context=careless)


@pytest.mark.parametrize("value", ["a\r\nX-Injected: 1", "a\nb", "a\rb"])
async def test_a_header_cannot_smuggle_in_another(value: str) -> None:
    async with host(ok) as peer:
        pool = PoolTransport()
        request = httpx.Request("POST", peer.url(), headers=[("X-A", value)], content=b"{}")
        with pytest.raises(httpx.LocalProtocolError):
            await pool.handle_async_request(request)
        await pool.aclose()
    assert not peer.requests


async def test_a_closed_pool_sends_nothing(pool: PoolTransport) -> None:
    async with host(ok) as peer:
        await pool.handle_async_request(post(peer.url()))
        await pool.aclose()
        with pytest.raises(httpx.ConnectError):
            await pool.handle_async_request(post(peer.url()))
    assert len(peer.requests) == 1


# --- connections ---------------------------------------------------------------------------------------------------


async def test_hundreds_of_requests_are_under_way_at_once(pool: PoolTransport) -> None:
    arrived = asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        if len(peer.requests) == 300:
            arrived.set()
        await arrived.wait()
        await exchange.reply()

    async with host(answer) as peer:
        responses = await asyncio.gather(*(pool.handle_async_request(post(peer.url())) for _ in range(300)))
    assert all(response.status_code == 200 for response in responses)


async def test_a_bound_on_connections_makes_the_next_one_wait() -> None:
    pool = PoolTransport(max_connections=1)
    release = asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        if exchange.request.path == "/large":
            await exchange.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab")
            await release.wait()
            await exchange.write(b"cd")
        elif exchange.request.path == "/cut":
            exchange.close()
        elif exchange.request.path == "/hang":
            await exchange.hang()
        else:
            await exchange.reply()

    async with host(answer) as peer:
        first = await pool.handle_async_request(post(peer.url("/large")))
        request = post(peer.url(), timeout={"pool": 0.05})
        with pytest.raises(httpx.PoolTimeout):
            await pool.handle_async_request(request)
        assert request.extensions["sent"] is False
        release.set()
        assert await whole(first) == b"abcd"
        # Every way a request can end frees its place: whole, cut, left early, cancelled.
        assert await whole(await pool.handle_async_request(post(peer.url()))) == b"ok"
        with pytest.raises(httpx.RemoteProtocolError):
            await pool.handle_async_request(post(peer.url("/cut")))
        release.clear()
        await (await pool.handle_async_request(post(peer.url("/large")))).aclose()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await pool.handle_async_request(post(peer.url("/hang")))
        release.set()
        response = await pool.handle_async_request(post(peer.url(), timeout={"pool": 1.0}))
        assert await whole(response) == b"ok"
    await pool.aclose()


async def test_an_answer_nobody_asked_for_is_never_given_to_anybody(pool: PoolTransport) -> None:
    """Neither one right behind an answer, nor one on an idle connection, nor half of one."""
    extra = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged"

    async def answer(exchange: Exchange) -> None:
        number = len(peer.requests)
        genuine = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%d" % number
        if number == 1:
            await exchange.write(genuine + extra)
        elif number == 2:
            await exchange.write(genuine + extra[:20])
        elif number == 3:
            await exchange.write(genuine)
            await asyncio.sleep(0.05)
            await exchange.write(extra)
        else:
            await exchange.write(genuine)
        if number == 3:
            written.set()

    written = asyncio.Event()
    async with host(answer) as peer:
        for number in range(1, 6):
            assert await whole(await pool.handle_async_request(post(peer.url()))) == b"%d" % number
            if number == 3:
                await written.wait()
                await asyncio.sleep(0.05)
    assert peer.connections == 4, "each forgery costs its connection; the last one serves two requests"


async def test_a_connection_the_peer_has_closed_is_not_used(pool: PoolTransport) -> None:
    closed = asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        await exchange.reply()
        exchange.close()
        closed.set()

    async with host(answer) as peer:
        for number in range(1, 4):
            assert (await pool.handle_async_request(post(peer.url()))).status_code == 200
            await closed.wait()
            closed.clear()
            await asyncio.sleep(0.02)
            assert peer.connections == number


async def test_connection_close_is_obeyed(pool: PoolTransport) -> None:
    async def answer(exchange: Exchange) -> None:
        await exchange.reply(headers="Connection: close\r\n")

    async with host(answer) as peer:
        for _ in range(2):
            assert await whole(await pool.handle_async_request(post(peer.url()))) == b"ok"
    assert peer.connections == 2


async def test_idle_connections_are_closed_in_time() -> None:
    gone = asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        await exchange.reply()
        await exchange.hang()
        gone.set()

    pool = PoolTransport(keepalive_s=0.1)
    async with host(answer) as peer:
        await pool.handle_async_request(post(peer.url()))
        assert not gone.is_set()
        await asyncio.wait_for(gone.wait(), 2)
    await pool.aclose()


# --- names ---------------------------------------------------------------------------------------------------------


async def test_a_name_is_looked_up_once_for_all_who_wait() -> None:
    asked = 0
    proceed = asyncio.Event()

    async def resolve(host: str, port: int) -> list[str]:
        nonlocal asked
        asked += 1
        await proceed.wait()
        return ["127.0.0.1"]

    pool = PoolTransport(resolve=resolve)
    async with host(ok) as peer:
        waiting = [
            asyncio.create_task(pool.handle_async_request(post(peer.url(name="peer.example")))) for _ in range(20)
        ]
        await asyncio.sleep(0.01)
        waiting.pop().cancel()  # one that leaves does not take the others' answer along
        proceed.set()
        assert [(await task).status_code for task in waiting] == [200] * 19
    assert asked == 1
    await pool.aclose()


async def test_an_answer_about_a_name_is_kept_for_a_while_a_failure_is_not() -> None:
    names = Names(socket.gaierror(socket.EAI_AGAIN, "try again"), ["127.0.0.1"])
    pool = PoolTransport(resolve=names, dns_ttl_s=0.1)

    async def answer(exchange: Exchange) -> None:
        await exchange.reply(headers="Connection: close\r\n")

    async with host(answer) as peer:
        url = peer.url(name="peer.example")
        with pytest.raises(httpx.ConnectError):
            await pool.handle_async_request(post(url))
        for _ in range(3):
            await pool.handle_async_request(post(url))
        assert names.asked == 2
        await asyncio.sleep(0.12)
        await pool.handle_async_request(post(url))
        assert names.asked == 3
    await pool.aclose()


async def test_a_dead_address_does_not_hold_up_a_live_one() -> None:
    async with host(ok) as peer:
        pool = PoolTransport(resolve=Names(["127.0.0.9", "::1", "127.0.0.1"]))
        response = await pool.handle_async_request(post(peer.url(name="peer.example"), timeout={"connect": 5.0}))
        assert response.status_code == 200
        await pool.aclose()


# --- addresses -----------------------------------------------------------------------------------------------------

PUBLIC = ["1.1.1.1", "8.8.8.8", "104.18.7.192", "2606:4700:4700::1111", "2a00:1450:4001:831::200e"]
PUBLIC += ["::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1"]
PRIVATE = {
    "loopback": ["127.0.0.1", "127.1.2.3", "::1", "::ffff:127.0.0.1", "::127.0.0.1"],
    "unspecified": ["0.0.0.0", "0.1.2.3", "::", "::ffff:0.0.0.0"],
    "private": ["10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "::ffff:10.0.0.1", "fc00::1", "fdff::1"],
    "link-local": ["169.254.0.1", "fe80::1", "fe80::1%eth0", "::ffff:169.254.1.1", "fec0::1"],
    "metadata": ["169.254.169.254", "fd00:ec2::254", "100.100.100.200", "192.0.0.192", "168.63.129.16"],
    "shared": ["100.64.0.1", "100.127.255.255"],
    "wrapped": ["64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2002:a9fe:a9fe::1", "2002:c0a8:101::"],
    "Teredo": ["2001:0:4136:e378:8000:63bf:80ff:fffe"],
    "local NAT64": ["64:ff9b:1::7f00:1"],
    "documentation": ["192.0.2.1", "198.51.100.1", "203.0.113.1", "2001:db8::1"],
    "benchmarks": ["198.18.0.1", "2001:2::1"],
    "multicast": ["224.0.0.1", "239.255.255.250", "ff02::1", "ff0e::1"],
    "reserved": ["240.0.0.1", "255.255.255.255", "4000::1", "100::1"],
}


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_is_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("address", [each for group in PRIVATE.values() for each in group])
def test_no_other_address_is_public(address: str) -> None:
    assert not is_public(address)


async def test_the_address_that_was_checked_is_the_one_connected_to() -> None:
    """A name that answers with an accepted address first and with a forbidden one later wins nothing."""
    async with host(ok) as forbidden:
        answers = [["127.0.0.2"], ["127.0.0.1"], ["127.0.0.1", "127.0.0.1"], ["::1", "127.0.0.2", "127.0.0.1"]]
        names = Names(*answers)
        for answer in answers:
            pool = PoolTransport(accepts=lambda address: address == "127.0.0.2", resolve=names)
            error = await not_sent(pool, forbidden.url(name="rebinding.example"))
            assert type(error) is (httpx.ConnectError if "127.0.0.2" in answer else AddressRefused)
        assert names.asked == len(answers)
    assert forbidden.connections == 0


async def test_an_accepted_address_is_reached() -> None:
    async with host(ok) as peer:
        pool = PoolTransport(accepts=lambda address: address == "127.0.0.1", resolve=Names(["10.0.0.1", "127.0.0.1"]))
        response = await pool.handle_async_request(post(peer.url(name="mixed.example")))
        assert response.status_code == 200, "the forbidden address is skipped, the accepted one used"
        await pool.aclose()
