"""Idempotency-Key (X30): sent again, answered again, paid once."""

import asyncio
import base64
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from router.api import build_app, routes
from router.errors import RequestError
from router.mediastore import Directory, MediaStore
from tests.router.api.conftest import KEY, Key
from tests.router.api.fake import FakeGateway, picture

pytestmark = pytest.mark.anyio

GENERATE, EDIT = "/v1/images/generations", "/v1/images/edits"
OK = {"prompt": "a cat", "model": "flux.2-dev-turbo"}
FIRST = {"Idempotency-Key": "order-17"}


@pytest.fixture
def store(tmp_path: Path) -> MediaStore:
    return MediaStore(Directory(tmp_path), key=b"k" * 32)


@pytest.fixture
async def client(
    make_client: Callable[..., httpx.AsyncClient], gateway: FakeGateway, store: MediaStore
) -> AsyncIterator[httpx.AsyncClient]:
    """A router whose pictures have links that work."""
    link = await store.put(gateway.data, "png", "req_0")
    gateway.change["images"] = (replace(gateway.image("b64_json"), url=link),)
    async with make_client(media=store) as client:
        yield client


@pytest.mark.parametrize(("form", "keys"), [("url", {"url"}), ("b64_json", {"b64_json"}), (None, {"url"})])
async def test_x30_the_first_result_again(
    client: httpx.AsyncClient, gateway: FakeGateway, form: str | None, keys: set[str]
) -> None:
    body = OK | {"response_format": form}
    first = await client.post(GENERATE, json=body, headers=FIRST)
    again = await client.post(GENERATE, json=body, headers=FIRST)
    assert (first.status_code, again.status_code) == (200, 200)
    assert again.headers["idempotent-replayed"] == "true"
    assert "idempotent-replayed" not in first.headers
    assert again.json() == first.json()
    assert set(again.json()["data"][0]) == keys
    assert again.headers["x-request-id"] != first.headers["x-request-id"]
    assert len(gateway.requests) == 1


async def test_pictures_without_links_are_kept_for_it(client: httpx.AsyncClient, gateway: FakeGateway) -> None:
    gateway.data = picture(400, 400)
    gateway.change["images"] = tuple(gateway.image("b64_json") for _ in range(2))
    body = OK | {"n": 2, "response_format": "b64_json"}
    first = await client.post(GENERATE, json=body, headers=FIRST)
    assert (await client.post(GENERATE, json=body, headers=FIRST)).json() == first.json()
    assert len(gateway.requests) == 1


async def test_an_edit_that_carries_both(client: httpx.AsyncClient, gateway: FakeGateway) -> None:
    sent: list[Any] = [("image", picture()), *((name, (None, value.encode())) for name, value in OK.items())]
    first = await client.post(EDIT, files=sent, headers=FIRST)
    again = await client.post(EDIT, files=sent, headers=FIRST)  # with another boundary
    assert set(first.json()["data"][0]) == {"url", "b64_json"}
    assert again.json() == first.json()
    assert len(gateway.requests) == 1


async def test_without_a_key_everything_runs(client: httpx.AsyncClient, gateway: FakeGateway) -> None:
    for _ in range(2):
        await client.post(GENERATE, json=OK)
    assert len(gateway.requests) == 2


@pytest.mark.parametrize("change", [{"prompt": "a dog"}, {"n": 2}, {"guidance_scale": 3}, {"response_format": "url"}])
async def test_x30_a_key_is_for_one_request(
    client: httpx.AsyncClient, gateway: FakeGateway, change: dict[str, Any]
) -> None:
    await client.post(GENERATE, json=OK, headers=FIRST)
    response = await client.post(GENERATE, json=OK | change, headers=FIRST)
    assert (response.status_code, response.json()["error"]["code"]) == (400, "idempotency_key_reused")
    assert len(gateway.requests) == 1


async def test_another_picture_is_another_request(client: httpx.AsyncClient, gateway: FakeGateway) -> None:
    one, other = picture(5, 5), picture(6, 6)
    statuses = []
    for data in (one, one, other):
        sent: list[Any] = [("image", data), *((name, (None, value.encode())) for name, value in OK.items())]
        statuses.append((await client.post(EDIT, files=sent, headers=FIRST)).status_code)
    assert statuses == [200, 200, 400]
    assert len(gateway.requests) == 1


async def test_order_does_not_matter(client: httpx.AsyncClient, gateway: FakeGateway) -> None:
    more = {"b": 1, "a": {"y": 1, "x": 2}}
    await client.post(GENERATE, json=OK | more, headers=FIRST)
    turned = {"a": {"x": 2, "y": 1}, "b": 1} | dict(reversed(OK.items()))
    assert (await client.post(GENERATE, json=turned, headers=FIRST)).headers["idempotent-replayed"] == "true"
    assert len(gateway.requests) == 1


async def test_keys_of_different_callers_are_different(gateway: FakeGateway, store: MediaStore) -> None:
    app = build_app(routes(gateway, keys=[Key(), Key(name="other", secret="sk-other")], media=store))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://router.test") as client:
        for key, prompt in ((KEY, "one"), ("sk-other", "two")):
            response = await client.post(GENERATE, json=OK | {"prompt": prompt}, headers=FIRST | {"api-key": key})
            assert response.status_code == 200
    assert len(gateway.requests) == 2


@pytest.mark.parametrize("count", [2, 10])
async def test_at_the_same_time_one_runs(client: httpx.AsyncClient, gateway: FakeGateway, count: int) -> None:
    go_on = asyncio.Event()

    async def wait(*_: Any) -> None:
        await go_on.wait()

    gateway.behave = wait
    body = OK | {"response_format": "b64_json"}
    tasks = [asyncio.create_task(client.post(GENERATE, json=body, headers=FIRST)) for _ in range(count)]
    await asyncio.sleep(0.05)
    go_on.set()
    answers = await asyncio.gather(*tasks)
    assert len(gateway.requests) == 1
    assert len({answer.text for answer in answers}) == 1
    assert base64.b64decode(answers[0].json()["data"][0]["b64_json"]) == gateway.data


async def test_a_failure_may_be_sent_again(client: httpx.AsyncClient, gateway: FakeGateway) -> None:
    def fail(*_: Any) -> None:
        if len(gateway.requests) == 1:
            raise RequestError(502, "All failed.", code="all_providers_failed", type="server_error")

    gateway.behave = fail
    body = OK | {"response_format": "b64_json"}
    statuses = [(await client.post(GENERATE, json=body, headers=FIRST)).status_code for _ in range(3)]
    assert statuses == [502, 200, 200]
    assert len(gateway.requests) == 2


async def test_a_refused_request_leaves_the_key_free(client: httpx.AsyncClient, gateway: FakeGateway) -> None:
    assert (await client.post(GENERATE, json=OK | {"n": 0}, headers=FIRST)).status_code == 400
    body = OK | {"webhook_url": "https://x.example"}
    assert (await client.post(GENERATE, json=body, headers={"Idempotency-Key": "w"})).status_code == 400
    assert (await client.post(GENERATE, json=body, headers={"Idempotency-Key": "w"})).status_code == 400
    assert (await client.post(GENERATE, json=OK, headers=FIRST)).status_code == 200


async def test_a_restart_does_not_forget(gateway: FakeGateway, store: MediaStore) -> None:
    body = OK | {"response_format": "b64_json"}
    answers = []
    for _ in range(2):
        app = build_app(routes(gateway, keys=[Key()], media=store))
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://router.test", headers={"api-key": KEY}
        ) as client:
            answers.append((await client.post(GENERATE, json=body, headers=FIRST)).json())
    assert answers[0] == answers[1]
    assert len(gateway.requests) == 1


async def test_a_purged_result_is_made_again(client: httpx.AsyncClient, gateway: FakeGateway) -> None:
    body = OK | {"response_format": "b64_json"}
    first = (await client.post(GENERATE, json=body, headers=FIRST)).json()
    await client.delete(f"/v1/requests/{first['id']}")
    assert (await client.post(GENERATE, json=body, headers=FIRST)).json()["id"] != first["id"]
    assert len(gateway.requests) == 2


async def test_a_client_that_timed_out_gets_what_it_paid_for(client: httpx.AsyncClient, gateway: FakeGateway) -> None:
    body = OK | {"response_format": "b64_json"}
    job = await client.post(GENERATE, json=body, headers=FIRST | {"Prefer": "respond-async"})
    assert job.status_code == 202
    again = await client.post(GENERATE, json=body, headers=FIRST | {"Prefer": "respond-async"})
    assert again.status_code in (200, 202)
    assert again.json()["id"] == job.json()["id"]
    assert len(gateway.requests) == 1


async def test_streams_are_not_repeated(client: httpx.AsyncClient, gateway: FakeGateway) -> None:
    for _ in range(2):
        response = await client.post(GENERATE, json=OK | {"stream": True}, headers=FIRST)
        assert response.headers["content-type"].startswith("text/event-stream")
    assert len(gateway.requests) == 2
