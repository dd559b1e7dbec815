"""The transport over the real pool against hosts on loopback: deadlines, broken answers, forbidden addresses, bombs."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from router.errors import Billed, ErrorKind, ProviderError
from router.pool import PoolTransport, is_public
from router.providers.base import Auth, Call, Flow, Read
from router.transport import Transport
from router.types import ImageResult, Provider
from tests.router.loopback import Exchange, Host, closed_port, host

pytestmark = pytest.mark.anyio

KEY = "acme-secret-5f2b9c"
RESULT = ImageResult(images=())


@pytest.fixture
async def transport() -> AsyncIterator[Transport]:
    made = Transport(PoolTransport(), guarded=PoolTransport(accepts=is_public))
    yield made
    await made.aclose()


def provider(peer: Host, **options: Any) -> Provider:
    return Provider("acme", "Acme", "acme", {"api": peer.url("/v1")}, key=KEY, **options)


def generate(peer: Host, *, stream: bool = False) -> Flow:
    response = yield Call(httpx.Request("POST", peer.url("/v1/images"), json={}), billable=True, stream=stream)
    if stream:
        while (yield Read()):
            pass
    elif response.json() != {"ok": True}:
        raise ProviderError(ErrorKind.UNUSABLE, "not what was asked for", billed=Billed.YES)
    return RESULT


async def fails(transport: Transport, peer: Host, *, timeout_s: float = 5.0, stream: bool = False) -> ProviderError:
    with pytest.raises(ProviderError) as caught:
        await transport.run(generate(peer, stream=stream), provider(peer), Auth(), timeout_s=timeout_s)
    return caught.value


# --- answers that come, late, broken or never ----------------------------------------------------------------------


async def test_an_answer_is_read(transport: Transport) -> None:
    async def answer(exchange: Exchange) -> None:
        await asyncio.sleep(0.05)
        await exchange.reply(b'{"ok": true}', headers="X-Request-Id: r-1\r\n")

    async with host(answer) as peer:
        ran = await transport.run(generate(peer), provider(peer), Auth(), timeout_s=5)
    assert ran.provider_request_id == "r-1"
    assert ran.ttfb_s is not None
    assert 0.05 <= ran.ttfb_s <= ran.latency_s < 2
    assert peer.requests[0].header("authorization") == f"Bearer {KEY}"


async def nothing(exchange: Exchange) -> None:
    await exchange.hang()


async def drip(exchange: Exchange) -> None:
    """A byte now and then: no limit on a single read would ever end this."""
    await exchange.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    while True:
        await exchange.write(b"x")
        await asyncio.sleep(0.02)


async def drip_head(exchange: Exchange) -> None:
    await exchange.write(b"HTTP/1.1 200 OK\r\n")
    for number in range(1_000_000):
        await exchange.write(b"X: %d\r\n" % number)
        await asyncio.sleep(0.02)


async def interim_forever(exchange: Exchange) -> None:
    while True:
        await exchange.write(b"HTTP/1.1 102 Processing\r\n\r\n")
        await asyncio.sleep(0.02)


async def stall(exchange: Exchange) -> None:
    await exchange.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 1000)
    await exchange.hang()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", [nothing, drip, drip_head, interim_forever, stall])
async def test_the_attempt_ends_at_its_deadline(transport: Transport, fault: Any, stream: bool) -> None:
    async with host(fault) as peer:
        started = time.monotonic()
        error = await fails(transport, peer, timeout_s=0.2, stream=stream)
        assert 0.19 < time.monotonic() - started < 1.2
    assert (error.kind, error.billed) == (ErrorKind.NO_ANSWER, Billed.MAYBE)
    assert error.sent_billable is True


async def close(exchange: Exchange) -> None:
    exchange.close()


async def reset(exchange: Exchange) -> None:
    exchange.reset()


async def half(exchange: Exchange) -> None:
    await exchange.write(b'HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n{"ok": ')
    exchange.close()


async def half_a_chunk(exchange: Exchange) -> None:
    await exchange.write(b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nc\r\n{"ok": ')
    exchange.close()


async def another_protocol(exchange: Exchange) -> None:
    await exchange.write(b"220 smtp.example ESMTP\r\n")


async def truncated_json(exchange: Exchange) -> None:
    await exchange.reply(b'{"ok": ')


async def html(exchange: Exchange) -> None:
    await exchange.reply(b"<html>maintenance</html>", headers="Content-Type: text/html\r\n")


@pytest.mark.parametrize("fault", [close, reset, half, half_a_chunk, another_protocol, truncated_json, html])
async def test_a_broken_answer_is_none(transport: Transport, fault: Any) -> None:
    async with host(fault) as peer:
        error = await fails(transport, peer)
    assert (error.kind, error.billed) == (ErrorKind.NO_ANSWER, Billed.MAYBE)
    assert len(peer.requests) == 1, "a generation is never sent twice"


async def test_a_host_that_is_down_was_sent_nothing(transport: Transport) -> None:
    error = await fails(transport, Host(closed_port()))
    assert (error.kind, error.billed, error.sent_billable) == (ErrorKind.NOT_SENT, Billed.NO, False)


async def test_a_name_that_does_not_resolve_in_time_was_sent_nothing() -> None:
    async def never(host: str, port: int) -> list[str]:
        await asyncio.Event().wait()
        raise AssertionError

    transport = Transport(PoolTransport(resolve=never))
    down = Provider("acme", "Acme", "acme", {"api": "https://acme.example"}, key=KEY)

    def flow() -> Flow:
        yield Call(httpx.Request("POST", "https://acme.example/images"), billable=True)
        return RESULT

    with pytest.raises(ProviderError) as caught:
        await transport.run(flow(), down, Auth(), timeout_s=0.1)  # ends before the limit on connecting does
    assert (caught.value.kind, caught.value.billed) == (ErrorKind.NOT_SENT, Billed.NO)
    await transport.aclose()


async def test_an_interrupted_call_leaves_no_connection_behind(transport: Transport) -> None:
    arrived, gone = asyncio.Event(), asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        arrived.set()
        await exchange.hang()
        gone.set()

    async with host(answer) as peer:
        task = asyncio.create_task(transport.run(generate(peer), provider(peer), Auth(), timeout_s=60))
        await arrived.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(gone.wait(), 2)


async def test_a_download_begins_again_after_a_cut() -> None:
    async def answer(exchange: Exchange) -> None:
        if len(peer.requests) < 3:
            await exchange.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
            exchange.close()
        else:
            await exchange.reply(b"the whole", headers="Content-Type: image/png\r\n")

    transport = Transport(PoolTransport(), sleep=lambda _: asyncio.sleep(0))
    async with host(answer) as peer:
        found = await transport.download(peer.url("/1.png"), provider(peer), timeout_s=5, max_bytes=100)
    await transport.aclose()
    assert found == (b"the whole", "image/png")
    assert [received.header("authorization") for received in peer.requests] == [None, None, None]


# --- forbidden addresses -------------------------------------------------------------------------------------------

# Every one of these leads, or would lead, to the machine itself or its network. {port} is a host that listens there.
FORBIDDEN = [
    "http://127.0.0.1:{port}/",
    "http://127.0.0.1.:{port}/",
    "http://127.1:{port}/",
    "http://127.0.1:{port}/",
    "http://127.000.000.001:{port}/",
    "http://0177.0.0.1:{port}/",
    "http://0x7f.0.0.1:{port}/",
    "http://0x7f000001:{port}/",
    "http://2130706433:{port}/",
    "http://017700000001:{port}/",
    "http://127.0.0.2:{port}/",
    "http://127.255.255.254:{port}/",
    "http://0.0.0.0:{port}/",
    "http://0:{port}/",
    "http://localhost:{port}/",
    "http://LOCALHOST:{port}/",
    "http://localhost.:{port}/",
    "http://ip6-localhost:{port}/",
    "http://[::1]:{port}/",
    "http://[::]:{port}/",
    "http://[0:0:0:0:0:0:0:1]:{port}/",
    "http://[::ffff:127.0.0.1]:{port}/",
    "http://[::ffff:7f00:1]:{port}/",
    "http://[::127.0.0.1]:{port}/",
    "http://[64:ff9b::127.0.0.1]:{port}/",
    "http://[64:ff9b::7f00:1]:{port}/",
    "http://[2002:7f00:1::]:{port}/",
    "http://[fe80::1]:{port}/",
    "http://[fd00:ec2::254]/latest/meta-data/",
    "http://169.254.169.254/latest/meta-data/",
    "http://[::ffff:169.254.169.254]/latest/meta-data/",
    "http://2852039166/latest/meta-data/",
    "http://0xA9FEA9FE/latest/meta-data/",
    "http://169.254.170.2/v2/credentials",
    "http://100.100.100.200/latest/meta-data/",
    "http://192.0.0.192/opc/v2/instance/",
    "http://168.63.129.16/machine?comp=goalstate",
    "http://10.0.0.1/",
    "http://172.16.0.1/",
    "http://192.168.0.1/",
    "http://100.64.0.1/",
    "http://198.18.0.1/",
    "http://203.0.113.7/",
    "http://224.0.0.251/",
    "http://255.255.255.255/",
    "http://[ff02::1]/",
    "http://[fc00::1]/",
    "https://127.0.0.1:{port}/",
    "https://localhost:{port}/",
    "http://①②⑦.⓪.⓪.①:{port}/",
    "http://ⓛocalhost:{port}/",
    "http://127。0。0。1:{port}/",
    "http://127.0.0.1:{port}\\@public.example/",
    "http://public.example@127.0.0.1:{port}/",
    "http://public.example:80@127.0.0.1:{port}/",
    "http://127.0.0.1%2f@public.example:{port}/",
    "http://127.0.0.1:{port}#@public.example/",
    "http://127.0.0.1:{port}?@public.example/",
    "http://%31%32%37.0.0.1:{port}/",
    "http://127.0.0.1%00.public.example:{port}/",
    "//127.0.0.1:{port}/",
    "file:///etc/passwd",
    "gopher://127.0.0.1:{port}/_GET",
    "unix:///var/run/docker.sock",
    "http+unix://%2Fvar%2Frun%2Fdocker.sock/info",
]


async def local_names(host: str, port: int) -> list[str]:
    """The machine's own names and number formats, but no question to the network."""
    if host.endswith(".example"):
        raise OSError(f"{host} does not exist")
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


@pytest.fixture
async def watched() -> AsyncIterator[tuple[Transport, list[str]]]:
    """A transport and the addresses to which it opened a socket that it should not have."""
    opened: list[str] = []

    class Watching(PoolTransport):
        def _socket(self, info: Any) -> socket.socket:
            made = super()._socket(info)
            opened.append(info[4][0])
            return made

    made = Transport(PoolTransport(), guarded=Watching(accepts=is_public, resolve=local_names))
    yield made, opened
    await made.aclose()


async def secret(exchange: Exchange) -> None:
    await exchange.reply(b"internal secret")


async def test_no_url_leads_inside(watched: tuple[Transport, list[str]]) -> None:
    transport, opened = watched
    assert len(FORBIDDEN) >= 60
    stranger = Provider("acme", "Acme", "acme", {"api": "https://api.acme.example"}, key=KEY)
    async with host(secret) as peer, host(secret, address="::1") as six:
        for pattern in FORBIDDEN:
            for port in {peer.port, six.port} if "[" in pattern else {peer.port}:
                url = pattern.format(port=port)
                with pytest.raises(ValueError, match=r"URL|addresses"):
                    await transport.fetch(url, max_bytes=1000, timeout_s=5)
                with pytest.raises(ProviderError):
                    await transport.download(url, stranger, timeout_s=0.02, max_bytes=1000)
    assert opened == []
    assert peer.connections == six.connections == 0


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_no_redirect_leads_inside(status: int) -> None:
    """A host that may be reached answers with the address of one that may not."""

    async def answer(exchange: Exchange) -> None:
        await exchange.reply(status=f"{status} Moved", headers=f"Location: {inside.url('/secret')}\r\n")

    def accepts(address: str) -> bool:
        return address == "127.0.0.2"  # plays the public internet

    async with host(secret) as inside, host(answer, address="127.0.0.2") as outside:
        transport = Transport(PoolTransport(), guarded=PoolTransport(accepts=accepts))
        with pytest.raises(ValueError, match="not on the public internet"):
            await transport.fetch(outside.url(name="127.0.0.2"), max_bytes=1000, timeout_s=5)
        await transport.aclose()
    assert outside.connections == 1
    assert inside.connections == 0


async def test_a_name_that_changes_its_mind_leads_nowhere() -> None:
    """DNS rebinding: public when looked at, private when connected to, on every try."""

    asked = 0

    async def rebinding(host: str, port: int) -> list[str]:
        nonlocal asked
        asked += 1
        return (["127.0.0.2"], ["127.0.0.1"], ["127.0.0.2", "127.0.0.1"], ["127.0.0.1", "127.0.0.2"])[asked % 4]

    async with host(secret) as inside:
        for _ in range(20):
            guarded = PoolTransport(accepts=lambda address: address == "127.0.0.2", resolve=rebinding)
            transport = Transport(PoolTransport(), guarded=guarded)
            with pytest.raises(ValueError, match="host"):
                await transport.fetch(inside.url(name="rebinding.example"), max_bytes=1000, timeout_s=5)
            await transport.aclose()
    assert asked == 20
    assert inside.connections == 0


async def test_what_a_provider_names_may_not_lead_inside_either(transport: Transport) -> None:
    """Its own origin and its result hosts are the operator's word; other addresses in its answers are not."""

    async def answer(exchange: Exchange) -> None:
        await exchange.reply(b'{"ok": true}')

    async with host(answer) as peer, host(secret) as inside:

        def flow() -> Flow:
            yield Call(httpx.Request("POST", peer.url("/v1/images"), json={}), billable=True)
            yield Call(httpx.Request("GET", inside.url("/poll").replace("http:", "https:")))
            return RESULT

        with pytest.raises(ProviderError) as caught:
            await transport.run(flow(), provider(peer), Auth(), timeout_s=5)
        assert (caught.value.kind, caught.value.billed) == (ErrorKind.NO_ANSWER, Billed.MAYBE)
        with pytest.raises(ProviderError, match="not public"):
            await transport.download(inside.url("/1.png"), provider(peer), timeout_s=5, max_bytes=100)
        assert inside.connections == 0
        near = provider(peer, result_hosts=("127.0.0.1",))
        found, _ = await transport.download(inside.url("/1.png"), near, timeout_s=5, max_bytes=100)
        assert found == b"internal secret", "the operator said so"


# --- bombs ---------------------------------------------------------------------------------------------------------

BOMB = """
import asyncio, resource, sys
import httpx
from router.errors import ProviderError
from router.pool import PoolTransport
from router.providers.base import Auth, Call
from router.transport import Transport
from router.types import ImageResult, Provider

async def main(url, stream):
    def flow():
        yield Call(httpx.Request("POST", url), billable=True)
        return ImageResult(())
    transport = Transport(PoolTransport())
    peer = Provider("acme", "Acme", "acme", {"api": url})
    try:
        await transport.run(flow(), peer, Auth(), timeout_s=60)
    except ProviderError as error:
        print(error.kind, error.message)
    await transport.aclose()

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
asyncio.run(main(sys.argv[1], False))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


async def bomb(exchange: Exchange) -> None:
    """A megabyte that unpacks to a gigabyte: a block of zeros, again and again."""
    packer = zlib.compressobj(9, wbits=31)
    head = packer.compress(b"") + packer.flush(zlib.Z_FULL_FLUSH)
    body = head + (packer.compress(bytes(1_000_000)) + packer.flush(zlib.Z_FULL_FLUSH)) * 1000
    await exchange.reply(body, headers="Content-Encoding: gzip\r\n")


async def endless(exchange: Exchange) -> None:
    await exchange.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        await exchange.write(b"10000\r\n" + bytes(65536) + b"\r\n")


@pytest.mark.parametrize("attack", [bomb, endless])
async def test_memory_is_bounded_whatever_comes(attack: Any) -> None:
    """In a process of its own: the high-water mark of resident memory, with the router's own bound on answers."""
    async with host(attack) as peer:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            BOMB,
            peer.url(),
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        output, _ = await process.communicate()
    verdict, growth = output.decode().splitlines()
    assert verdict.startswith("no_answer The answer is larger than")
    assert int(growth) <= 64, "MB more than an idle transport"
