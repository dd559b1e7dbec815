"""The connection pool against real hosts on loopback: what goes over the wire, what comes back, and how it fails."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import aiohttp.client_exceptions
import httpx
import pytest
from aiohttp.abc import AbstractResolver, ResolveResult

from router.pool import ERRORS, AddressRefused, PoolTransport, is_public, translated
from tests.router.loopback import CERTIFICATE, Exchange, closed_port, host

pytestmark = pytest.mark.anyio


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

LEAVES = {
    # class: what it must become. Listed by hand, so that a class aiohttp adds cannot pass unseen.
    aiohttp.ClientConnectionError: httpx.ReadError,
    aiohttp.ClientConnectionResetError: httpx.WriteError,
    aiohttp.ClientConnectorCertificateError: httpx.ConnectError,
    aiohttp.ClientConnectorDNSError: httpx.ConnectError,
    aiohttp.ClientConnectorError: httpx.ConnectError,
    aiohttp.ClientConnectorSSLError: httpx.ConnectError,
    aiohttp.ClientHttpProxyError: httpx.ProxyError,
    aiohttp.ClientOSError: httpx.ReadError,
    aiohttp.ClientPayloadError: httpx.RemoteProtocolError,
    aiohttp.ClientProxyConnectionError: httpx.ProxyError,
    aiohttp.ClientResponseError: httpx.RemoteProtocolError,
    aiohttp.ClientSSLError: httpx.ConnectError,
    aiohttp.ConnectionTimeoutError: httpx.ConnectTimeout,
    aiohttp.ContentTypeError: httpx.RemoteProtocolError,
    aiohttp.InvalidURL: httpx.UnsupportedProtocol,
    aiohttp.InvalidUrlClientError: httpx.UnsupportedProtocol,
    aiohttp.InvalidUrlRedirectClientError: httpx.UnsupportedProtocol,
    aiohttp.NonHttpUrlClientError: httpx.UnsupportedProtocol,
    aiohttp.NonHttpUrlRedirectClientError: httpx.UnsupportedProtocol,
    aiohttp.RedirectClientError: httpx.ReadError,
    aiohttp.ServerConnectionError: httpx.ReadError,
    aiohttp.ServerDisconnectedError: httpx.RemoteProtocolError,
    aiohttp.ServerFingerprintMismatch: httpx.ConnectError,
    aiohttp.ServerTimeoutError: httpx.ReadTimeout,
    aiohttp.SocketTimeoutError: httpx.ReadTimeout,
    aiohttp.TooManyRedirects: httpx.RemoteProtocolError,
    aiohttp.client_exceptions.UnixClientConnectorError: httpx.ConnectError,
    aiohttp.UploadAbortedError: httpx.WriteError,
    aiohttp.WSServerHandshakeError: httpx.RemoteProtocolError,
}


def subclasses(kind: type) -> Iterator[type]:
    for child in kind.__subclasses__():
        yield child
        yield from subclasses(child)


async def test_every_exception_of_the_pool_has_its_place() -> None:
    known = {kind for kind in subclasses(aiohttp.ClientError) if kind.__module__.startswith("aiohttp")}
    assert known == set(LEAVES)
    assert all(issubclass(kind, (aiohttp.ClientError, OSError, ValueError)) for kind in ERRORS)


@pytest.mark.parametrize("kind", [*LEAVES, TimeoutError, ConnectionResetError, ssl.SSLError, UnicodeError])
async def test_an_exception_of_the_pool_becomes_one_of_httpx(kind: type[BaseException]) -> None:
    rest = {TimeoutError: httpx.ReadTimeout, UnicodeError: httpx.LocalProtocolError}
    expected = LEAVES.get(kind) or rest.get(kind, httpx.ReadError)
    request = post("https://secret-host.example/v1")
    error = translated(kind.__new__(kind), request)
    assert type(error) is expected
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
    (reset_in_the_body, httpx.RemoteProtocolError),
    (not_http, httpx.RemoteProtocolError),
    (bad_chunk, httpx.RemoteProtocolError),
    (two_lengths, httpx.RemoteProtocolError),
    (endless_header, httpx.RemoteProtocolError),
    (endless_headers, httpx.RemoteProtocolError),
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


class Names(AbstractResolver):
    """Answers with these addresses, one list per question; an exception is raised, None never answers."""

    def __init__(self, *answers: list[str] | OSError | None) -> None:
        self._answers = list(answers)
        self.asked = 0

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        answer = self._answers[min(self.asked, len(self._answers) - 1)]
        self.asked += 1
        if answer is None:
            await asyncio.Event().wait()
        if isinstance(answer, OSError):
            raise answer
        kind = {False: socket.AF_INET, True: socket.AF_INET6}
        return [
            ResolveResult(hostname=host, host=each, port=port, family=kind[":" in each], proto=0, flags=0)
            for each in answer or []
        ]

    async def close(self) -> None:
        pass


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
    assert type(await not_sent(PoolTransport(resolver=names), "http://no.example")) is httpx.ConnectError


async def test_connecting_takes_too_long() -> None:
    error = await not_sent(PoolTransport(resolver=Names(None)), "http://slow.example", connect=0.05)
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
async def test_a_public_address_is_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("address", [each for group in PRIVATE.values() for each in group])
async def test_no_other_address_is_public(address: str) -> None:
    assert not is_public(address)


async def test_the_address_that_was_checked_is_the_one_connected_to() -> None:
    """A name that answers with an accepted address first and with a forbidden one later wins nothing."""
    async with host(ok) as forbidden:
        seen: list[str] = []

        def accepts(address: str) -> bool:
            seen.append(address)
            return address != "127.0.0.1"

        names = Names(["127.0.0.2"], ["127.0.0.1"], ["127.0.0.1", "127.0.0.1"], ["::1", "127.0.0.1"])
        for _ in range(4):
            pool = PoolTransport(accepts=accepts, resolver=names)
            error = await not_sent(pool, forbidden.url(name="rebinding.example"))
            assert isinstance(error, httpx.ConnectError)
            assert isinstance(error, AddressRefused) is (seen[-1] == "127.0.0.1")
        assert names.asked == 4
    assert forbidden.connections == 0


async def test_an_accepted_address_is_reached() -> None:
    async with host(ok) as peer:
        pool = PoolTransport(accepts=lambda address: address == "127.0.0.1", resolver=Names(["10.0.0.1", "127.0.0.1"]))
        response = await pool.handle_async_request(post(peer.url(name="mixed.example")))
        assert response.status_code == 200, "the forbidden address is skipped, the accepted one used"
        await pool.aclose()
