"""Connections: httpx's transport interface over aiohttp's connection pool.

httpx's own pool searches its connections linearly, which costs milliseconds per request with hundreds in flight, and
that is what image traffic looks like. aiohttp's finds one at once. Everything above keeps speaking httpx: values,
exception classes and timeouts are httpx's, so that a mock or another pool can stand here unnoticed.

What this adds to ``httpx.AsyncBaseTransport``:

``request.extensions["sent"]`` is False until the first byte of the request is about to leave, then True: whoever is
interrupted knows whether the provider can have seen anything.
``accepts`` is asked about every IP address before a socket is opened to it; names are resolved once and the checked
address is the one connected to, so a second answer from DNS cannot smuggle in a private one.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, MutableMapping
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

import aiohttp
import httpx
from aiohttp import hdrs
from aiohttp.abc import AbstractResolver, AbstractStreamWriter
from multidict import CIMultiDict
from yarl import URL

READ_BUFFER = 256 * 1024  # bytes a response may run ahead of its reader; uvloop reads as much at once

# aiohttp's exception -> httpx's. The nearest base class that is listed decides; a test holds the list complete.
ERRORS: Mapping[type[BaseException], type[httpx.TransportError]] = {
    # nothing was sent
    aiohttp.InvalidURL: httpx.UnsupportedProtocol,
    aiohttp.NonHttpUrlClientError: httpx.UnsupportedProtocol,
    aiohttp.ConnectionTimeoutError: httpx.ConnectTimeout,
    aiohttp.ClientConnectorError: httpx.ConnectError,
    aiohttp.ClientConnectorCertificateError: httpx.ConnectError,
    aiohttp.ClientSSLError: httpx.ConnectError,
    aiohttp.ClientProxyConnectionError: httpx.ProxyError,
    aiohttp.ClientHttpProxyError: httpx.ProxyError,
    aiohttp.ServerFingerprintMismatch: httpx.ConnectError,
    # something may have been
    aiohttp.ServerTimeoutError: httpx.ReadTimeout,
    aiohttp.ClientConnectionResetError: httpx.WriteError,
    aiohttp.UploadAbortedError: httpx.WriteError,
    aiohttp.ServerDisconnectedError: httpx.RemoteProtocolError,
    aiohttp.ClientPayloadError: httpx.RemoteProtocolError,
    aiohttp.ClientResponseError: httpx.RemoteProtocolError,
    aiohttp.ClientOSError: httpx.ReadError,
    aiohttp.ClientConnectionError: httpx.ReadError,
    aiohttp.ClientError: httpx.ReadError,
    TimeoutError: httpx.ReadTimeout,
    OSError: httpx.ReadError,
    ValueError: httpx.LocalProtocolError,  # a header or method that must not be written
}


class AddressRefused(httpx.ConnectError):
    """The host has no address this transport may connect to."""


def is_public(address: str) -> bool:
    """Whether an IP address is somewhere on the public internet, seen through every way of wrapping IPv4 in IPv6.

    Not public: loopback, private, link-local, shared, reserved, multicast, documentation and unspecified networks,
    and with them the metadata services of the clouds.
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is None and ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        elif inner is None and ip not in _GLOBAL_UNICAST:
            return False
        if inner is not None:
            return is_public(str(inner))
    return ip.is_global and not ip.is_multicast and not any(ip in network for network in _NOT_PUBLIC)


_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_NOT_PUBLIC = (  # whatever the standard library says, which differs between its versions
    ipaddress.ip_network("192.0.0.0/24"),  # protocol assignments; Oracle's metadata service is at .192
    ipaddress.ip_network("168.63.129.16/32"),  # Azure's wire server
)


class PoolTransport(httpx.AsyncBaseTransport):
    """Sends ``httpx.Request``s over pooled HTTP/1.1 connections. Belongs to the event loop that first uses it.

    ``max_connections`` bounds the requests in flight; None: as many as there are, for the router bounds its work
    elsewhere and a pool that queues only hides it. ``keepalive_s``: how long an idle connection is kept.
    ``accepts``: which addresses may be connected to; None: any. ``ssl_context``: for a private authority; it must
    verify, as certificate checks are never off. Proxy variables of the environment are not looked at.

    Timeouts come with each request as ``extensions["timeout"]``: connect, read, pool in seconds; absent: none.
    Answers are asked for and delivered without compression being undone: ``Content-Encoding`` is the caller's to judge.
    """

    def __init__(
        self,
        *,
        max_connections: int | None = None,
        keepalive_s: float = 15.0,
        dns_ttl_s: int = 30,
        accepts: Callable[[str], bool] | None = None,
        ssl_context: ssl.SSLContext | None = None,
        resolver: AbstractResolver | None = None,
    ) -> None:
        if ssl_context is not None and (
            ssl_context.verify_mode is not ssl.CERT_REQUIRED or not ssl_context.check_hostname
        ):
            raise ValueError("the TLS context must verify certificates and host names")
        self._slots = asyncio.Semaphore(max_connections) if max_connections else None
        self._keepalive_s = keepalive_s
        self._dns_ttl_s = dns_ttl_s
        self._accepts = accepts
        self._ssl_context = ssl_context
        self._resolver = resolver
        self._session: aiohttp.ClientSession | None = None
        self._closed = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if self._closed:
            raise httpx.ConnectError("the connection pool is closed", request=request)
        extensions = request.extensions
        extensions["sent"] = False
        timeout: Mapping[str, float | None] = extensions.get("timeout", {})
        slot = await self._slot(request, timeout.get("pool")) if self._slots is not None else None
        _outgoing.set(extensions)
        try:
            answer = await (self._session or self._open()).request(
                request.method,
                _url(str(request.url)),
                headers=_headers(request),
                data=_body(request),
                timeout=_timeouts(timeout.get("connect"), timeout.get("read")),
                allow_redirects=False,
            )
            body = answer.content
            # A small answer arrived in one piece with its headers: there is nothing left to wait for.
            whole = body.read_nowait() if body.is_eof() and hdrs.CONTENT_ENCODING not in answer.headers else None
        except BaseException as error:
            if slot is not None:
                slot.release()
            if isinstance(error, (aiohttp.ClientError, OSError, ValueError)):
                raise translated(error, request) from error
            raise
        extra = {"http_version": b"HTTP/1.1", "reason_phrase": (answer.reason or "").encode("latin-1", "replace")}
        if whole is not None:
            if slot is not None:
                slot.release()
            return httpx.Response(answer.status, headers=answer.raw_headers, content=whole, extensions=extra)
        stream = _Stream(answer, request, slot)
        return httpx.Response(answer.status, headers=answer.raw_headers, stream=stream, extensions=extra)

    async def aclose(self) -> None:
        self._closed = True
        if self._session is not None:
            await self._session.close()

    async def _slot(self, request: httpx.Request, patience_s: float | None) -> asyncio.Semaphore:
        assert self._slots is not None
        try:
            async with asyncio.timeout(patience_s):
                await self._slots.acquire()
        except TimeoutError:
            raise httpx.PoolTimeout("no connection became free in time", request=request) from None
        return self._slots

    def _open(self) -> aiohttp.ClientSession:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0,
                keepalive_timeout=self._keepalive_s,
                ttl_dns_cache=self._dns_ttl_s,
                ssl=self._ssl_context or True,
                resolver=self._resolver,
                socket_factory=self._socket,
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            timeout=aiohttp.ClientTimeout(total=None),
            read_bufsize=READ_BUFFER,
            request_class=_Request,
        )
        return self._session

    def _socket(self, info: Any) -> socket.socket:
        family, kind, protocol, _, address = info
        if self._accepts is not None and not self._accepts(address[0]):
            _outgoing.get()["refused"] = True
            raise OSError(f"{address[0]} is not a public address")
        opened = socket.socket(family, kind, protocol)
        # A picture can take minutes without a byte; gateways on the way forget silent connections sooner.
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_KEEPIDLE"):
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 45)
        return opened


def translated(error: BaseException, request: httpx.Request) -> httpx.TransportError:
    """The httpx exception for one of aiohttp's. Its message names no host."""
    if request.extensions.get("refused"):
        return AddressRefused("the host has no public address", request=request)
    known = next(kind for kind in type(error).__mro__ if kind in ERRORS)
    return ERRORS[known](type(error).__name__, request=request)


_outgoing: ContextVar[MutableMapping[str, Any]] = ContextVar("_outgoing")


class _Request(aiohttp.ClientRequest):
    async def send(self, conn: Any) -> aiohttp.ClientResponse:
        _outgoing.get()["sent"] = True
        return await super().send(conn)


class _Bytes(aiohttp.payload.Payload):
    """A body that is already in memory, handed to the socket as it is."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._size = len(data)

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        raise NotImplementedError("only sent, never shown")

    async def write(self, writer: AbstractStreamWriter) -> None:
        await writer.write(self._value)


class _Stream(httpx.AsyncByteStream):
    """The rest of an answer. Closing it early closes its connection; at its end the connection is free again."""

    def __init__(self, answer: aiohttp.ClientResponse, request: httpx.Request, slot: asyncio.Semaphore | None) -> None:
        self._answer = answer
        self._request = request
        self._slot = slot

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        try:
            chunk = await self._answer.content.readany()
        except (aiohttp.ClientError, OSError, ValueError) as error:
            await self.aclose()
            raise translated(error, self._request) from error
        if not chunk:
            await self.aclose()
            raise StopAsyncIteration
        return chunk

    async def aclose(self) -> None:
        if self._answer.content.at_eof():
            self._answer.release()
        else:
            self._answer.close()
        if self._slot is not None:
            self._slot.release()
            self._slot = None


@lru_cache(maxsize=1024)
def _url(url: str) -> URL:
    return URL(url, encoded=True)


@lru_cache(maxsize=64)
def _timeouts(connect: float | None, read: float | None) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=None, sock_connect=connect, connect=connect, sock_read=read)


def _headers(request: httpx.Request) -> CIMultiDict[str]:
    headers: CIMultiDict[str] = CIMultiDict()
    for name, value in request.headers.raw:
        headers.add(name.decode("latin-1"), value.decode("latin-1"))
    headers.popall(hdrs.TRANSFER_ENCODING, None)  # aiohttp decides: chunked, if there is no Content-Length
    headers[hdrs.ACCEPT_ENCODING] = "identity"
    return headers


def _body(request: httpx.Request) -> Any:
    if not isinstance(request.stream, httpx.ByteStream):
        return request.stream
    content = b"".join(request.stream)  # the one piece itself; nothing, not an empty stream, for a GET
    return _Bytes(content) if content else None
