"""Connections: httpx's transport interface over a pool of HTTP/1.1 connections that costs next to nothing.

httpx's own pool searches its connections linearly, which costs milliseconds per request with hundreds in flight, and
that is what image traffic looks like. Here a free connection is found at once. Everything above keeps speaking httpx:
values, exception classes and timeouts are httpx's, so that a mock or another pool can stand here unnoticed.

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
import time
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

import httpx
from aiohappyeyeballs import start_connection

from router.blob import Blob
from router.deadline import Deadline
from router.http1 import Answer, Connection, Failures, Origin, translated, written
from router.whole import Whole

MAX_NAMES = 1000  # names remembered with their addresses
HAPPY_EYEBALLS_S = 0.25  # until the next address of a host is tried beside the last

Resolve = Callable[[str, int], Awaitable[list[str]]]  # host, port -> addresses

# What look-up, TCP and TLS raise while nothing has been sent. The nearest base class that is listed decides.
CONNECTING: Failures = {
    TimeoutError: httpx.ConnectTimeout,
    OSError: httpx.ConnectError,  # refused, unreachable, unknown name, TLS: ssl.SSLError and gaierror are OSErrors
    RuntimeError: httpx.ConnectError,  # uvloop, where asyncio raises OSError
    ValueError: httpx.UnsupportedProtocol,  # a host that is no name, or too long for one
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
    verify, as certificate checks are never off. ``resolve``: instead of the system's resolver. Proxy variables of the
    environment are not looked at.

    Timeouts come with each request as ``extensions["timeout"]``: connect, read, pool in seconds; absent: none.
    Compression is never asked for, and never undone: ``Content-Encoding`` is the caller's to judge.
    Redirects, cookies and repetitions are the caller's as well. Raises the classes of ``httpx.TransportError``.
    """

    def __init__(
        self,
        *,
        max_connections: int | None = None,
        keepalive_s: float = 15.0,
        dns_ttl_s: float = 30.0,
        accepts: Callable[[str], bool] | None = None,
        ssl_context: ssl.SSLContext | None = None,
        resolve: Resolve | None = None,
    ) -> None:
        if ssl_context is not None and not (
            ssl_context.verify_mode is ssl.CERT_REQUIRED and ssl_context.check_hostname
        ):
            raise ValueError("the TLS context must verify certificates and host names")
        self._slots = asyncio.Semaphore(max_connections) if max_connections else None
        self._keepalive_s = keepalive_s
        self._dns_ttl_s = dns_ttl_s
        self._accepts = accepts
        self._ssl_context = ssl_context
        self._resolve = resolve or _system_addresses
        self._idle: defaultdict[Origin, deque[Connection]] = defaultdict(deque)
        self._open: set[Connection] = set()
        self._names: dict[tuple[str, int], tuple[float, asyncio.Future[list[str]] | None]] = {}
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        request.extensions["sent"] = False
        timeout: Mapping[str, float | None] = request.extensions.get("timeout", {})
        head, body = written(request)
        if self._slots is not None:
            await self._slot(request, timeout.get("pool"))
        answer: Answer | None = None
        try:
            connection = await self._connection(request, timeout.get("connect"))
            answer = connection.begin(request, timeout.get("read"), self._slots)
            await connection.send(head, body, answer)
            await answer.head()
        except BaseException:
            if answer is not None:
                await answer.aclose()
            elif self._slots is not None:
                self._slots.release()
            raise
        if answer.complete and not answer.encoded:
            # A small answer comes in one piece with its head: there is nothing left to wait for.
            return Whole(answer.status, answer.headers, Blob(answer.rest()))
        return httpx.Response(answer.status, headers=answer.headers, stream=answer)

    async def aclose(self) -> None:
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in list(self._open):
            connection.abort()
        self._idle.clear()
        await asyncio.sleep(0)  # sockets are closed in the loop's next round

    async def _slot(self, request: httpx.Request, patience_s: float | None) -> None:
        assert self._slots is not None
        try:
            with Deadline(patience_s):
                await self._slots.acquire()
        except TimeoutError:
            raise httpx.PoolTimeout("no connection became free in time", request=request) from None

    async def _connection(self, request: httpx.Request, patience_s: float | None) -> Connection:
        if self._closed:
            raise httpx.ConnectError("the connection pool is closed", request=request)
        url = request.url
        port = url.port or (443 if url.scheme == "https" else 80)
        origin = (url.scheme, url.host, port)
        idle = self._idle.get(origin)
        while idle:
            connection = idle.pop()  # the one used last is the likeliest to be open still
            if connection.usable:
                return connection
        if url.scheme not in ("http", "https") or not url.host:
            raise httpx.UnsupportedProtocol("only http and https are spoken", request=request)
        try:
            with Deadline(patience_s):
                return await self._connect(origin)
        except AddressRefused as error:
            error.request = request
            raise
        except Exception as error:
            raise translated(error, CONNECTING, request) from error

    async def _connect(self, origin: Origin) -> Connection:
        scheme, host, port = origin
        loop = asyncio.get_running_loop()
        addresses = await self._addresses(host, port)
        if self._accepts is not None:
            addresses = [address for address in addresses if self._accepts(address)]
            if not addresses:
                raise AddressRefused("the host has no public address")
        opened = await start_connection(
            [_addr_info(address, port) for address in addresses],
            happy_eyeballs_delay=HAPPY_EYEBALLS_S,
            socket_factory=self._socket,
        )
        name = host.rstrip(".") if scheme == "https" else None
        try:
            _, connection = await loop.create_connection(
                lambda: Connection(self, origin), sock=opened, ssl=self._tls() if name else None, server_hostname=name
            )
        except BaseException:
            opened.close()
            raise
        if self._closed:
            connection.abort()
            raise ConnectionAbortedError
        return connection

    async def _addresses(self, host: str, port: int) -> list[str]:
        """The host's addresses, asked for once however many are waiting for them."""
        with suppress(ValueError):
            return [str(ipaddress.ip_address(host))]
        now = time.monotonic()
        expires, found = self._names.get((host, port), (0.0, None))
        if found is None or expires <= now or (found.done() and (found.cancelled() or found.exception())):
            if len(self._names) >= MAX_NAMES:
                self._names.clear()
            found = asyncio.ensure_future(self._resolve(host, port))
            found.add_done_callback(lambda done: done.cancelled() or done.exception())  # who asked may have left
            self._names[host, port] = now + self._dns_ttl_s, found
        addresses = await asyncio.shield(found)
        if not addresses:
            raise OSError("the name has no address")
        return addresses

    def _socket(self, info: Any) -> socket.socket:
        opened = socket.socket(*info[:3])
        # A picture can take minutes without a byte; gateways on the way forget silent connections sooner.
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_KEEPIDLE"):
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 45)
        return opened

    def _tls(self) -> ssl.SSLContext:
        if self._ssl_context is None:
            self._ssl_context = ssl.create_default_context()
            self._ssl_context.set_alpn_protocols(["http/1.1"])
        return self._ssl_context

    # --- for connections ------------------------------------------------------------------------------------------

    def opened(self, connection: Connection) -> None:
        self._open.add(connection)

    def free(self, connection: Connection) -> None:
        """The connection has delivered its answer and may carry another request."""
        if self._closed:
            connection.abort()
            return
        connection.idle_since = time.monotonic()
        self._idle[connection.origin].append(connection)
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().call_later(self._keepalive_s, self._sweep)

    def lost(self, connection: Connection) -> None:
        self._open.discard(connection)
        idle = self._idle.get(connection.origin)
        if idle is not None and connection in idle:
            idle.remove(connection)

    def _sweep(self) -> None:
        """Close what has been idle for too long, and look again while anything is left."""
        oldest = time.monotonic() - self._keepalive_s
        for origin, idle in list(self._idle.items()):
            while idle and idle[0].idle_since <= oldest:
                idle.popleft().abort()
            if not idle:
                del self._idle[origin]
        self._sweeper = None
        if self._idle:
            self._sweeper = asyncio.get_running_loop().call_later(self._keepalive_s / 4, self._sweep)


async def _system_addresses(host: str, port: int) -> list[str]:
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


def _addr_info(address: str, port: int) -> Any:
    if ":" in address:
        return socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, port, 0, 0)
    return socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, port)
