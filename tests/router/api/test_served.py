"""The HTTP face behind the real server, spoken to by the official client and by rude ones."""

import asyncio
import base64
import io
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from starlette.applications import Starlette
from starlette.types import Receive, Scope, Send

from router.api import Exchange
from router.errors import RequestError
from router.mediastore import Directory, MediaStore
from router.types import Accepted, GeneratedImage, PartialImage
from tests.router.api.conftest import KEY
from tests.router.api.fake import FakeGateway, mask, picture
from tests.router.serving import served

pytestmark = pytest.mark.anyio

PNG = picture()


async def until(condition: Callable[[], bool]) -> None:
    """The server ends a request some time after its client has gone."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - what is waited for is a list that grows
            await asyncio.sleep(0.01)


@pytest.fixture
async def url(make_app: Callable[..., Starlette]) -> AsyncIterator[str]:
    async with served(make_app()) as url:
        yield url


@pytest.fixture
async def sdk(url: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(api_key=KEY, base_url=url + "/v1") as client:
        yield client


# --- the official client ----------------------------------------------------------------------------------------


async def test_sdk_generate(sdk: openai.AsyncOpenAI, gateway: FakeGateway) -> None:
    answer = await sdk.images.generate(model="flux.2-dev-turbo", prompt="a cat", size="1024x1024", n=2, user=None)  # type: ignore[call-overload]
    assert [image.b64_json for image in answer.data] == [None, None]
    assert all(image.url.startswith(str(sdk.base_url)[:20]) for image in answer.data)
    assert answer._request_id == gateway.ids[0] == answer.id
    assert answer.metadata["cost"] == "0.016"
    raw = await sdk.images.with_raw_response.generate(model="flux.2-dev-turbo", prompt="a", response_format="b64_json")
    assert raw.headers["x-pixelroute-provider"] == "fal"
    (image,) = raw.parse().data or []
    assert base64.b64decode(image.b64_json or "") == gateway.data


@pytest.mark.parametrize(
    "image",
    [
        pytest.param(PNG, id="bytes"),
        pytest.param([PNG, PNG], id="list"),
        pytest.param(("cat.png", PNG, "image/png"), id="tuple"),
        pytest.param(io.BytesIO(PNG), id="file"),
    ],
)
async def test_sdk_edit(sdk: openai.AsyncOpenAI, gateway: FakeGateway, image: Any) -> None:
    if isinstance(image, io.BytesIO):
        image.seek(0)
    answer = await sdk.images.edit(
        model="flux.2-dev-turbo", prompt="x", image=image, mask=mask(), n=1, extra_body={"strength": 0.5, "o": {"a": 1}}
    )
    assert answer.data
    assert answer.data[0].url
    assert answer.data[0].b64_json
    request = gateway.requests[0]
    assert {data.data for data in request.images} == {PNG}
    assert len(request.images) == (2 if isinstance(image, list) else 1)
    assert request.extra == {"strength": "0.5", "o": {"a": "1"}}


async def test_sdk_variation(sdk: openai.AsyncOpenAI) -> None:
    with pytest.warns(DeprecationWarning, match="deprecated"):
        answer = await sdk.images.create_variation(image=PNG, model="dall-e-2")
    assert answer.data


async def test_sdk_models(sdk: openai.AsyncOpenAI) -> None:
    names = [model.id async for model in await sdk.models.list()]
    assert "fal/flux.2-dev-turbo" in names
    for name in names:
        assert (await sdk.models.retrieve(name)).id == name
    with pytest.raises(openai.NotFoundError) as caught:
        await sdk.models.retrieve("no/such")
    assert caught.value.code == "model_not_found"


async def test_sdk_stream(sdk: openai.AsyncOpenAI, gateway: FakeGateway) -> None:
    stream = await sdk.images.generate(model="gpt-image-2", prompt="a", stream=True, partial_images=2)
    seen = [event async for event in stream]
    assert [event.type for event in seen] == ["image_generation.partial_image"] * 2 + ["image_generation.completed"]
    assert base64.b64decode(seen[-1].b64_json) == gateway.data
    stream_of_edit = await sdk.images.edit(model="gpt-image-2", prompt="a", image=PNG, stream=True)
    assert [event.type async for event in stream_of_edit] == ["image_edit.completed"]


async def test_sdk_stream_that_breaks(sdk: openai.AsyncOpenAI, gateway: FakeGateway) -> None:
    async def fail(request: Any, emit: Any) -> None:
        await emit(Accepted())
        await emit(PartialImage(gateway.image("b64_json"), 0))
        raise RequestError(502, "The provider broke off.", code="all_providers_failed", type="server_error")

    gateway.behave = fail
    stream = await sdk.images.generate(model="gpt-image-2", prompt="a", stream=True, partial_images=1)
    with pytest.raises(openai.APIError, match="broke off"):
        _ = [event async for event in stream]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RequestError(400, "no", code="invalid_value", param="size"), openai.BadRequestError),
        (RequestError(403, "no", code="model_not_allowed"), openai.PermissionDeniedError),
        (RequestError(429, "no", code="insufficient_quota", type="insufficient_quota"), openai.RateLimitError),
        (RequestError(502, "no", code="all_providers_failed", type="server_error"), openai.InternalServerError),
        (RequestError(504, "no", code="timeout", type="server_error"), openai.InternalServerError),
    ],
)
async def test_x26_sdk_errors_are_not_repeated(
    sdk: openai.AsyncOpenAI, gateway: FakeGateway, error: RequestError, kind: type[openai.APIStatusError]
) -> None:
    def fail(*_: Any) -> None:
        raise error

    gateway.behave = fail
    with pytest.raises(kind) as caught:
        await sdk.images.generate(model="gpt-image-2", prompt="a")
    assert (caught.value.code, caught.value.param, caught.value.type) == (error.code, error.param, error.type)
    assert caught.value.request_id == gateway.ids[0]
    assert len(gateway.requests) == 1


@pytest.mark.parametrize("after_s", [None, 0.001])
async def test_x26_sdk_repeats_when_told_to_or_told_when(
    sdk: openai.AsyncOpenAI, gateway: FakeGateway, after_s: float | None
) -> None:
    def fail(*_: Any) -> None:
        if len(gateway.requests) == 1:
            raise RequestError(503, "Full.", code="overloaded", type="server_error", retry=True, retry_after_s=after_s)

    gateway.behave = fail
    assert (await sdk.images.generate(model="gpt-image-2", prompt="a")).data
    assert [caller.retry_count for caller in gateway.callers] == [0, 1]


async def test_sdk_wrong_key(url: str) -> None:
    async with openai.AsyncOpenAI(api_key="sk-wrong", base_url=url + "/v1") as client:
        with pytest.raises(openai.AuthenticationError) as caught:
            await client.models.list()
    assert caught.value.code == "invalid_api_key"


# --- rude clients -----------------------------------------------------------------------------------------------


async def test_t2_requests_run_side_by_side(url: str, gateway: FakeGateway) -> None:
    async def slow(request: Any, emit: Any) -> None:
        await asyncio.sleep(0.3)

    gateway.behave = slow
    gateway.data = picture(300, 300)
    started = time.monotonic()
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, headers={"api-key": KEY}, limits=limits) as client:
        body = {"prompt": "a", "model": "gpt-image-2"}
        answers = await asyncio.gather(*(client.post("/v1/images/generations", json=body) for _ in range(32)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["id"] for answer in answers}) == 32
    assert time.monotonic() - started < 4


@pytest.mark.parametrize("stream", [False, True])
async def test_t3_a_client_that_leaves(
    make_app: Callable[..., Starlette], gateway: FakeGateway, seen: list[Exchange], tmp_path: Path, stream: bool
) -> None:
    """Its slot is freed, the work goes on (it will be billed), and the result can be had later."""
    entered, go_on = asyncio.Event(), asyncio.Event()

    async def wait(request: Any, emit: Any) -> None:
        entered.set()
        await go_on.wait()
        if emit is not None:
            await emit(Accepted())

    gateway.behave = wait
    store = MediaStore(Directory(tmp_path), key=b"k" * 32)
    async with (
        served(make_app(media=store)) as url,
        httpx.AsyncClient(base_url=url, headers={"api-key": KEY}) as client,
    ):
        body = {"prompt": "a", "model": "gpt-image-2", "stream": stream}
        task = asyncio.create_task(client.post("/v1/images/generations", json=body))
        await entered.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: bool(seen))
        assert (seen[0].gone, seen[0].status) == (True, 0)
        path = f"/v1/requests/{gateway.ids[0]}"
        running = (await client.get(path)).json()
        assert (running["status"], running["object"]) == ("processing", "request")
        go_on.set()
        async with asyncio.timeout(5):
            while (answer := (await client.get(path)).json())["status"] == "processing":  # noqa: ASYNC110 - over HTTP
                await asyncio.sleep(0.005)
        assert answer["status"] == "completed"
        (item,) = answer["response"]["data"]
        assert (await client.get(item["url"])).content == gateway.data
        gateway.behave = None
        assert (await client.post("/v1/images/generations", json={"prompt": "a", "model": "gpt-image-2"})).is_success


@pytest.mark.parametrize("stays", [True, False])
async def test_t3_it_is_given_up_only_when_nobody_waits_for_it(
    make_app: Callable[..., Starlette], gateway: FakeGateway, seen: list[Exchange], tmp_path: Path, stays: bool
) -> None:
    entered, go_on = asyncio.Event(), asyncio.Event()

    async def wait(request: Any, emit: Any) -> None:
        entered.set()
        await go_on.wait()

    gateway.behave = wait
    store = MediaStore(Directory(tmp_path), key=b"k" * 32)
    async with (
        served(make_app(media=store)) as url,
        httpx.AsyncClient(base_url=url, headers={"api-key": KEY, "idempotency-key": "order-1"}) as client,
    ):
        body = {"prompt": "a", "model": "gpt-image-2"}
        first, second = (asyncio.create_task(client.post("/v1/images/generations", json=body)) for _ in range(2))
        await entered.wait()
        await asyncio.sleep(0.1)  # until the second has joined
        for number, leaving in enumerate((first,) if stays else (first, second), 1):
            leaving.cancel()
            await until(lambda number=number: len(seen) == number)  # type: ignore[misc]  # bound for the loop
        assert gateway.abandoned == ([] if stays else gateway.ids)
        assert len(gateway.ids) == 1
        go_on.set()
        if stays:
            assert (await second).is_success


async def test_t3_a_job_is_wanted_whoever_leaves(
    make_app: Callable[..., Starlette], gateway: FakeGateway, seen: list[Exchange], tmp_path: Path
) -> None:
    entered, go_on = asyncio.Event(), asyncio.Event()

    async def wait(request: Any, emit: Any) -> None:
        entered.set()
        await go_on.wait()

    gateway.behave = wait
    store = MediaStore(Directory(tmp_path), key=b"k" * 32)
    key = {"api-key": KEY, "idempotency-key": "order-1"}
    async with served(make_app(media=store)) as url, httpx.AsyncClient(base_url=url, headers=key) as client:
        body = {"prompt": "a", "model": "gpt-image-2"}
        later = {"prefer": "respond-async"}
        assert (await client.post("/v1/images/generations", json=body, headers=later)).status_code == 202
        waiting = asyncio.create_task(client.post("/v1/images/generations", json=body | {"background": False}))
        await entered.wait()
        await asyncio.sleep(0.1)
        waiting.cancel()
        go_on.set()
    assert gateway.abandoned == []


async def test_t3_who_leaves_while_its_pictures_are_fetched_pays_nothing(
    make_app: Callable[..., Starlette], gateway: FakeGateway, seen: list[Exchange]
) -> None:
    fetching = asyncio.Event()
    stopped: list[str] = []

    async def fetch(address: str, *, max_bytes: int) -> bytes:
        fetching.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.append(address)
        raise AssertionError

    async with (
        served(make_app(fetch=fetch)) as url,
        httpx.AsyncClient(base_url=url, headers={"api-key": KEY}) as client,
    ):
        body = {"prompt": "a", "model": "gpt-image-2", "images": [{"image_url": "https://pictures.example/a.png"}]}
        waiting = asyncio.create_task(client.post("/v1/images/edits", json=body))
        await fetching.wait()
        waiting.cancel()
        await until(lambda: bool(seen))
    assert seen[0].gone
    assert stopped == ["https://pictures.example/a.png"]
    assert gateway.ids == []


async def test_an_idle_connection_keeps_no_picture(make_app: Callable[..., Starlette], gateway: FakeGateway) -> None:
    """The server holds on to the scope of a connection's last request until the next one comes."""
    scopes: list[Scope] = []
    app = make_app()

    async def server(scope: Scope, receive: Receive, send: Send) -> None:
        scopes.append(scope)
        await app(scope, receive, send)

    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(server), base_url="http://router.test", headers={"api-key": KEY}
    ) as client:
        body = {"prompt": "a", "model": "gpt-image-2"}
        assert (await client.post("/v1/images/generations", json=body)).json()["data"][0]["b64_json"]
    assert not [value for value in scopes[0].values() if isinstance(value, Exchange)]


async def test_t3_a_client_that_leaves_in_the_middle_of_a_stream(
    url: str, gateway: FakeGateway, seen: list[Exchange]
) -> None:
    go_on, done = asyncio.Event(), asyncio.Event()

    async def wait(request: Any, emit: Any) -> None:
        await emit(Accepted())
        await emit(PartialImage(gateway.image("b64_json"), 0))
        await go_on.wait()
        await emit(PartialImage(gateway.image("b64_json"), 1))
        done.set()

    gateway.behave = wait
    body = {"prompt": "a", "model": "gpt-image-2", "stream": True, "partial_images": 2}
    async with (
        httpx.AsyncClient(base_url=url, headers={"api-key": KEY}) as client,
        client.stream("POST", "/v1/images/generations", json=body) as response,
    ):
        async for line in response.aiter_lines():
            if line.startswith("data:"):
                break
    await until(lambda: bool(seen))
    assert seen[0].gone
    go_on.set()
    await done.wait()


async def test_d3_a_client_that_leaves_while_uploading(url: str, seen: list[Exchange]) -> None:
    host, port = url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        b"POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Authorization: Bearer " + KEY.encode() + b'\r\nContent-Length: 1000\r\n\r\n{"prompt"'
    )
    await writer.drain()
    await asyncio.sleep(0.05)
    writer.close()
    await writer.wait_closed()
    await until(lambda: bool(seen))
    assert seen[0].gone
    assert seen[0].status == 0


async def test_x17_a_client_in_full_flow_sees_the_413(make_app: Callable[..., Starlette]) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(300):
            yield b"x" * 65536

    async with (
        served(make_app(body_bytes=100_000)) as url,
        httpx.AsyncClient(base_url=url, headers={"api-key": KEY, "Content-Type": "application/json"}) as client,
    ):
        for content in (b"x" * 20_000_000, endless()):
            response = await client.post("/v1/images/generations", content=content)
            assert (response.status_code, response.json()["error"]["code"]) == (413, "request_too_large")
            assert response.headers["connection"] == "close"
            assert response.headers["x-request-id"]


async def test_t4_connections_survive_errors(url: str) -> None:
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = b"POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 2\r\n"
    for authorization, status in ((b"", b"401"), (b"Authorization: Bearer " + KEY.encode() + b"\r\n", b"400")) * 2:
        writer.write(head + authorization + b"\r\n{}")
        answer = await reader.readuntil(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 " + status)
        length = next(line for line in answer.lower().split(b"\r\n") if line.startswith(b"content-length"))
        await reader.readexactly(int(length.split(b":")[1]))
    writer.close()
    await writer.wait_closed()


async def test_b4_no_100_continue_for_strangers(url: str) -> None:
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        b"POST /v1/images/edits HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=X\r\n"
        b"Content-Length: 50000000\r\nExpect: 100-continue\r\n\r\n"
    )
    assert (await reader.readline()).startswith(b"HTTP/1.1 401")
    writer.close()
    await writer.wait_closed()


async def test_large_replies_arrive_whole(url: str, gateway: FakeGateway) -> None:
    data = picture(900, 900)
    gateway.change["images"] = tuple(GeneratedImage(data=data, format="png") for _ in range(3))
    async with httpx.AsyncClient(base_url=url, headers={"api-key": KEY}) as client:
        response = await client.post("/v1/images/generations", json={"prompt": "a", "model": "gpt-image-2", "n": 3})
    assert [base64.b64decode(item["b64_json"]) for item in response.json()["data"]] == [data] * 3


async def test_a_large_upload_arrives_whole(url: str, gateway: FakeGateway) -> None:
    data = picture(1200, 1200)
    async with httpx.AsyncClient(base_url=url, headers={"api-key": KEY}) as client:
        files: list[Any] = [("image", data), ("model", (None, b"gpt-image-2")), ("prompt", (None, b"a"))]
        assert (await client.post("/v1/images/edits", files=files)).is_success
    assert gateway.requests[0].images[0].data == data


async def test_uploads_side_by_side_do_not_mix(url: str, gateway: FakeGateway) -> None:
    sent = [picture(64 + number, 64) + bytes([number]) * 600_000 for number in range(6)]
    async with httpx.AsyncClient(base_url=url, headers={"api-key": KEY}) as client:
        fields: list[Any] = [("model", (None, b"gpt-image-2")), ("prompt", (None, b"a"))]
        uploads = (client.post("/v1/images/edits", files=[("image", data), *fields]) for data in sent)
        assert all(answer.is_success for answer in await asyncio.gather(*uploads))
    assert sorted(bytes(request.images[0].data) for request in gateway.requests) == sorted(sent)
