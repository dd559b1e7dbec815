"""Server-sent events, read the way a strict client reads them. Ids quote the contract."""

import asyncio
import base64
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from router.api import Exchange, streaming
from router.errors import RequestError
from router.types import Accepted, GeneratedImage, PartialImage
from tests.router.api.fake import FakeGateway, picture

pytestmark = pytest.mark.anyio

GENERATE, EDIT = "/v1/images/generations", "/v1/images/edits"
OK = {"prompt": "a cat", "model": "flux.2-dev-turbo", "stream": True}
PNG = picture()


def events(text: str) -> list[dict[str, Any]]:
    """The events of a stream, after checking its lines (S1)."""
    assert text.endswith("\n\n")
    found = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        lines = block.split("\n")
        if lines[0].startswith(":"):
            assert len(lines) == 1
            continue
        name, data = lines
        assert name.startswith("event: ")
        assert data.startswith("data: ")
        event = json.loads(data.removeprefix("data: "))
        assert event["type"] == name.removeprefix("event: ")
        found.append(event)
    return found


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("partials", [0, 2])
async def test_s1_to_s5_generations(client: httpx.AsyncClient, gateway: FakeGateway, n: int, partials: int) -> None:
    response = await client.post(GENERATE, json=OK | {"n": n, "partial_images": partials, "response_format": "url"})
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    assert response.headers["x-request-id"] == gateway.ids[0]
    seen = events(response.text)
    assert [event["type"] for event in seen] == ["image_generation.partial_image"] * partials + [
        "image_generation.completed"
    ] * n
    for event in seen:
        assert base64.b64decode(event["b64_json"], validate=True) == gateway.data
        assert type(event["created_at"]) is int
        assert event["size"] == "8x6"
        assert event["quality"] in ("auto", "low", "medium", "high", "xhigh", "max")
        assert event["background"] in ("transparent", "opaque", "auto")
        assert event["output_format"] == "png"
    assert [event["partial_image_index"] for event in seen[:partials]] == list(range(partials))
    for event in seen[partials:]:
        usage = event["usage"]
        assert set(usage) == {"input_tokens", "output_tokens", "total_tokens", "input_tokens_details"}
        assert usage["input_tokens_details"] == {"text_tokens": 0, "image_tokens": 0}
        assert "partial_image_index" not in event


async def test_s4_edits(client: httpx.AsyncClient) -> None:
    files: list[Any] = [("image", PNG), ("prompt", (None, b"x")), ("model", (None, b"gpt-image-2"))]
    files += [("stream", (None, b"True")), ("partial_images", (None, b"1"))]
    response = await client.post(EDIT, files=files)
    assert [event["type"] for event in events(response.text)] == ["image_edit.partial_image", "image_edit.completed"]


async def test_s5_usage_is_told_once(client: httpx.AsyncClient, gateway: FakeGateway) -> None:
    usage = {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}
    gateway.change["usage"] = usage | {"input_tokens_details": {"text_tokens": 1, "image_tokens": 0}}
    response = await client.post(GENERATE, json=OK | {"n": 2})
    assert [event["usage"]["total_tokens"] for event in events(response.text)] == [0, 3]


async def test_s3_partials_are_bounded(client: httpx.AsyncClient, gateway: FakeGateway) -> None:
    async def many(request: Any, emit: Any) -> None:
        for index in range(5):
            await emit(PartialImage(gateway.image("b64_json"), index))

    gateway.behave = many
    response = await client.post(GENERATE, json=OK | {"partial_images": 2})
    assert len(events(response.text)) == 3


async def test_the_last_event_tells_the_cost_and_what_was_not_done(
    client: httpx.AsyncClient, gateway: FakeGateway
) -> None:
    async def no_partials(request: Any, emit: Any) -> None:
        await emit(Accepted())

    gateway.behave = no_partials
    response = await client.post(GENERATE + "?explain=true", json=OK | {"n": 2, "partial_images": 2})
    first, last = events(response.text)
    assert "metadata" not in first
    assert (last["id"], last["metadata"]["cost"]) == (gateway.ids[0], "0.016")
    assert "no_partial_images" in {warning["code"] for warning in last["metadata"]["warnings"]}
    assert last["metadata"]["routing"] == {"candidates": []}
    response = await client.post(GENERATE, json=OK)
    (only,) = events(response.text)
    assert "no_partial_images" not in {warning["code"] for warning in only["metadata"]["warnings"]}


@pytest.mark.parametrize("size", [None, "auto"])
async def test_s5_unknown_sizes_are_auto(client: httpx.AsyncClient, gateway: FakeGateway, size: str | None) -> None:
    async def one(request: Any, emit: Any) -> None:
        await emit(PartialImage(GeneratedImage(data=PNG), 0))

    gateway.behave = one
    response = await client.post(GENERATE, json=OK | {"partial_images": 1, "size": size})
    assert events(response.text)[0]["size"] == "auto"


async def test_s6_a_failure_before_acceptance_is_an_ordinary_error(
    client: httpx.AsyncClient, gateway: FakeGateway
) -> None:
    def refuse(*_: Any) -> None:
        raise RequestError(400, "Refused.", code="moderation_blocked", type="image_generation_user_error")

    gateway.behave = refuse
    response = await client.post(GENERATE, json=OK)
    assert (response.status_code, response.headers["content-type"]) == (400, "application/json")
    assert response.json()["error"]["code"] == "moderation_blocked"


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (
            RequestError(502, "All failed.", code="all_providers_failed", type="server_error"),
            502,
            "all_providers_failed",
        ),
        (KeyError("secret detail"), 500, None),
    ],
)
async def test_s7_a_failure_afterwards_is_an_event(
    client: httpx.AsyncClient,
    gateway: FakeGateway,
    seen: list[Exchange],
    error: Exception,
    status: int,
    code: str | None,
) -> None:
    async def fail(request: Any, emit: Any) -> None:
        await emit(Accepted())
        await emit(PartialImage(gateway.image("b64_json"), 0))
        raise error

    gateway.behave = fail
    response = await client.post(GENERATE, json=OK | {"partial_images": 1})
    assert response.status_code == 200
    partial, last = events(response.text)
    assert partial["type"] == "image_generation.partial_image"
    assert last["type"] == "error"
    assert set(last["error"]) == {"type", "code", "message", "param"}
    assert last["error"]["code"] == code
    assert "secret" not in response.text
    assert seen[0].error is not None
    assert seen[0].error.status == status


async def test_s9_silence_is_bridged(
    make_client: Callable[..., httpx.AsyncClient], gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "HEARTBEAT_S", 0.01)

    async def slow(request: Any, emit: Any) -> None:
        await emit(Accepted())
        await asyncio.sleep(0.06)

    gateway.behave = slow
    async with make_client() as client:
        response = await client.post(GENERATE, json=OK)
    assert response.text.startswith(": keep-alive\n\n: keep-alive\n\n")
    assert [event["type"] for event in events(response.text)] == ["image_generation.completed"]


async def test_large_pictures_stream_whole(client: httpx.AsyncClient, gateway: FakeGateway) -> None:
    gateway.data = picture(500, 500)
    response = await client.post(GENERATE, json=OK | {"partial_images": 1})
    for event in events(response.text):
        assert base64.b64decode(event["b64_json"]) == gateway.data
