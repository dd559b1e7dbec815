"""Requests whose clients do not wait: jobs, results asked for later, webhooks, purging."""

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from router.api import build_app, routes
from router.api.requests import CutOff, Requests
from router.api.webhooks import Event, Webhooks
from router.config import webhook_key
from router.errors import RequestError
from router.mediastore import Directory, MediaStore
from router.pool import is_public
from router.types import Caller, GeneratedImage, ImageRequest, Operation
from tests.docs.blocks import blocks
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


async def test_the_ledger_remembers_what_a_restart_forgot(gateway: FakeGateway, store: MediaStore) -> None:
    """Of requests whose client was answered, as far as their pictures are kept."""
    keys = [Key(), Key(name="other", secret="sk-other")]
    link = await store.put(gateway.data, "png", "req_answered")
    answered = await gateway.run(
        ImageRequest(Operation.GENERATE, "gpt-image-2", "x"), Caller("tests"), request_id="req_answered"
    )
    await gateway.run(ImageRequest(Operation.GENERATE, "gpt-image-2", "x"), Caller("tests"), request_id="req_not_kept")
    app = build_app(routes(gateway, keys=keys, media=store))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://router.test") as client:
        client.headers["api-key"] = KEY
        found = (await client.get("/v1/requests/req_answered")).json()
        assert (found["id"], found["status"], found["model"]) == ("req_answered", "completed", "gpt-image-2")
        assert found["response"]["data"] == [{"url": f"http://router.test{link}"}]
        assert found["response"]["metadata"]["cost"] == f"{answered.cost_nanos / 1e9}"
        for request_id, key in (("req_not_kept", KEY), ("req_answered", "sk-other")):
            answer = await client.get(f"/v1/requests/{request_id}", headers={"api-key": key})
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "request_not_found")
        assert (await client.delete("/v1/requests/req_answered")).json()["deleted_pictures"] == 1
        assert (await client.get("/v1/requests/req_answered")).status_code == 404


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
    async with make_client(requests=Requests(gateway, running=1)) as client:
        await submit(client)
        response = await client.post(GENERATE, json=OK, headers=ASYNC)
        assert (response.status_code, response.headers["retry-after"]) == (503, "5")
        go_on.set()


async def test_a_full_disk_takes_no_picture_from_a_waiting_client(
    client: httpx.AsyncClient, gateway: FakeGateway, store: MediaStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(*_: Any) -> str:
        raise OSError(28, "No space left on device")

    def fill(*_: Any) -> None:
        monkeypatch.setattr(store, "put", full)
        monkeypatch.setattr(store, "remember", full)

    gateway.behave = fill
    answer = await ended(client, await submit(client))
    assert (answer["status"], answer["error"]["code"]) == ("failed", "result_lost")
    assert (await client.post(GENERATE, json=OK)).json()["data"][0]["b64_json"]
    # what cannot be written down is not begun
    made = len(gateway.requests)
    refused = await client.post(GENERATE, json=OK, headers=ASYNC)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "storage_unavailable")
    assert (refused.headers["retry-after"], refused.headers.get("x-should-retry")) == ("5", None)
    assert len(gateway.requests) == made


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
    older = "whsec_" + base64.b64encode(b"o" * 24).decode()
    requests = Requests(gateway, store, Webhooks(receiver, [webhook_key(SECRET), webhook_key(older)]))
    async with make_client(media=store, requests=requests) as client:
        request_id = await submit(client, webhook_url=URL)
        async with asyncio.timeout(5):
            await receiver.called.wait()
        url, body, headers = receiver.calls[0]
        event = json.loads(body)
        assert url == URL
        assert event["type"] == ("image.failed" if fails else "image.completed")
        assert event["data"] == (await client.get(f"/v1/requests/{request_id}")).json()
    # what the documentation gives to receivers
    documented: dict[str, Any] = {}
    [block] = blocks("router/api/README.md", "python")
    exec(block.text, documented)
    verified = documented["verified"]
    assert verified(SECRET, headers, body)
    assert verified(older, headers, body)  # a receiver that has not changed over yet
    assert not verified(SECRET, headers, body + b" ")
    assert not verified("whsec_" + base64.b64encode(b"o" * 32).decode(), headers, body)
    assert not verified(SECRET, {**headers, "webhook-timestamp": "1700000000"}, body)
    assert headers["webhook-id"] == f"msg_{request_id}"


def test_the_signature_is_the_specifications() -> None:
    """The example of the Standard Webhooks reference implementations."""
    webhooks = Webhooks(Receiver(), [webhook_key("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")])
    headers = webhooks.headers("msg_p5jXN8AQM9LWM0D4loKWxJek", b'{"test": 2432232314}', 1614265330)
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize(
    ("answers", "calls"),
    [([503, OSError("refused"), 200], 3), ([500] * 9, 4), ([410, 200], 1), ([204], 1), ([302, 200], 2)],
)
async def test_a_webhook_is_repeated(answers: list[int | Exception], calls: int) -> None:
    receiver = Receiver(*answers)
    outcomes: list[str] = []
    webhooks = Webhooks(receiver, [b"k" * 32], delays_s=(0, 0, 0), on_outcome=outcomes.append)
    ended, tries = asyncio.Event(), []

    async def note(event: Event | None) -> None:
        if event is None:
            ended.set()
        else:
            tries.append(event.tries)

    webhooks.send(Event(URL, "msg_1", b"{}", since=1000.0), note)
    assert (webhooks.pending, webhooks.oldest_s(1030.0)) == (1, 30.0)
    async with asyncio.timeout(5):
        await ended.wait()
        while webhooks.pending:  # noqa: ASYNC110 - the task's end is all that is left
            await asyncio.sleep(0)
    assert webhooks.oldest_s(1030.0) == 0.0
    last = "given_up" if len(answers) > 4 or answers[0] == 410 else "delivered"
    assert outcomes == ["failed"] * (calls - 1) + [last]
    assert len(receiver.calls) == calls
    assert tries == list(range(1, calls))
    assert len({headers["webhook-id"] for _, _, headers in receiver.calls}) == 1


@pytest.mark.parametrize(
    "url",
    [
        "http://x.example",
        "ftp://x",
        "x",
        "https://" + "x" * 3000,
        "https://",
        "https://user:password@x.example",
        "https://127.0.0.1/hook",
        "https://[::1]/hook",
        "https://169.254.169.254/latest",
        "https://x.example:port/",
    ],
)
async def test_bad_webhook_urls(make_client: Callable[..., httpx.AsyncClient], gateway: FakeGateway, url: str) -> None:
    webhooks = Webhooks(Receiver(), [b"k" * 32], accepts=is_public)
    async with make_client(requests=Requests(gateway, webhooks=webhooks)) as client:
        response = await client.post(GENERATE, json=OK | {"webhook_url": url})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "webhook_url")
    assert gateway.requests == []


async def test_receivers_of_ones_own_may_be_allowed(
    make_client: Callable[..., httpx.AsyncClient], gateway: FakeGateway
) -> None:
    receiver = Receiver(200)
    async with make_client(requests=Requests(gateway, webhooks=Webhooks(receiver, [b"k" * 32]))) as client:
        response = await client.post(GENERATE, json=OK | {"webhook_url": "http://127.0.0.1:9/hook"})
        assert response.status_code == 200
        async with asyncio.timeout(5):
            await receiver.called.wait()


# --- from one process to the next -------------------------------------------------------------------------------


async def router(
    make_client: Callable[..., httpx.AsyncClient],
    gateway: FakeGateway,
    store: MediaStore,
    receiver: Receiver | None = None,
    *,
    owner: str = "ledger",
    cut_off: Iterable[CutOff] = (),
) -> tuple[httpx.AsyncClient, Requests]:
    """What a process builds when it starts."""
    webhooks = Webhooks(receiver, [b"k" * 32], delays_s=(60,)) if receiver is not None else None
    requests = Requests(gateway, store, webhooks)
    await requests.resume(owner, cut_off)
    return make_client(media=store, requests=requests), requests


async def until(look: Callable[[], Awaitable[Any]], right: Callable[[Any], bool] = bool) -> None:
    """Wait for what a thread writes."""
    async with asyncio.timeout(5):
        while not right(await look()):  # noqa: ASYNC110 - what is waited for is the file system
            await asyncio.sleep(0.001)


def killed(requests: Requests) -> None:
    """The process is gone: nothing it had in hand goes on."""
    for record in requests._running.values():
        assert record.task is not None
        record.task.cancel()
    for task in requests._webhooks._running.values() if requests._webhooks is not None else ():
        task.cancel()


def hanging(*_: Any) -> Any:
    return asyncio.Event().wait()


async def test_a_job_survives_its_process(
    make_client: Callable[..., httpx.AsyncClient], gateway: FakeGateway, store: MediaStore
) -> None:
    receiver = Receiver(200)
    gateway.behave = hanging
    first, requests = await router(make_client, gateway, store, receiver)
    request_id = await submit(first, webhook_url=URL, output_format="webp", size="512x512", n=2)
    killed(requests)

    # another router with the same store knows of it, and leaves it alone
    other, _ = await router(make_client, gateway, store, receiver, owner="another")
    answer = await other.get(f"/v1/requests/{request_id}")
    assert (answer.json()["status"], answer.headers["retry-after"]) == ("processing", "2")
    assert gateway.resumed == []

    go_on = asyncio.Event()
    gateway.behave = lambda *_: go_on.wait()
    second, requests = await router(make_client, gateway, store, receiver)
    assert (await second.get(f"/v1/requests/{request_id}")).json()["status"] == "processing"
    go_on.set()
    answer_ = await ended(second, request_id)
    assert answer_["status"] == "completed"
    assert len(answer_["response"]["data"]) == 2
    [(resumed_id, request, awaited)] = gateway.resumed
    assert (resumed_id, awaited) == (request_id, True)
    assert (request.output_format, str(request.size), request.n, request.prompt) == ("webp", "512x512", 2, "")
    async with asyncio.timeout(5):
        await receiver.called.wait()
    assert json.loads(receiver.calls[0][1])["data"] == answer_
    await requests.close()

    # nothing is left to do, and the result is still there
    third, _ = await router(make_client, gateway, store, receiver)
    assert (await third.get(f"/v1/requests/{request_id}")).json() == answer_
    assert len(gateway.resumed) == len(receiver.calls) == 1


async def test_a_prompt_is_never_kept(
    make_client: Callable[..., httpx.AsyncClient], gateway: FakeGateway, store: MediaStore
) -> None:
    gateway.behave = hanging
    client, requests = await router(make_client, gateway, store)
    await submit(client, prompt="a very private prompt")
    killed(requests)
    names = await store.remembered("")
    kept = [await store.recall(name) or b"" for name in names]
    assert any(b"processing" in content for content in kept)
    assert not any(b"private" in content for content in kept)


async def test_a_webhook_survives_its_process(
    make_client: Callable[..., httpx.AsyncClient], gateway: FakeGateway, store: MediaStore, monkeypatch: Any
) -> None:
    receiver = Receiver(503)
    client, requests = await router(make_client, gateway, store, receiver)
    request_id = await submit(client, webhook_url=URL)
    async with asyncio.timeout(5):
        await receiver.called.wait()
    await until(lambda: store.recall(request_id), lambda found: b'"tries":1' in found)
    await requests.close()  # a pause of a minute holds nothing up
    _, first, headers = receiver.calls[0]

    receiver.called.clear()
    await router(make_client, gateway, store, receiver)
    await asyncio.sleep(0.01)
    assert len(receiver.calls) == 1  # the pause goes on
    later = time.time() + 60
    monkeypatch.setattr("router.api.webhooks.time.time", lambda: later)
    await router(make_client, gateway, store, receiver)
    async with asyncio.timeout(5):
        await receiver.called.wait()
    _, second, again = receiver.calls[1]
    assert (second, again["webhook-id"]) == (first, headers["webhook-id"])
    await until(lambda: store.remembered("job_"), lambda found: not found)


async def test_a_repeated_request_waits_for_the_resumed_one(
    make_client: Callable[..., httpx.AsyncClient], gateway: FakeGateway, store: MediaStore
) -> None:
    gateway.behave = hanging
    key = {"Idempotency-Key": "order-17"}
    client, requests = await router(make_client, gateway, store)
    waiting = asyncio.create_task(client.post(GENERATE, json=OK, headers=key))
    await until(lambda: store.remembered("key_"))  # the last thing that is written before it runs
    # a second router of the same store says so, instead of buying the picture twice
    other, _ = await router(make_client, gateway, store, owner="another")
    refused = await other.post(GENERATE, json=OK, headers=key)
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "idempotency_key_in_use")
    assert (refused.headers["retry-after"], refused.headers.get("x-should-retry")) == ("2", None)
    killed(requests)
    await asyncio.gather(waiting, return_exceptions=True)

    gateway.behave = None
    client, _ = await router(make_client, gateway, store)
    answer = (await client.post(GENERATE, json=OK, headers=key)).json()
    assert answer["data"][0]["b64_json"]
    assert [resumed[0] for resumed in gateway.resumed] == [answer["id"]]


async def test_a_request_that_nobody_meant_to_ask_for_is_found_as_well(
    make_client: Callable[..., httpx.AsyncClient], gateway: FakeGateway, store: MediaStore
) -> None:
    def unknown(*_: Any) -> None:
        raise RequestError(502, "Nobody knows.", code="outcome_unknown", type="server_error")

    gateway.behave = unknown
    request = ImageRequest(Operation.GENERATE, "gpt-image-2", "", response_format="url")
    left = CutOff("req_left", 1_795_000_000, Caller("tests"), request)
    for cut_off in ([left], []):  # and again after another restart
        client, _ = await router(make_client, gateway, store, cut_off=cut_off)
        answer = await ended(client, "req_left")
        assert (answer["status"], answer["error"]["code"]) == ("failed", "outcome_unknown")
    assert [resumed[2] for resumed in gateway.resumed] == [False]


async def test_purging_calls_nobody(
    make_client: Callable[..., httpx.AsyncClient], gateway: FakeGateway, store: MediaStore
) -> None:
    receiver = Receiver(503)
    client, requests = await router(make_client, gateway, store, receiver)
    request_id = await submit(client, webhook_url=URL)
    async with asyncio.timeout(5):
        await receiver.called.wait()
    assert (await client.delete(f"/v1/requests/{request_id}")).status_code == 200
    await asyncio.sleep(0)
    assert requests._webhooks is not None
    assert not requests._webhooks._running
    assert await store.remembered("") == []


async def test_webhooks_need_a_sender(client: httpx.AsyncClient) -> None:
    response = await client.post(GENERATE, json=OK | {"webhook_url": URL})
    assert (response.status_code, response.json()["error"]["code"]) == (400, "unsupported_parameter")


@pytest.mark.parametrize("secret", ["x", "whsec", "whsec_%%%", "sk_" + base64.b64encode(b"s").decode()])
def test_bad_secrets(secret: str) -> None:
    with pytest.raises(ValueError, match="whsec_"):
        webhook_key(secret)
