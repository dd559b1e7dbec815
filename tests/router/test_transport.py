"""Running flows against a mocked network: what a provider is sent, and what becomes of its answers."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from collections.abc import Callable, Generator
from contextlib import nullcontext
from typing import Any

import httpx
import pytest
import respx

from router.blob import Blob
from router.bounded import Turns
from router.errors import Billed, ErrorKind, ProviderError
from router.providers.base import Auth, Call, Flow, Job, Partial, Read
from router.transport import CONNECT_S, MAX_REDIRECTS, POLL_READ_S, RETRY_DELAYS_S, Ran, Transport
from router.types import GeneratedImage, ImageResult, Provider

pytestmark = pytest.mark.anyio

BASE = "https://api.acme.example/v1"
KEY = "acme-secret-5f2b9c"
ACME = Provider("acme", "Acme", "acme", {"api": BASE}, key=KEY, result_hosts=("cdn.acme.example", "*.media.example"))
AUTH = Auth()
RESULT = ImageResult(images=(GeneratedImage(b64=Blob(b"aGVsbG8=")),))


class Network:
    """A mocked network, a clock that only sleeping moves, and a record of the sleeps."""

    def __init__(self, **options: Any) -> None:
        self.router = respx.MockRouter(assert_all_called=False)
        self.guarded = respx.MockRouter(assert_all_called=False)
        self.now = 1000.0
        self.slept: list[float] = []
        self.transport = Transport(
            httpx.MockTransport(self.router.async_handler),
            guarded=httpx.MockTransport(self.guarded.async_handler),
            clock=lambda: self.now,
            sleep=self._sleep,
            **options,
        )

    async def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)

    async def run(self, flow: Flow, provider: Provider = ACME, auth: Auth = AUTH, **options: Any) -> Ran:
        return await self.transport.run(flow, provider, auth, **{"timeout_s": 5.0} | options)

    async def failure(self, flow: Flow, provider: Provider = ACME, **options: Any) -> ProviderError:
        with pytest.raises(ProviderError) as caught:
            await self.run(flow, provider, **options)
        return caught.value

    def takes(self, seconds: float, response: httpx.Response) -> Callable[[httpx.Request], httpx.Response]:
        def answer(_: httpx.Request) -> httpx.Response:
            self.now += seconds
            return response

        return answer


@pytest.fixture
def network() -> Network:
    return Network()


def submit(url: str = f"{BASE}/images", **options: Any) -> Call:
    return Call(httpx.Request("POST", url, json={"prompt": "p"}), billable=True, **options)


def poll(url: str = f"{BASE}/jobs/1", **options: Any) -> Call:
    return Call(httpx.Request("GET", url), **options)


def one(call: Call, seen: list[httpx.Response] | None = None) -> Flow:
    response = yield call
    if seen is not None:
        seen.append(response)
    return RESULT


def then(*calls: Call) -> Flow:
    for call in calls:
        assert (yield call) is not None
    return RESULT


# --- what goes out -------------------------------------------------------------------------------------------------


async def test_a_call_goes_out_with_the_key_and_comes_back_without(network: Network) -> None:
    route = network.router.post(f"{BASE}/images").respond(200, json={"ok": True}, headers={"X-Request-Id": "r-1"})
    call, seen = submit(), list[httpx.Response]()
    ran = await network.run(one(call, seen))
    sent = route.calls.last.request
    assert sent.headers["authorization"] == f"Bearer {KEY}"
    assert sent.headers["user-agent"].startswith("pixelroute/")
    assert sent.content == call.request.content
    assert sent.headers["content-type"] == "application/json"
    assert "authorization" not in call.request.headers, "the adapter's own request never holds the key"
    assert seen[0].request is call.request, "nor does what it is handed back"
    assert seen[0].json() == {"ok": True}
    assert (ran.result, ran.sent_billable, ran.provider_request_id) == (RESULT, True, "r-1")


@pytest.mark.parametrize(
    ("auth", "header", "value"),
    [
        (Auth(), "authorization", f"Bearer {KEY}"),
        (Auth("Authorization", "Key "), "authorization", f"Key {KEY}"),
        (Auth("x-key", ""), "x-key", KEY),
    ],
)
async def test_every_provider_gets_its_key_its_way(network: Network, auth: Auth, header: str, value: str) -> None:
    route = network.router.post(f"{BASE}/images").respond(200)
    await network.run(one(submit()), auth=auth)
    assert route.calls.last.request.headers[header] == value


async def test_a_provider_without_a_key_is_sent_none(network: Network) -> None:
    route = network.router.post(f"{BASE}/images").respond(200)
    await network.run(one(submit()), Provider("acme", "Acme", "acme", {"api": BASE}))
    assert "authorization" not in route.calls.last.request.headers


async def test_a_header_the_adapter_set_itself_is_kept(network: Network) -> None:
    route = network.router.post(f"{BASE}/images").respond(200)
    headers = {"Authorization": "Bearer upload-token", "User-Agent": "acme-client"}
    await network.run(one(Call(httpx.Request("POST", f"{BASE}/images", headers=headers))))
    sent = route.calls.last.request
    assert sent.headers.get_list("authorization") == ["Bearer upload-token"]
    assert sent.headers.get_list("user-agent") == ["acme-client"]


async def test_a_changed_provider_is_trusted_as_it_is_now(network: Network) -> None:
    """A reload replaces the Provider; its new key and URL hold at once."""
    first = network.router.post(f"{BASE}/images").respond(200)
    await network.run(one(submit()))
    moved = Provider("acme", "Acme", "acme", {"api": "https://new.example"}, key="other")
    second = network.router.post("https://new.example/images").respond(200)
    await network.run(one(submit("https://new.example/images")), moved)
    assert first.calls.last.request.headers["authorization"] == f"Bearer {KEY}"
    assert second.calls.last.request.headers["authorization"] == "Bearer other"
    third = network.guarded.post(f"{BASE}/images").respond(200)
    await network.run(one(submit()), moved)
    assert "authorization" not in third.calls.last.request.headers


async def test_waiting_on_answers_has_limits_the_pool_is_told(network: Network) -> None:
    post = network.router.post(f"{BASE}/images").respond(200)
    get = network.router.get(f"{BASE}/jobs/1").respond(200)
    await network.run(then(submit(), poll()))
    limits = {"connect": CONNECT_S, "pool": CONNECT_S}
    # A generation may be silent for minutes: the attempt's deadline bounds it. A poll should not be.
    assert post.calls.last.request.extensions["timeout"] == limits | {"read": None}
    assert get.calls.last.request.extensions["timeout"] == limits | {"read": POLL_READ_S}


# --- where the key may go ------------------------------------------------------------------------------------------

OWN = [BASE, "https://api.acme.example:443/x", "https://API.ACME.example/y", "https://eu2.acme.example/poll/1"]
NOT_OWN = [
    "http://api.acme.example/v1",  # no TLS
    "https://api.acme.example:8443/v1",
    "https://api.acme.example.evil.example/v1",
    "https://evil-api.acme.example.org/v1",
    "https://acme.example/v1",  # a wildcard is for subdomains
    "https://notacme.example/v1",
    "https://api.acme.example@evil.example/v1",
    "https://evil.example/api.acme.example",
    "https://evil.example/?https://api.acme.example",
    "https://evil.example#https://api.acme.example",
    "https://eu2.acme.example:444/",
    "http://eu2.acme.example/",
]
WIDE = Provider("acme", "Acme", "acme", {"api": BASE, "polling": "https://*.acme.example"}, key=KEY)


@pytest.mark.parametrize("url", OWN)
async def test_the_key_goes_to_the_providers_origins(network: Network, url: str) -> None:
    route = network.router.route().respond(200)
    await network.run(one(poll(url)), WIDE)
    assert route.calls.last.request.headers["authorization"] == f"Bearer {KEY}"
    assert not network.guarded.calls


@pytest.mark.parametrize("url", NOT_OWN)
async def test_the_key_goes_nowhere_else(network: Network, url: str) -> None:
    network.router.route().respond(200)
    network.guarded.route().respond(200)
    with pytest.raises(ProviderError) if url.startswith("http:") else nullcontext():
        await network.run(one(poll(url)), WIDE)
    assert not network.router.calls, "not over the pool that reaches private addresses"
    for call in network.guarded.calls:
        assert KEY not in repr(call.request.headers.raw) + str(call.request.url) + repr(call.request.content)


@pytest.mark.parametrize("host", ["cdn.acme.example", "a.media.example", "a.b.media.example"])
async def test_result_hosts_are_reached_without_the_key(network: Network, host: str) -> None:
    route = network.router.get(f"https://{host}/1.png").respond(200)
    await network.run(one(poll(f"https://{host}/1.png")))
    assert "authorization" not in route.calls.last.request.headers


@pytest.mark.parametrize(
    "host", ["media.example", "xmedia.example", "cdn.acme.example.evil.example", "x.cdn.acme.example"]
)
async def test_names_that_only_look_like_result_hosts_are_guarded(network: Network, host: str) -> None:
    network.guarded.route().respond(200)
    await network.run(one(poll(f"https://{host}/1.png")))
    assert len(network.guarded.calls) == 1


async def test_redirects_of_calls_are_not_followed(network: Network) -> None:
    network.router.post(f"{BASE}/images").respond(307, headers={"Location": "https://evil.example/"})
    seen: list[httpx.Response] = []
    await network.run(one(submit(), seen))
    assert seen[0].status_code == 307
    assert not network.guarded.calls


async def test_without_a_guarded_pool_only_the_provider_is_reached(network: Network) -> None:
    alone = Transport(httpx.MockTransport(network.router.async_handler))
    network.router.route().respond(200)
    with pytest.raises(ProviderError) as caught:
        await alone.run(one(submit("https://elsewhere.example/")), ACME, AUTH, timeout_s=5)
    assert (caught.value.kind, caught.value.billed) == (ErrorKind.NOT_SENT, Billed.NO)
    with pytest.raises(ValueError, match="not on the public internet"):
        await alone.fetch("https://elsewhere.example/", max_bytes=10, timeout_s=1)
    assert not network.router.calls


# --- flows ---------------------------------------------------------------------------------------------------------


async def test_a_queue_is_submitted_noted_polled_and_read(network: Network) -> None:
    order: list[str] = []

    def answered(name: str, **reply: Any) -> Callable[[httpx.Request], httpx.Response]:
        def answer(_: httpx.Request) -> httpx.Response:
            order.append(name)
            return httpx.Response(200, json=reply)

        return answer

    network.router.post(f"{BASE}/images").mock(side_effect=answered("submit", id="j1"))
    network.router.get(f"{BASE}/jobs/j1").mock(side_effect=answered("poll", done=True))

    def flow() -> Flow:
        submitted = yield submit()
        job = submitted.json()["id"]
        yield Job(job, {"url": f"{BASE}/jobs/{job}"})
        assert order[-1] == "noted", "the job is durable before the flow goes on"
        polled = yield poll(f"{BASE}/jobs/{job}", after_s=1.5)
        assert polled.json() == {"done": True}
        yield Partial(GeneratedImage(b64=Blob(b"eA==")), 0)
        return RESULT

    async def on_job(job: Job) -> None:
        await asyncio.sleep(0)
        order.append("noted")
        assert job.state == {"url": f"{BASE}/jobs/j1"}

    async def on_partial(partial: Partial) -> None:
        order.append(f"partial {partial.index}")

    ran = await network.run(flow(), on_job=on_job, on_partial=on_partial)
    assert order == ["submit", "noted", "poll", "partial 0"]
    assert network.slept == [1.5]
    assert ran.latency_s == pytest.approx(1.5)


async def test_jobs_and_partials_nobody_listens_to_are_passed_over(network: Network) -> None:
    def flow() -> Flow:
        assert (yield Job("j", {})) is None
        assert (yield Partial(GeneratedImage(b64=Blob(b"eA==")), 0)) is None
        return RESULT

    assert (await network.run(flow())).result is RESULT


async def test_times_are_measured_from_the_start(network: Network) -> None:
    network.router.post(f"{BASE}/images").mock(side_effect=network.takes(2.0, httpx.Response(200)))
    network.router.get(f"{BASE}/jobs/1").mock(side_effect=network.takes(0.5, httpx.Response(200)))
    ran = await network.run(then(submit(), poll(after_s=3.0)))
    assert (ran.ttfb_s, ran.latency_s) == (pytest.approx(2.0), pytest.approx(5.5))


async def test_a_streamed_answer_is_read_piece_by_piece(network: Network) -> None:
    class Slow(httpx.AsyncByteStream):
        closed = 0

        async def __aiter__(self) -> Any:
            for piece in (b"data: 1\n\n", b"data: 2\n\n", b""):
                yield piece

        async def aclose(self) -> None:
            Slow.closed += 1

    network.router.post(f"{BASE}/images").mock(side_effect=lambda _: httpx.Response(200, stream=Slow()))
    pieces: list[bytes] = []

    def flow() -> Flow:
        response = yield submit(stream=True)
        assert response.status_code == 200
        while piece := (yield Read()):
            pieces.append(piece)
        assert (yield Read()) == b"", "the end stays the end"
        return RESULT

    await network.run(flow())
    assert pieces == [b"data: 1\n\n", b"data: 2\n\n"]
    assert Slow.closed >= 1

    def leaves() -> Flow:
        yield submit(stream=True)
        yield Read()
        raise ProviderError(ErrorKind.UNUSABLE, "enough")

    Slow.closed = 0
    await network.failure(leaves())
    assert Slow.closed >= 1, "closed whatever the flow does"


async def test_a_streamed_answer_ends_when_another_call_begins(network: Network) -> None:
    network.router.post(f"{BASE}/images").respond(200, content=b"abc")
    network.router.get(f"{BASE}/jobs/1").respond(200)

    def flow() -> Flow:
        yield submit(stream=True)
        assert (yield Read()) == b"abc"
        yield poll()
        yield Read()
        return RESULT

    assert (await network.failure(flow())).kind is ErrorKind.NO_ANSWER, "reading on is a mistake of the adapter"


@pytest.mark.parametrize("ending", ["return", "raise", "error", "cancel", "deadline"])
async def test_the_flow_is_always_closed(network: Network, ending: str) -> None:
    closed = False

    async def hang(_: httpx.Request) -> httpx.Response:
        await asyncio.Event().wait()
        raise AssertionError

    network.router.post(f"{BASE}/images").mock(
        side_effect={"error": httpx.ReadError, "cancel": hang, "deadline": hang}.get(
            ending, lambda _: httpx.Response(200)
        )
    )

    def flow() -> Flow:
        nonlocal closed
        try:
            yield submit()
            if ending == "raise":
                raise ProviderError(ErrorKind.REFUSED, "no")
            return RESULT
        finally:
            closed = True

    task = asyncio.create_task(network.run(flow(), timeout_s=0.05 if ending == "deadline" else 5.0))
    if ending == "cancel":
        await asyncio.sleep(0.02)
        task.cancel()
    await asyncio.wait([task])
    assert closed
    assert task.cancelled() is (ending == "cancel")
    if ending not in ("return", "cancel"):
        assert isinstance(task.exception(), ProviderError)


# --- polls that fail in passing ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "failure",
    [
        httpx.ReadTimeout,
        httpx.ConnectError,
        httpx.RemoteProtocolError,
        *(httpx.Response(s) for s in (408, 429, 502, 503, 504)),
    ],
    ids=str,
)
async def test_a_poll_that_fails_in_passing_is_repeated(network: Network, failure: Any) -> None:
    network.router.post(f"{BASE}/images").respond(200)
    route = network.router.get(f"{BASE}/jobs/1")
    route.side_effect = [failure, failure, httpx.Response(200, json={"done": True})]
    ran = await network.run(then(submit(), poll()))
    assert ran.result is RESULT
    assert route.call_count == 3
    assert network.slept == list(RETRY_DELAYS_S[:2])


@pytest.mark.parametrize("status", [200, 202, 400, 401, 404, 422, 500])
async def test_a_poll_with_an_answer_is_not_repeated(network: Network, status: int) -> None:
    route = network.router.get(f"{BASE}/jobs/1").respond(status)
    seen: list[httpx.Response] = []
    await network.run(one(poll(), seen))
    assert (route.call_count, seen[0].status_code) == (1, status)


async def test_a_poll_that_keeps_failing_is_the_adapters_to_judge(network: Network) -> None:
    route = network.router.get(f"{BASE}/jobs/1").respond(503)
    seen: list[httpx.Response] = []
    await network.run(one(poll(), seen))
    assert (route.call_count, seen[0].status_code) == (len(RETRY_DELAYS_S) + 1, 503)


async def test_a_poll_waits_as_long_as_it_is_told(network: Network) -> None:
    route = network.router.get(f"{BASE}/jobs/1")
    route.side_effect = [
        httpx.Response(429, headers={"Retry-After": "4"}),
        httpx.Response(429, headers={"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}),
        httpx.Response(429, headers={"Retry-After": "86400"}),
        httpx.Response(200),
    ]
    await network.run(one(poll()))
    assert network.slept == [4.0, RETRY_DELAYS_S[1], 10.0]


@pytest.mark.parametrize("billable", [True, False])
async def test_nothing_but_a_free_get_is_ever_repeated(network: Network, billable: bool) -> None:
    network.router.route().mock(side_effect=httpx.ReadTimeout)
    await network.failure(one(Call(httpx.Request("POST", f"{BASE}/images"), billable=billable)))
    await network.failure(one(Call(httpx.Request("GET", f"{BASE}/images"), billable=True)))
    assert len(network.router.calls) == 2


# --- failures, and whether they cost -------------------------------------------------------------------------------

NOT_SENT = [httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol, httpx.ProxyError]
NOT_SENT.append(httpx.LocalProtocolError)
SENT = [httpx.ReadError, httpx.WriteError, httpx.CloseError, httpx.ReadTimeout, httpx.WriteTimeout]
SENT += [httpx.RemoteProtocolError, httpx.DecodingError]


@pytest.mark.parametrize("kind", NOT_SENT)
async def test_what_never_left_costs_nothing(network: Network, kind: type[Exception]) -> None:
    network.router.post(f"{BASE}/images").mock(side_effect=kind)
    error = await network.failure(one(submit()))
    assert (error.kind, error.billed, error.sent_billable) == (ErrorKind.NOT_SENT, Billed.NO, False)


@pytest.mark.parametrize("kind", SENT)
async def test_what_left_without_an_answer_may_cost(network: Network, kind: type[Exception]) -> None:
    network.router.post(f"{BASE}/images").mock(side_effect=kind)
    error = await network.failure(one(submit()))
    assert (error.kind, error.billed, error.sent_billable) == (ErrorKind.NO_ANSWER, Billed.MAYBE, True)


@pytest.mark.parametrize("kind", SENT)
async def test_a_free_call_without_an_answer_costs_nothing(network: Network, kind: type[Exception]) -> None:
    network.router.post(f"{BASE}/uploads").mock(side_effect=kind)
    error = await network.failure(one(Call(httpx.Request("POST", f"{BASE}/uploads"))))
    assert (error.kind, error.billed, error.sent_billable) == (ErrorKind.NO_ANSWER, Billed.NO, False)


@pytest.mark.parametrize("kind", [*NOT_SENT, *SENT])
async def test_a_failed_poll_after_a_submit_may_cost(network: Network, kind: type[Exception]) -> None:
    """Not even a refused connection proves anything then: the job may be running."""
    network.router.post(f"{BASE}/images").respond(200)
    network.router.get(f"{BASE}/jobs/1").mock(side_effect=kind)
    error = await network.failure(then(submit(), poll()))
    assert (error.kind, error.billed, error.sent_billable) == (ErrorKind.NO_ANSWER, Billed.MAYBE, True)


async def test_a_resumed_job_may_cost_from_the_start(network: Network) -> None:
    network.router.get(f"{BASE}/jobs/1").mock(side_effect=httpx.ConnectError)
    error = await network.failure(one(poll()), resumed=True)
    assert (error.kind, error.billed) == (ErrorKind.NO_ANSWER, Billed.MAYBE)


async def test_a_transport_that_knows_better_is_believed(network: Network) -> None:
    """The pool says whether the first byte left; so an interrupted connect is not mistaken for a lost answer."""

    async def connecting(request: httpx.Request) -> httpx.Response:
        request.extensions["sent"] = False
        await asyncio.Event().wait()
        raise AssertionError

    transport = Transport(httpx.MockTransport(connecting))
    with pytest.raises(ProviderError) as caught:
        await transport.run(one(submit()), ACME, AUTH, timeout_s=0.05)
    assert (caught.value.kind, caught.value.billed) == (ErrorKind.NOT_SENT, Billed.NO)


async def test_an_adapters_verdict_stands(network: Network) -> None:
    network.router.post(f"{BASE}/images").respond(500, headers={"X-Request-Id": "r-9"})

    def flow(billed: Billed | None) -> Flow:
        yield submit()
        raise ProviderError(ErrorKind.SERVER_ERROR, "broken", billed=billed)

    for billed in (Billed.NO, Billed.YES, Billed.MAYBE, None):
        error = await network.failure(flow(billed))
        assert (error.kind, error.billed) == (ErrorKind.SERVER_ERROR, billed)
        assert error.provider_request_id == "r-9"


async def test_a_failure_before_anything_billable_left_is_free(network: Network) -> None:
    network.router.post(f"{BASE}/uploads").respond(500)

    def flow() -> Flow:
        yield Call(httpx.Request("POST", f"{BASE}/uploads"))
        raise ProviderError(ErrorKind.SERVER_ERROR, "the upload failed")

    assert (await network.failure(flow())).billed is Billed.NO


@pytest.mark.parametrize(
    "bug", [KeyError("images"), ValueError("NaN"), RecursionError(), AttributeError("x"), ZeroDivisionError()]
)
async def test_an_adapter_that_stumbles_leaves_a_maybe_behind(network: Network, bug: Exception, caplog: Any) -> None:
    network.router.post(f"{BASE}/images").respond(200, text="<html>")

    def flow() -> Flow:
        yield submit()
        raise bug

    error = await network.failure(flow())
    assert (error.kind, error.billed) == (ErrorKind.NO_ANSWER, Billed.MAYBE)
    assert error.__cause__ is bug
    assert "acme" in caplog.text, "and a line in the log"


async def test_failures_carry_their_times(network: Network) -> None:
    network.router.post(f"{BASE}/images").mock(side_effect=network.takes(2.0, httpx.Response(200)))

    def flow() -> Flow:
        yield submit()
        raise ProviderError(ErrorKind.UNUSABLE, "no picture")

    error = await network.failure(flow())
    assert (error.latency_s, error.ttfb_s, error.sent_billable) == (pytest.approx(2.0), pytest.approx(2.0), True)


# --- deadline and cancellation -------------------------------------------------------------------------------------


def polling() -> Generator[Any, Any, ImageResult]:
    yield submit()
    while True:
        yield poll(after_s=0.01)


@pytest.mark.parametrize("where", ["waiting for the answer", "polling", "sleeping", "noting the job"])
async def test_the_deadline_covers_everything(where: str) -> None:
    async def answer(request: httpx.Request) -> httpx.Response:
        if where == "waiting for the answer":
            await asyncio.Event().wait()
        return httpx.Response(200)

    async def on_job(_: Job) -> None:
        await asyncio.Event().wait()

    def flow() -> Flow:
        if where == "polling":
            return (yield from polling())
        yield submit()
        if where == "noting the job":
            yield Job("j", {})
        yield poll(after_s=3600)
        return RESULT

    transport = Transport(httpx.MockTransport(answer))
    with pytest.raises(ProviderError, match=r"within 0\.1 seconds") as caught:
        await transport.run(flow(), ACME, AUTH, timeout_s=0.1, on_job=on_job)
    error = caught.value
    assert (error.kind, error.billed, error.sent_billable) == (ErrorKind.NO_ANSWER, Billed.MAYBE, True)
    assert error.latency_s is not None
    assert 0.09 < error.latency_s < 1.0


async def test_a_timeout_inside_a_flow_is_not_the_deadline(network: Network) -> None:
    def flow() -> Flow:
        yield submit()
        raise TimeoutError

    network.router.post(f"{BASE}/images").respond(200)
    assert "could not be read" in (await network.failure(flow())).message


async def test_cancellation_passes_through_untouched() -> None:
    arrived = asyncio.Event()

    async def answer(_: httpx.Request) -> httpx.Response:
        arrived.set()
        await asyncio.Event().wait()
        raise AssertionError

    task = asyncio.create_task(Transport(httpx.MockTransport(answer)).run(one(submit()), ACME, AUTH, timeout_s=60))
    await arrived.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


# --- bounds and encodings ------------------------------------------------------------------------------------------


class Chunks(httpx.AsyncByteStream):
    """A body in pieces, counting those that were asked for."""

    def __init__(self, *pieces: bytes, repeat: int = 1) -> None:
        self._pieces = pieces * repeat
        self.taken = 0

    async def __aiter__(self) -> Any:
        for piece in self._pieces:
            self.taken += 1
            yield piece


@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_is_bounded(stream: bool) -> None:
    network = Network(max_response_bytes=1000)
    body = Chunks(b"x" * 100, repeat=1000)
    network.router.post(f"{BASE}/images").mock(return_value=httpx.Response(200, stream=body))

    def flow() -> Flow:
        yield submit(stream=stream)
        while (yield Read()):
            pass
        return RESULT

    error = await network.failure(flow())
    assert (error.kind, error.billed) == (ErrorKind.NO_ANSWER, Billed.MAYBE)
    assert "larger than the 1000 bytes" in error.message
    assert body.taken == 11, "the rest was not even asked for"


async def test_several_pictures_may_need_a_larger_bound() -> None:
    network = Network(max_response_bytes=1000)
    network.router.post(f"{BASE}/images").mock(
        side_effect=lambda _: httpx.Response(200, stream=Chunks(b"x" * 100, repeat=20))
    )
    await network.run(one(submit()), max_bytes=2000)
    await network.failure(one(submit()), max_bytes=1999)


async def test_an_answer_that_came_whole_is_bounded_too() -> None:
    network = Network(max_response_bytes=1000)
    network.router.post(f"{BASE}/images").respond(200, content=b"x" * 1001)
    assert "larger than" in (await network.failure(one(submit()))).message


COMPRESSED = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "deflate": zlib.compress,
    "identity": bytes,
    " GZIP ": gzip.compress,
}


@pytest.mark.parametrize("encoding", COMPRESSED)
async def test_compression_nobody_asked_for_is_undone(network: Network, encoding: str) -> None:
    body = COMPRESSED[encoding](b'{"data": []}' * 1000)
    headers = {"Content-Encoding": encoding}
    pieces = [body[at : at + 7] for at in range(0, len(body), 7)]
    network.router.post(f"{BASE}/images").mock(
        side_effect=lambda _: httpx.Response(200, headers=headers, stream=Chunks(*pieces))
    )
    seen: list[httpx.Response] = []
    await network.run(one(submit(), seen))
    assert seen[0].content == b'{"data": []}' * 1000


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", b"not gzip"),
        ("gzip", gzip.compress(b"x" * 1000)[:-9]),
        ("br", b"x"),
        ("zstd", b"x"),
        ("gzip, gzip", b"x"),
    ],
)
async def test_compression_that_cannot_be_undone_is_no_answer(network: Network, encoding: str, body: bytes) -> None:
    response = httpx.Response(200, headers={"Content-Encoding": encoding}, stream=Chunks(body))
    network.router.post(f"{BASE}/images").mock(return_value=response)
    error = await network.failure(one(submit()))
    assert (error.kind, error.billed) == (ErrorKind.NO_ANSWER, Billed.MAYBE)


# --- secrets -------------------------------------------------------------------------------------------------------


async def test_a_provider_that_quotes_the_key_is_not_passed_on(network: Network) -> None:
    network.router.post(f"{BASE}/images").respond(401, json={"error": f"bad key {KEY}"})

    def flow() -> Flow:
        response = yield submit()
        details = {"text": response.text, "list": [KEY, 1], "deep": {"x": (f"a{KEY}b",)}}
        raise ProviderError(ErrorKind.AUTH, response.json()["error"], details=details)

    error = await network.failure(flow())
    assert KEY not in error.message + str(error) + repr(error.args) + repr(error.details)
    assert error.message == "bad key [key]"
    assert error.details["deep"] == {"x": ["a[key]b"]}


@pytest.mark.parametrize("kind", [*NOT_SENT, *SENT, KeyError])
async def test_no_failure_shows_host_or_key(network: Network, kind: type[Exception]) -> None:
    def fail(request: httpx.Request) -> httpx.Response:
        raise kind(f"{request.url} {dict(request.headers)}")

    network.router.route().mock(side_effect=fail)
    error = await network.failure(one(submit()))
    assert "acme.example" not in str(error) + repr(error.args)
    assert KEY not in str(error) + repr(error.args)


# --- single calls --------------------------------------------------------------------------------------------------


async def test_a_single_call_is_made_like_any_other(network: Network) -> None:
    route = network.router.put(f"{BASE}/jobs/1/cancel").respond(202, json={"status": "CANCELLED"})
    call = Call(httpx.Request("PUT", f"{BASE}/jobs/1/cancel"))
    response = await network.transport.call(call, ACME, AUTH, timeout_s=5)
    assert response.json() == {"status": "CANCELLED"}
    assert route.calls.last.request.headers["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize(
    ("kind", "expected"), [(httpx.ConnectError, ErrorKind.NOT_SENT), (httpx.ReadError, ErrorKind.NO_ANSWER)]
)
async def test_a_single_call_fails_like_any_other(network: Network, kind: type[Exception], expected: ErrorKind) -> None:
    network.router.put(f"{BASE}/jobs/1/cancel").mock(side_effect=kind)
    with pytest.raises(ProviderError) as caught:
        await network.transport.call(Call(httpx.Request("PUT", f"{BASE}/jobs/1/cancel")), ACME, AUTH, timeout_s=5)
    assert (caught.value.kind, caught.value.billed) == (expected, Billed.NO)


# --- downloads -----------------------------------------------------------------------------------------------------

PICTURE = "https://cdn.acme.example/1.png"


async def download(network: Network, url: str = PICTURE, *, most: int = 1000) -> tuple[bytes, str | None]:
    return await network.transport.download(url, ACME, timeout_s=5.0, max_bytes=most)


async def undelivered(network: Network, url: str = PICTURE, *, most: int = 1000) -> ProviderError:
    with pytest.raises(ProviderError) as caught:
        await download(network, url, most=most)
    assert (caught.value.kind, caught.value.billed) == (ErrorKind.DOWNLOAD, Billed.YES), "the picture is paid for"
    return caught.value


async def test_a_picture_is_fetched_without_the_key(network: Network) -> None:
    for url in (PICTURE, f"{BASE}/files/1.png"):
        route = network.router.get(url).respond(200, content=b"png", headers={"Content-Type": "image/png"})
        assert await download(network, url) == (b"png", "image/png")
        assert "authorization" not in route.calls.last.request.headers
        assert route.calls.last.request.headers["user-agent"].startswith("pixelroute/"), "some hosts refuse none"


@pytest.mark.parametrize(
    "failure",
    [httpx.ReadError, httpx.ConnectTimeout, *(httpx.Response(s) for s in (404, 408, 429, 500, 502, 503, 504))],
    ids=str,
)
async def test_a_download_is_tried_four_times(network: Network, failure: Any) -> None:
    route = network.router.get(PICTURE)
    route.side_effect = [failure, failure, failure, httpx.Response(200, content=b"png")]
    assert (await download(network))[0] == b"png"
    assert network.slept == list(RETRY_DELAYS_S)
    route.side_effect = [failure] * 5
    await undelivered(network)
    assert route.call_count == 4 + 4


@pytest.mark.parametrize("status", [204, 206, 304, 401, 403, 410])
async def test_a_download_that_is_refused_is_not_repeated(network: Network, status: int) -> None:
    route = network.router.get(PICTURE).respond(status)
    assert str(status) in (await undelivered(network)).message
    assert route.call_count == 1


@pytest.mark.parametrize("declared", [True, False])
async def test_a_picture_that_is_too_large_is_left(network: Network, declared: bool) -> None:
    body = Chunks(b"x" * 100, repeat=20)
    headers = {"Content-Length": "2000"} if declared else {}
    network.router.get(PICTURE).mock(return_value=httpx.Response(200, headers=headers, stream=body))
    error = await undelivered(network)
    assert "larger than 1000 bytes" in error.message
    assert body.taken == (0 if declared else 11)


async def test_redirects_of_downloads_are_checked_each(network: Network) -> None:
    network.router.get(f"{BASE}/files/1").respond(302, headers={"Location": "https://cdn.acme.example/1.png"})
    network.router.get(PICTURE).respond(301, headers={"Location": "https://elsewhere.example/2.png"})
    elsewhere = network.guarded.get("https://elsewhere.example/2.png").respond(307, headers={"Location": "/3.png"})
    network.guarded.get("https://elsewhere.example/3.png").respond(200, content=b"png")
    assert (await download(network, f"{BASE}/files/1"))[0] == b"png"
    assert elsewhere.call_count == 1


@pytest.mark.parametrize(
    "location", ["http://elsewhere.example/", "ftp://cdn.acme.example/", "https://a:b@x.example/", "https://"]
)
async def test_a_redirect_to_nowhere_good_ends_a_download(network: Network, location: str) -> None:
    network.router.get(PICTURE).respond(302, headers={"Location": location})
    await undelivered(network)
    assert not network.guarded.calls


async def test_redirects_in_a_circle_end(network: Network) -> None:
    route = network.router.get(PICTURE).respond(302, headers={"Location": PICTURE})
    assert "redirects too often" in (await undelivered(network)).message
    assert route.call_count == MAX_REDIRECTS + 1


@pytest.mark.parametrize(
    "url", ["", "nonsense", "file:///etc/passwd", "data:image/png;base64,AAAA", "https://[::1", "//x/y", "https:///x"]
)
async def test_what_is_not_a_web_address_is_not_downloaded(network: Network, url: str) -> None:
    await undelivered(network, url)
    assert not network.router.calls
    assert not network.guarded.calls


async def test_a_download_ends_with_its_time(network: Network) -> None:
    async def hang(_: httpx.Request) -> httpx.Response:
        await asyncio.Event().wait()
        raise AssertionError

    transport = Transport(httpx.MockTransport(hang))
    with pytest.raises(ProviderError, match="took too long") as caught:
        await transport.download(PICTURE, ACME, timeout_s=0.05, max_bytes=10)
    assert caught.value.kind is ErrorKind.DOWNLOAD


# --- a client's own URLs -------------------------------------------------------------------------------------------

INPUT = "https://pictures.example/in.png"


async def test_a_clients_url_goes_over_the_guarded_pool_only(network: Network) -> None:
    for url in (INPUT, "http://pictures.example/in.png", PICTURE, f"{BASE}/files/1"):
        route = network.guarded.get(url).respond(200, content=b"png")
        assert await network.transport.fetch(url, max_bytes=10, timeout_s=1) == b"png"
        assert "authorization" not in route.calls.last.request.headers
    assert not network.router.calls, "a client's URL enjoys no provider's trust"


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("file:///etc/passwd", "only http and https"),
        ("ftp://pictures.example/", "only http and https"),
        ("gopher://pictures.example/", "only http and https"),
        ("/in.png", "only http and https"),
        ("", "only http and https"),
        ("https://", "only http and https"),
        ("https://user:password@pictures.example/", "user name or password"),
        ("https://[::1", "not a valid URL"),
        ("https://exa mple/\n", "not a valid URL"),
    ],
)
async def test_a_clients_url_must_be_a_plain_web_address(network: Network, url: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        await network.transport.fetch(url, max_bytes=10, timeout_s=1)
    assert not network.guarded.calls


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (httpx.Response(404), "answered 404"),
        (httpx.Response(200, content=b"x" * 11), "larger than 10 bytes"),
        (httpx.Response(302, headers={"Location": "file:///etc/passwd"}), "only http and https"),
        (httpx.ConnectError("secret"), "could not be reached"),
        (httpx.ReadTimeout("secret"), "could not be reached"),
        (httpx.Response(200, headers={"Content-Encoding": "br"}, stream=Chunks(b"x")), "could not be reached"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_clients_url_that_fails_is_told_why(network: Network, answer: Any, reason: str) -> None:
    network.guarded.get(INPUT).mock(side_effect=[answer])
    with pytest.raises(ValueError, match=reason) as caught:
        await network.transport.fetch(INPUT, max_bytes=10, timeout_s=1)
    assert "secret" not in str(caught.value)


async def test_closing_closes_both_pools() -> None:
    closed: list[str] = []

    class Pool(httpx.AsyncBaseTransport):
        def __init__(self, name: str) -> None:
            self.name = name

        async def aclose(self) -> None:
            closed.append(self.name)

    await Transport(Pool("http"), guarded=Pool("guarded")).aclose()
    assert closed == ["http", "guarded"]


# --- long answers take turns ------------------------------------------------------------------------------------


async def test_long_bodies_are_read_a_few_at_a_time():
    turns, reading, most = Turns(2, patience_s=60), 0, 0

    async def read() -> None:
        nonlocal reading, most
        async with turns.turn():
            reading += 1
            most = max(most, reading)
            await asyncio.sleep(0)
            reading -= 1

    await asyncio.gather(*(read() for _ in range(9)))
    assert (most, reading) == (2, 0)


async def test_a_slow_host_keeps_nobody_waiting():
    turns, ended = Turns(1, patience_s=0.01), asyncio.Event()

    async def slow() -> None:
        async with turns.turn():
            await ended.wait()

    first = asyncio.create_task(slow())
    async with asyncio.timeout(5), turns.turn():
        ended.set()
        await first
    assert turns._free._value == 1  # its turn was given back once, not twice


async def test_a_provider_is_told_how_much_time_is_left(network: Network) -> None:
    """What it has when the call leaves, not when the attempt began; questions about the job carry nothing of it."""
    network.router.get(f"{BASE}/prices").mock(side_effect=network.takes(1.25, httpx.Response(200)))
    told = network.router.post(f"{BASE}/images").respond(200)
    asked = network.router.get(f"{BASE}/jobs/1").respond(200)

    def flow() -> Flow:
        yield poll(f"{BASE}/prices")
        yield submit(deadline=lambda left_s: (b"x-time-left", b"%.2f" % left_s))
        yield poll()
        return RESULT

    await network.run(flow(), timeout_s=30.0)
    assert told.calls.last.request.headers["x-time-left"] == "28.75"
    assert "x-time-left" not in asked.calls.last.request.headers
