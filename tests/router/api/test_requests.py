"""Requests whose clients do not wait: jobs, results asked for later, webhooks, purging."""

import asyncio
import base64
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from router.api import build_app, routes
from router.api.webhooks import Webhooks, secret_bytes
from router.errors import RequestError
from router.mediastore import Directory, MediaStore
from router.types import GeneratedImage
from tests.router.api.conftest import KEY, Key
from tests.router.api.fake import FakeGateway, picture

pytestmark = pytest.mark.anyio

GENERATE = "/v1/images/generations"
OK = {"prompt": "a cat", "model": "gpt-image-2"}
ASYNC = {"Prefer": "respond-async, wait=10"}


@pytest.fixture
def store(tmp_path: Path) -> MediaStore:
    return MediaStore(Directory(tmp_path), key=b"k" * 32)


class Receiver:
    """Takes webhooks; ``answers`` are the statuses it gives in turn."""

    def __init__(self, *answers: int | Exception) -> None:
        self.answers = list(answers)
        self.calls: list[tuple[str, bytes, Mapping[str, str]]] = []
        self.called = asyncio.Event()

    async def __call__(self, url: str, body: bytes, headers: Mapping[str, str]) -> int:
        self.calls.append((url, body, headers))
        answer = self.answers.pop(0) if self.answers else 200
        if not self.answers:
            self.called.set()
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
async def client(make_client: Callable[..., httpx.AsyncClient], store: MediaStore) -> AsyncIterator[httpx.AsyncClient]:
    async with make_client(media=store) as client:
        yield client


async def ended(client: httpx.AsyncClient, request_id: str) -> dict[str, Any]:
    async with asyncio.timeout(5):
        while True:
            answer: dict[str, Any] = (await client.get(f"/v1/requests/{request_id}")).json()
            if answer["status"] != "processing":
                return answer
            await asyncio.sleep(0.005)


async def submit(client: httpx.AsyncClient, **more: Any) -> str:
    response = await client.post(GENERATE, json=OK | more, headers=ASYNC)
    assert response.status_code == 202, response.text
    return str(response.json()["id"])


async def test_a_job(client: httpx.AsyncClient, gateway: FakeGateway) -> None:
    go_on = asyncio.Event()

    async def wait(*_: Any) -> None:
        await go_on.wait()

    gateway.behave = wait
    response = await client.post(GENERATE, json=OK | {"n": 2}, headers=ASYNC)
    body = response.json()
    assert response.status_code == 202
    assert body == {
        "id": response.headers["x-request-id"],
        "object": "request",
        "status": "processing",
        "created": body["created"],
        "operation": "generate",
        "model": "gpt-image-2",
    }
    assert response.headers["location"] == f"/v1/requests/{body['id']}"
    assert response.headers["preference-applied"] == "respond-async"
    polled = await client.get(response.headers["location"])
    assert (polled.json()["status"], polled.headers["retry-after"]) == ("processing", "2")
    assert (await client.delete(response.headers["location"])).json()["error"]["code"] == "request_running"
    go_on.set()
    answer = await ended(client, body["id"])
    assert answer["status"] == "completed"
    assert answer["response"]["metadata"]["cost"] == "0.016"
    assert len(answer["response"]["data"]) == 2
    for item in answer["response"]["data"]:
        assert set(item) == {"url"}
        assert (await client.get(item["url"])).content == gateway.data


@pytest.mark.parametrize("body", [{"background": True}, {"background": True, "response_format": "url"}])
async def test_background_is_a_job(client: httpx.AsyncClient, body: dict[str, Any]) -> None:
    response = await client.post(GENERATE, json=OK | body)
    assert response.status_code == 202
    assert (await ended(client, response.json()["id"]))["response"]["data"][0]["url"]


async def test_background_false_is_none(client: httpx.AsyncClient) -> None:
    assert (await client.post(GENERATE, json=OK | {"background": False})).status_code == 200


async def test_a_job_cannot_be_streamed(client: httpx.AsyncClient) -> None:
    response = await client.post(GENERATE, json=OK | {"background": True, "stream": True})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "background")


async def test_bytes_are_kept_too(client: httpx.AsyncClient, gateway: FakeGateway) -> None:
    large = picture(400, 400)
    gateway.change["images"] = (GeneratedImage(data=large, format="png"),)
    answer = await ended(client, await submit(client))
    assert (await client.get(answer["response"]["data"][0]["url"])).content == large


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
async def test_a_job_that_fails(
    client: httpx.AsyncClient, gateway: FakeGateway, error: Exception, status: int, code: str | None
) -> None:
    def fail(*_: Any) -> None:
        raise error

    gateway.behave = fail
    answer = await ended(client, await submit(client))
    assert (answer["status"], answer["status_code"], answer["error"]["code"]) == ("failed", status, code)
    assert "secret" not in json.dumps(answer)


async def test_what_is_wrong_is_said_at_once(client: httpx.AsyncClient, gateway: FakeGateway) -> None:
    assert (await client.post(GENERATE, json=OK | {"n": 0}, headers=ASYNC)).status_code == 400
    assert gateway.requests == []


async def test_finished_requests_can_be_looked_up(client: httpx.AsyncClient) -> None:
    first = (await client.post(GENERATE, json=OK | {"response_format": "url"})).json()
    answer = (await client.get(f"/v1/requests/{first['id']}")).json()
    assert answer["response"]["data"] == first["data"]
    second = (await client.post(GENERATE, json=OK)).json()
    answer = (await client.get(f"/v1/requests/{second['id']}")).json()
    assert answer["response"]["data"] == [{}]  # it was delivered and is not kept
    assert answer["response"]["metadata"]["cost"] == "0.008"


async def test_only_the_same_key_may_look(gateway: FakeGateway, store: MediaStore) -> None:
    keys = [Key(), Key(name="other", secret="sk-other")]
    app = build_app(routes(gateway, keys=keys, media=store))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://router.test") as client:
        request_id = (await client.post(GENERATE, json=OK, headers={"api-key": KEY} | ASYNC)).json()["id"]
        path = f"/v1/requests/{request_id}"
        for method in ("GET", "DELETE"):
            response = await client.request(method, path, headers={"api-key": "sk-other"})
            assert (response.status_code, response.json()["error"]["code"]) == (404, "request_not_found")
        assert (await client.get(path)).status_code == 401
        assert (await client.get(path, headers={"api-key": KEY})).status_code == 200
        client.headers["api-key"] = KEY
        await ended(client, request_id)
        # a restarted router knows it from the store, and still only for its owner
        again = build_app(routes(gateway, keys=keys, media=store))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(again), base_url="http://router.test") as other:
            answer = await other.get(path, headers={"api-key": KEY})
            assert answer.json() == (await client.get(path)).json()
            assert (await other.get(path, headers={"api-key": "sk-other"})).status_code == 404


@pytest.mark.parametrize("request_id", ["nope", "req_00000000000000000000000000", "..%2f..%2fetc", "x" * 500])
async def test_unknown_requests(client: httpx.AsyncClient, request_id: str) -> None:
    response = await client.get(f"/v1/requests/{request_id}")
    assert response.status_code == 404


async def test_purge(client: httpx.AsyncClient) -> None:
    request_id = await submit(client)
    url = (await ended(client, request_id))["response"]["data"][0]["url"]
    answer = (await client.delete(f"/v1/requests/{request_id}")).json()
    assert answer == {"id": request_id, "object": "request.purged", "deleted_pictures": 1}
    assert (await client.get(url)).status_code == 404
    assert (await client.get(f"/v1/requests/{request_id}")).status_code == 404


async def test_jobs_are_bounded(make_client: Callable[..., httpx.AsyncClient], gateway: FakeGateway) -> None:
    go_on = asyncio.Event()

    async def wait(*_: Any) -> None:
        await go_on.wait()

    gateway.behave = wait
    async with make_client(max_running=1) as client:
        await submit(client)
        response = await client.post(GENERATE, json=OK, headers=ASYNC)
        assert (response.status_code, response.headers["retry-after"]) == (503, "5")
        go_on.set()


async def test_a_full_disk_takes_no_picture_from_a_waiting_client(
    client: httpx.AsyncClient, store: MediaStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(*_: Any) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "put", full)
    monkeypatch.setattr(store, "remember", full)
    assert (await client.post(GENERATE, json=OK)).json()["data"][0]["b64_json"]
    answer = await ended(client, await submit(client))
    assert (answer["status"], answer["error"]["code"]) == ("failed", "result_lost")


# --- webhooks ---------------------------------------------------------------------------------------------------

SECRET = "whsec_" + base64.b64encode(b"s" * 32).decode()
URL = "https://receiver.example/hook"


@pytest.mark.parametrize("fails", [False, True])
async def test_a_webhook_is_signed(
    make_client: Callable[..., httpx.AsyncClient], gateway: FakeGateway, store: MediaStore, fails: bool
) -> None:
    def fail(*_: Any) -> None:
        if fails:
            raise RequestError(400, "Refused.", code="moderation_blocked", type="image_generation_user_error")

    gateway.behave = fail
    receiver = Receiver(200)
    async with make_client(media=store, webhooks=Webhooks(receiver, secret_bytes(SECRET))) as client:
        request_id = await submit(client, webhook_url=URL)
        async with asyncio.timeout(5):
            await receiver.called.wait()
        url, body, headers = receiver.calls[0]
        event = json.loads(body)
        assert url == URL
        assert event["type"] == ("image.failed" if fails else "image.completed")
        assert event["data"] == (await client.get(f"/v1/requests/{request_id}")).json()
    # the check that Standard Webhooks receivers make
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = base64.b64encode(hmac.new(b"s" * 32, signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"
    assert headers["webhook-id"] == f"msg_{request_id}"


@pytest.mark.parametrize(
    ("answers", "calls"),
    [([503, OSError("refused"), 200], 3), ([500] * 9, 4), ([410, 200], 1), ([204], 1), ([302, 200], 2)],
)
async def test_a_webhook_is_repeated(answers: list[int | Exception], calls: int) -> None:
    receiver = Receiver(*answers)
    webhooks = Webhooks(receiver, b"k" * 32, delays_s=(0, 0, 0))
    webhooks.send(URL, "msg_1", b"{}")
    await asyncio.gather(*webhooks._running)
    assert len(receiver.calls) == calls
    assert len({headers["webhook-id"] for _, _, headers in receiver.calls}) == 1


@pytest.mark.parametrize("url", ["http://x.example", "ftp://x", "x", "https://" + "x" * 3000])
async def test_bad_webhook_urls(client: httpx.AsyncClient, url: str) -> None:
    response = await client.post(GENERATE, json=OK | {"webhook_url": url})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "webhook_url")


async def test_webhooks_need_a_sender(client: httpx.AsyncClient) -> None:
    response = await client.post(GENERATE, json=OK | {"webhook_url": URL})
    assert (response.status_code, response.json()["error"]["code"]) == (400, "unsupported_parameter")


@pytest.mark.parametrize("secret", ["x", "whsec", "whsec_%%%", "sk_" + base64.b64encode(b"s").decode()])
def test_bad_secrets(secret: str) -> None:
    with pytest.raises(ValueError, match="whsec_"):
        secret_bytes(secret)
