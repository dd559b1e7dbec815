"""Performs what adapters describe: the one place where the router speaks HTTP to the outside.

Here, once and for all providers: the key is added, and only for the provider's own origin; addresses that came from
outside are connected to only if they are public; the attempt's deadline is enforced, waiting included; answers are
bounded; times are measured; and every way a connection can fail becomes a ``ProviderError`` that says whether the
provider can have charged for it.

Where a request may go::

    the provider's own origins (Provider.urls; "https://*.example.com" means every subdomain)   with its key
    its result hosts (Provider.result_hosts)                                                    without
    any other host: https and public addresses only                                             without
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import httpx

from router import __version__
from router.bounded import TooLarge, Turns, pieces, whole
from router.deadline import Deadline
from router.errors import Billed, ErrorKind, ProviderError
from router.pool import AddressRefused
from router.providers.base import Auth, Call, Flow, Job, Partial, Read
from router.records import record
from router.types import ImageResult, Provider
from router.whole import Ready, header, raw_headers

MIB = 1024 * 1024
CONNECT_S = 5.0  # for DNS, TCP and TLS together; within the attempt's deadline
POLL_READ_S = 30.0  # a question about a job that is silent for so long is asked again
MAX_REDIRECTS = 5
RETRY_DELAYS_S = (0.25, 0.75, 2.0)  # before each repetition of a GET that failed in passing
TRANSIENT = frozenset({408, 425, 429, 502, 503, 504})  # 500 is a job's own failure at some providers
USER_AGENT = f"pixelroute/{__version__}".encode()

# Raised before the first byte of a request has left: the provider cannot have seen it.
NOT_SENT: tuple[type[httpx.TransportError], ...] = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.LocalProtocolError,
    httpx.PoolTimeout,
    httpx.ProxyError,
    httpx.UnsupportedProtocol,
)

log = logging.getLogger(__name__)

Origin = tuple[str, str, int | None]


@record
class Ran:
    """A flow that came to its end. Times in seconds from its start."""

    result: ImageResult
    latency_s: float
    ttfb_s: float | None  # until the first byte of the first answer
    sent_billable: bool
    provider_request_id: str | None


class Transport:
    """Runs flows, single calls and downloads.

    ``http`` reaches providers; ``guarded`` reaches everyone else and must refuse addresses that are not public
    (``PoolTransport(accepts=is_public)``); without it only providers and their result hosts are reached.
    ``max_response_bytes`` bounds each answer, before and after decompression.
    """

    def __init__(
        self,
        http: httpx.AsyncBaseTransport,
        *,
        guarded: httpx.AsyncBaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
        max_response_bytes: int = 48 * MIB,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._http = http
        self._guarded = guarded
        self._clock = clock
        self._max_response_bytes = max_response_bytes
        self._sleep = sleep
        self._trusts: dict[str, _Trust] = {}
        self._turns = Turns()

    async def run(
        self,
        flow: Flow,
        provider: Provider,
        auth: Auth,
        *,
        timeout_s: float,
        on_job: Callable[[Job], Awaitable[None]] | None = None,
        on_partial: Callable[[Partial], Awaitable[None]] | None = None,
        resumed: bool = False,
        max_bytes: int | None = None,
    ) -> Ran:
        """Drive a flow to its result.

        ``resumed``: the flow goes on with a job submitted earlier, so the provider may charge whatever happens now.
        ``max_bytes``: bound on each answer, where several pictures need more than the transport's own.
        Raises ProviderError with ``latency_s``, ``ttfb_s`` and ``sent_billable`` set. Cancellation passes through.
        """
        attempt = _Attempt(self, provider, auth, max_bytes or self._max_response_bytes, timeout_s, resumed)
        try:
            with closing(flow), Deadline(timeout_s) as deadline:
                result = await attempt.drive(flow, on_job, on_partial)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            late = isinstance(error, TimeoutError) and deadline.expired
            raise attempt.failure(error, timeout_s if late else None) from error
        finally:
            await attempt.aclose()
        return Ran(
            result=result,
            latency_s=self._clock() - attempt.started,
            ttfb_s=attempt.ttfb_s,
            sent_billable=attempt.sent_billable,
            provider_request_id=result.provider_request_id or attempt.request_id,
        )

    async def call(self, call: Call, provider: Provider, auth: Auth, *, timeout_s: float) -> httpx.Response:
        """One exchange by itself, such as a cancellation. Raises ProviderError like ``run``."""
        attempt = _Attempt(self, provider, auth, self._max_response_bytes, timeout_s)
        try:
            with Deadline(timeout_s) as deadline:
                return await attempt.exchange(call)
        except Exception as error:
            late = isinstance(error, TimeoutError) and deadline.expired
            raise attempt.failure(error, timeout_s if late else None) from error
        finally:
            await attempt.aclose()

    async def download(
        self, url: str, provider: Provider, *, timeout_s: float, max_bytes: int
    ) -> tuple[bytes, str | None]:
        """A picture the provider made: its bytes and the media type the host gave, if any.

        Asked for up to four times, since it exists and is paid for. Raises ProviderError(DOWNLOAD).
        """
        trust = self.trust(provider)
        reason = "it took too long"
        try:
            with Deadline(timeout_s):
                for delay_s in (*RETRY_DELAYS_S, None):
                    try:
                        return await self._get(httpx.URL(url), trust, max_bytes)
                    except httpx.InvalidURL:
                        reason = "its address is not a URL"
                        break
                    except _Unfetchable as error:
                        reason = str(error)
                        if not error.passing:
                            break
                    except AddressRefused:
                        reason = "its host is not public"
                        break
                    except httpx.RequestError as error:
                        reason = f"the connection failed ({type(error).__name__})"
                    if delay_s is not None:
                        await self._sleep(delay_s)
        except TimeoutError:
            pass
        message = f"The picture was made, but fetching it failed: {reason}."
        raise ProviderError(ErrorKind.DOWNLOAD, message, billed=Billed.YES)

    async def fetch(self, url: str, *, max_bytes: int, timeout_s: float) -> bytes:
        """What a client's URL points to. http and https, public addresses only, checked again at every redirect.

        Raises ValueError with a text for the client.
        """
        try:
            with Deadline(timeout_s):
                return (await self._get(httpx.URL(url), None, max_bytes))[0]
        except TimeoutError:
            raise ValueError(f"the URL did not answer within {timeout_s:g} seconds") from None
        except httpx.InvalidURL:
            raise ValueError("not a valid URL") from None
        except AddressRefused:
            raise ValueError("the URL's host is not on the public internet") from None
        except httpx.RequestError:
            raise ValueError("the URL's host could not be reached or broke off") from None
        except _Unfetchable as error:
            raise ValueError(f"the URL could not be fetched: {error}") from None

    async def post(
        self, url: str, body: bytes, headers: Mapping[str, str], *, timeout_s: float, private: bool = False
    ) -> int:
        """Tell a host that a client named; the status of its answer, whose content is not read. Follows no redirect.

        Public addresses only, unless ``private``. OSError if it cannot be told, ValueError if that is no URL.
        """
        pool = self._http if private else self._guarded
        if pool is None:
            raise ValueError("only providers are reached here")
        try:
            address = httpx.URL(url)
            request = httpx.Request(
                "POST",
                address.copy_with(fragment=None),
                headers=[(b"Host", address.netloc), (b"User-Agent", USER_AGENT), *_raw(headers)],
                content=body,
                extensions={"timeout": {"connect": CONNECT_S, "pool": CONNECT_S, "read": timeout_s}},
            )
            with Deadline(timeout_s):
                response = await pool.handle_async_request(request)
                await response.aclose()
                return response.status_code
        except httpx.InvalidURL as error:
            raise ValueError("not a valid URL") from error
        except AddressRefused as error:
            raise PermissionError("the host is not on the public internet") from error
        except httpx.RequestError as error:
            raise ConnectionError(type(error).__name__) from error

    async def aclose(self) -> None:
        await self._http.aclose()
        if self._guarded is not None:
            await self._guarded.aclose()

    # --- below this line: for _Attempt and the methods above --------------------------------------------------

    def trust(self, provider: Provider) -> _Trust:
        known = self._trusts.get(provider.name)
        if known is None or known.provider is not provider:
            known = self._trusts[provider.name] = _Trust.of(provider)
        return known

    def route(self, url: httpx.URL, trust: _Trust | None) -> tuple[httpx.AsyncBaseTransport, bool]:
        """Which pool reaches this URL, and whether its host is the provider itself. AddressRefused if none may."""
        if trust is not None:
            own = trust.own(url)
            if own or trust.delivers(url.host):
                return self._http, own
        if self._guarded is None or (trust is not None and url.scheme != "https"):
            raise AddressRefused("the host is not one of the provider's")
        return self._guarded, False

    async def read(self, response: httpx.Response, most: int) -> httpx.Response:
        """The response with its body in memory; a long one when its turn has come."""
        if response.is_closed:
            return await whole(response, most)
        async with self._turns.turn():
            return await whole(response, most)

    async def _get(self, url: httpx.URL, trust: _Trust | None, most: int) -> tuple[bytes, str | None]:
        for _ in range(MAX_REDIRECTS + 1):
            if url.scheme not in ("http", "https") or not url.host:
                raise _Unfetchable("only http and https addresses are fetched")
            if url.userinfo:
                raise _Unfetchable("addresses with a user name or password are not fetched")
            pool, _own = self.route(url, trust)
            request = httpx.Request(
                "GET",
                url.copy_with(fragment=None),
                headers=[(b"Host", url.netloc), (b"User-Agent", USER_AGENT), (b"Accept", b"image/*, */*;q=0.5")],
                extensions={"timeout": {"connect": CONNECT_S, "pool": CONNECT_S, "read": POLL_READ_S}},
            )
            response = await pool.handle_async_request(request)
            try:
                status = response.status_code
                if status in (301, 302, 303, 307, 308) and "location" in response.headers:
                    url = url.join(response.headers["location"])
                    continue
                if status != 200:
                    raise _Unfetchable(
                        f"its host answered {status}", passing=status in (404, 500) or status in TRANSIENT
                    )
                if int(response.headers.get("content-length", "0")) > most:
                    raise TooLarge(most)
                found = await self.read(response, most)
                return found.content, response.headers.get("content-type")
            except TooLarge:
                raise _Unfetchable(
                    f"it is larger than {most // MIB or most} {'MiB' if most >= MIB else 'bytes'}"
                ) from None
            finally:
                await response.aclose()
        raise _Unfetchable("it redirects too often")


class _Attempt:
    """One flow being driven: what has been sent, what came back, what is open."""

    def __init__(
        self,
        transport: Transport,
        provider: Provider,
        auth: Auth,
        max_bytes: int,
        timeout_s: float,
        resumed: bool = False,
    ) -> None:
        self.started = transport._clock()
        self._timeout_s = timeout_s
        self.ttfb_s: float | None = None
        self.sent_billable = resumed
        self._last: httpx.Response | None = None
        self._sent = resumed
        self._transport = transport
        self._provider = provider
        self._auth = auth
        self._max_bytes = max_bytes
        self._reader: AsyncGenerator[bytes, None] | None = None
        self._streaming: httpx.Response | None = None

    @property
    def request_id(self) -> str | None:
        """What the provider called its last answer, where the adapter knows no better."""
        return header(self._last, b"x-request-id") if self._last is not None else None

    async def drive(
        self,
        flow: Flow,
        on_job: Callable[[Job], Awaitable[None]] | None,
        on_partial: Callable[[Partial], Awaitable[None]] | None,
    ) -> ImageResult:
        answer: Any = None
        while True:
            try:
                step = flow.send(answer)
            except StopIteration as end:
                result: ImageResult = end.value
                return result
            answer = None
            if isinstance(step, Call):
                if step.after_s > 0:
                    await self._transport._sleep(step.after_s)
                answer = await self.exchange(step)
            elif isinstance(step, Read):
                if self._reader is None:
                    raise RuntimeError("a flow may read only after a streamed call")
                answer = await anext(self._reader, b"")
            elif isinstance(step, Job):
                if on_job is not None:
                    await on_job(step)
            elif on_partial is not None:
                await on_partial(step)

    async def exchange(self, call: Call) -> httpx.Response:
        """Send one call and read its answer. A GET that is free is repeated when it fails in passing."""
        await self.aclose()
        if call.billable or call.request.method != "GET":
            return await self._once(call)
        for delay_s in RETRY_DELAYS_S:
            try:
                response = await self._once(call)
            except AddressRefused:
                raise
            except httpx.TransportError:
                await self._transport._sleep(delay_s)
                continue
            if response.status_code not in TRANSIENT:
                return response
            await self.aclose()
            await self._transport._sleep(max(delay_s, min(_seconds(response.headers.get("retry-after")), 10.0)))
        return await self._once(call)

    async def _once(self, call: Call) -> httpx.Response:
        transport = self._transport
        pool, own = transport.route(call.request.url, transport.trust(self._provider))
        request = self._outgoing(call, own)
        extensions = request.extensions
        sent = True
        try:
            response = await pool.handle_async_request(request)
        except NOT_SENT:
            sent = False
            raise
        finally:
            if sent and extensions.get("sent", True):
                self._sent = True
                self.sent_billable = self.sent_billable or call.billable
        if self.ttfb_s is None:
            self.ttfb_s = transport._clock() - self.started
        self._last = response
        response.request = call.request
        if call.stream:
            self._streaming = response
            self._reader = pieces(response, self._max_bytes)
            return response
        try:
            answer = await transport.read(response, self._max_bytes)
        finally:
            await response.aclose()
        answer.request = call.request
        return answer

    def _outgoing(self, call: Call, own: bool) -> httpx.Request:
        """A copy of the adapter's request with our headers, and for the provider's own origin its key."""
        inner = call.request
        headers = list(raw_headers(inner))
        said = {name.lower() for name, _ in headers}
        if b"user-agent" not in said:
            headers.append((b"User-Agent", USER_AGENT))
        if call.deadline is not None:
            left_s = self.started + self._timeout_s - self._transport._clock()
            headers.append(call.deadline(max(left_s, 0.0)))
        auth = self._auth
        if own and self._provider.key is not None and (name := auth.header.encode("ascii")).lower() not in said:
            headers.append((name, (auth.prefix + self._provider.key).encode("latin-1")))
        polling = not call.billable and inner.method == "GET"
        timeout = {"connect": CONNECT_S, "pool": CONNECT_S, "read": POLL_READ_S if polling else None}
        return Ready(inner.method, inner.url, headers, inner.stream, {"timeout": timeout})

    def failure(self, error: Exception, late_s: float | None) -> ProviderError:
        """The ProviderError this attempt ends with, told what has been sent; ``late_s``: its deadline passed."""
        if isinstance(error, ProviderError):
            failed = error
            if failed.billed is None and not self.sent_billable:
                failed.billed = Billed.NO
        elif not self._sent:
            why = (
                "is not an address the router may use" if isinstance(error, AddressRefused) else "could not be reached"
            )
            failed = ProviderError(
                ErrorKind.NOT_SENT, f"The provider {why} ({type(error).__name__}).", billed=Billed.NO
            )
        else:
            if late_s is not None:
                message = f"The provider gave no complete answer within {late_s:g} seconds."
            elif isinstance(error, httpx.RequestError):
                message = (
                    f"The connection to the provider failed before its answer was complete ({type(error).__name__})."
                )
            elif isinstance(error, TooLarge):
                message = str(error)
            else:
                log.error("the adapter for %s could not read an answer", self._provider.name, exc_info=error)
                message = "The provider's answer could not be read."
            failed = ProviderError(
                ErrorKind.NO_ANSWER, message, billed=Billed.MAYBE if self.sent_billable else Billed.NO
            )
        if (key := self._provider.key) and key in failed.message:
            failed.message = failed.message.replace(key, "[key]")
            failed.args = (failed.message,)
        failed.details = _without(failed.details, key) if key else failed.details
        failed.latency_s = self._transport._clock() - self.started
        failed.ttfb_s = self.ttfb_s
        failed.sent_billable = self.sent_billable
        failed.provider_request_id = failed.provider_request_id or self.request_id
        return failed

    async def aclose(self) -> None:
        """Let go of a streamed answer, if one is open."""
        if self._reader is not None:
            await self._reader.aclose()
            self._reader = None
        if self._streaming is not None:
            await self._streaming.aclose()
            self._streaming = None


class _Unfetchable(Exception):
    """Why a picture cannot be had; ``passing``: another try may get it."""

    def __init__(self, reason: str, *, passing: bool = False) -> None:
        super().__init__(reason)
        self.passing = passing


@dataclass(frozen=True, slots=True)
class _Trust:
    """Which hosts are the provider's."""

    provider: Provider
    origins: frozenset[Origin]
    wildcards: tuple[tuple[str, str, int | None], ...]  # scheme, ".suffix", port
    hosts: frozenset[str]
    suffixes: tuple[str, ...]

    @classmethod
    def of(cls, provider: Provider) -> _Trust:
        origins = [_origin(httpx.URL(url)) for url in provider.urls.values() if url]
        plain = (host.lower() for host in provider.result_hosts)
        hosts = frozenset(plain)
        return cls(
            provider=provider,
            origins=frozenset(origin for origin in origins if not origin[1].startswith("*.")),
            wildcards=tuple((s, h[1:], p) for s, h, p in origins if h.startswith("*.")),
            hosts=frozenset(host for host in hosts if not host.startswith("*.")),
            suffixes=tuple(host[1:] for host in sorted(hosts) if host.startswith("*.")),
        )

    def own(self, url: httpx.URL) -> bool:
        scheme, host, port = origin = _origin(url)
        if origin in self.origins:
            return True
        return any(scheme == s and host.endswith(suffix) and port == p for s, suffix, p in self.wildcards)

    def delivers(self, host: str) -> bool:
        return host in self.hosts or host.endswith(self.suffixes)


def _raw(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("ascii"), value.encode("latin-1")) for name, value in headers.items()]


def _origin(url: httpx.URL) -> Origin:
    return url.scheme, url.host, url.port  # httpx lowers both and drops a scheme's default port


def _seconds(value: str | None) -> float:
    try:
        return max(0.0, float(value or 0))
    except ValueError:
        return 0.0


def _without(value: Any, secret: str) -> Any:
    if isinstance(value, str):
        return value.replace(secret, "[key]")
    if isinstance(value, Mapping):
        return {name: _without(item, secret) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without(item, secret) for item in value]
    return value
