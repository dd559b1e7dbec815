"""Jobs whose router is killed: accepted means that their result comes, or that it is said what became of them."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from router.ledger import Reports
from router.media import probe
from tests.integration.beside import Beside
from tests.integration.process import KEY, RouterProcess, until

GENERATE = "/v1/images/generations"
HEADERS = {"authorization": f"Bearer {KEY}"}
SECRET = b"thirty-two bytes of webhook key!"

CONFIG = """
version: 1
providers:
  fal:
    name: fal.ai
    prices: fal
    key_env: FAL_KEY
    urls: {{run: "{origin}/fal.run", queue: "{origin}/queue.fal.run"}}
  gpu-fast:
    adapter: openai
    prices: gpu-fast
    key_env: GPU_KEY
    urls: {{api: "{origin}/gpu-fast.local/v1"}}
models:
  queued: {{default_size: 1024x1024, targets: {{fal: {{generate: fal-ai/flux-2/turbo, max_images: 4}}}}}}
  at-once:
    default_size: 1024x1024
    targets: {{gpu-fast: {{generate: flux.2-dev-turbo--hang, sku: flux.2-dev-turbo}}}}
limits: {{request_timeout_s: {timeout_s}}}
webhooks: {{secret_env: WEBHOOK_SECRET, private_receivers: {private}, retry_s: [{pauses}]}}
"""


class Gate:
    """Lets no job at a provider end, as its owner would see it, before ``open`` is set."""

    def __init__(self, app: ASGIApp, opened: threading.Event) -> None:
        self.app, self.opened = app, opened

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].endswith("/status"):
            while not self.opened.is_set():  # noqa: ASYNC110 - set by another thread
                await asyncio.sleep(0.01)
        await self.app(scope, receive, send)


@dataclass
class Receiver:
    """Takes webhooks; answers 500 while ``failing``."""

    failing: bool = False
    calls: list[tuple[dict[str, str], bytes]] = field(default_factory=list)

    def app(self) -> Starlette:
        async def take(request: Request) -> Response:
            self.calls.append((dict(request.headers), await request.body()))
            return Response(status_code=500 if self.failing else 204)

        return Starlette(routes=[Route("/hook", take, methods=["POST"])])


def verified(headers: dict[str, str], body: bytes) -> dict[str, Any]:
    """The check that Standard Webhooks asks of a receiver, from its specification."""
    assert abs(time.time() - int(headers["webhook-timestamp"])) < 300
    signed = b".".join([headers["webhook-id"].encode(), headers["webhook-timestamp"].encode(), body])
    expected = base64.b64encode(hmac.new(SECRET, signed, hashlib.sha256).digest()).decode()
    assert any(hmac.compare_digest(given, f"v1,{expected}") for given in headers["webhook-signature"].split(" "))
    event: dict[str, Any] = json.loads(body)
    return event


@dataclass
class House:
    router: RouterProcess
    opened: threading.Event
    receiver: Receiver
    hook: str
    origin: str

    def submit(self, model: str, **more: Any) -> str:
        answer = self.router.post(GENERATE, {"model": model, "prompt": "a lake", "background": True} | more)
        assert answer.status_code == 202, answer.text
        assert answer.headers["location"] == f"/v1/requests/{answer.json()['id']}"
        return str(answer.json()["id"])

    def ask(self, request_id: str) -> dict[str, Any]:
        answer = httpx.get(f"{self.router.base}/v1/requests/{request_id}", headers=HEADERS)
        return dict(answer.json()) | {"http": answer.status_code}

    def ended(self, request_id: str) -> dict[str, Any]:
        return until(lambda: found if (found := self.ask(request_id))["status"] != "processing" else None)

    def attempts(self, request_id: str) -> list[Any]:
        with Reports(self.router.ledger_url) as reports:
            found = reports.request(request_id)
        return list(found.attempts) if found else []

    def billed(self) -> int:
        return int(httpx.get(f"{self.origin}/_control/invoice").json()["total_nanos"])

    def picture(self, item: dict[str, Any]) -> httpx.Response:
        """Behind a link; a restarted router of these tests has another port."""
        return httpx.get(self.router.base + httpx.URL(item["url"]).raw_path.decode()).raise_for_status()

    def restart(self) -> None:
        self.router.kill()
        self.router.start()


def build(
    tmp_path: Path, beside: Beside, *, private: bool = True, pauses: str = "0.2, " * 50, timeout_s: float = 280
) -> House:
    opened, receiver = threading.Event(), Receiver()
    origin = beside.sandbox(0.01, Gate, opened=opened)
    hook = beside.serve(receiver.app()) + "/hook"
    config = tmp_path / "providers.yaml"
    config.write_text(CONFIG.format(origin=origin, private=str(private).lower(), pauses=pauses, timeout_s=timeout_s))
    env = {
        "FAL_KEY": "sandbox-id:sandbox-secret",
        "GPU_KEY": "sandbox-gpu-fast",
        "WEBHOOK_SECRET": "whsec_" + base64.b64encode(SECRET).decode(),
    }
    return House(RouterProcess(tmp_path, config=config, env=env), opened, receiver, hook, origin)


@pytest.fixture
def house(tmp_path):
    with Beside() as beside:
        built = build(tmp_path, beside)
        yield built
        built.opened.set()
        if built.router.process.poll() is None:
            built.router.kill()
        assert "whsec_" not in built.router.log_path.read_text()
        assert "a lake" not in built.router.log_path.read_text()


def test_a_killed_router_hands_out_the_pictures_of_its_job(house):
    house.receiver.failing = True
    wanted = {"n": 2, "output_format": "webp", "webhook_url": house.hook}
    request_id = house.submit("queued", **wanted)
    until(lambda: any(attempt.jobs for attempt in house.attempts(request_id)))
    assert house.ask(request_id)["status"] == "processing"

    house.restart()
    assert house.ask(request_id)["status"] == "processing"
    house.opened.set()
    answer = house.ended(request_id)
    assert answer["status"] == "completed", answer
    response = answer["response"]
    assert len(response["data"]) == 2
    for item in response["data"]:
        picture = house.picture(item)
        assert picture.headers["content-type"] == "image/webp"
        found = probe(picture.content)
        assert found is not None
        assert (str(found.size), found.format) == ("1024x1024", "webp")
    metadata = response["metadata"]
    assert (metadata["provider"], metadata["model"]) == ("fal", "queued")
    assert "resumed" in [warning["code"] for warning in metadata["warnings"]]

    # paid once, and booked to the nano-dollar
    [attempt] = house.attempts(request_id)
    assert (attempt.state, attempt.cost_nanos) == ("settled", house.billed())
    assert (attempt.settlement.evidence, attempt.settlement.delivered) == ("resume", True)
    assert float(metadata["cost"]) * 1e9 == house.billed() > 0

    # the receiver refuses; the router dies again; the event still comes, the same one
    until(lambda: house.receiver.calls)
    house.restart()
    assert house.ask(request_id) == answer
    house.receiver.failing = False
    before = len(house.receiver.calls)
    until(lambda: len(house.receiver.calls) > before)
    events = [verified(*call) for call in house.receiver.calls]
    assert {headers["webhook-id"] for headers, _ in house.receiver.calls} == {f"msg_{request_id}"}
    assert all(event == events[0] for event in events)
    assert events[0]["type"] == "image.completed"
    assert events[0]["data"] == {key: value for key, value in answer.items() if key != "http"}

    # which the metrics show, and that nobody is left to be told
    def metrics() -> str:
        return httpx.get(f"{house.router.base}/metrics").text

    until(lambda: "pixelroute_webhook_pending 0.0" in metrics())
    assert 'pixelroute_webhook_calls_total{outcome="delivered"} 1.0' in metrics()
    assert "pixelroute_webhook_oldest_pending_age_seconds 0.0" in metrics()

    # once it has been taken, it is not sent again
    until(lambda: not list((house.router.directory / "media" / "documents").glob("job_*")))
    told = len(house.receiver.calls)
    house.restart()
    assert house.router.stop() == 0
    assert len(house.receiver.calls) == told


def test_what_nobody_can_know_is_said(house):
    request_id = house.submit("at-once", webhook_url=house.hook)
    until(lambda: house.attempts(request_id))
    house.restart()
    answer = house.ended(request_id)
    assert (answer["status"], answer["error"]["code"]) == ("failed", "outcome_unknown")
    assert answer["error"]["attempts"] == [{"provider": "gpu-fast", "outcome": "cancelled", "billed": "maybe"}]
    assert house.attempts(request_id)[0].state == "unknown"
    until(lambda: house.receiver.calls)
    assert verified(*house.receiver.calls[0])["type"] == "image.failed"


def test_a_client_that_waited_can_ask_as_well(house):
    """Its connection broke with the router; its id is in the log."""
    client = sent(house, ASKED)
    [attempt] = until(lambda: [one for one in recent(house) if one.jobs])
    house.restart()
    client.join()
    request_id = attempt.opening.request_id
    assert house.ask(request_id)["status"] == "processing"
    house.opened.set()
    answer = house.ended(request_id)
    assert probe(house.picture(answer["response"]["data"][0]).content) is not None
    [attempt] = house.attempts(request_id)
    assert (attempt.state, attempt.settlement.delivered) == ("settled", False)  # it was not told where to ask


ASKED = {"model": "queued", "prompt": "a lake"}


def sent(house: House, body: dict[str, Any], **more: Any) -> threading.Thread:
    """A client that waits, and whose router dies."""

    def send() -> None:
        with pytest.raises(httpx.TransportError):
            house.router.post(GENERATE, body, **more)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


def recent(house: House) -> list[Any]:
    with Reports(house.router.ledger_url) as reports:
        return [attempt for request in reports.recent(10) for attempt in request.attempts]


def test_a_repeated_request_gets_the_first_ones_pictures_after_a_crash(house):
    key = {"idempotency-key": "order-17"}
    asked = ASKED | {"response_format": "b64_json"}
    client = sent(house, asked, headers=key)
    [attempt] = until(lambda: [one for one in recent(house) if one.jobs])
    house.restart()
    client.join()
    house.opened.set()
    answer = house.router.post(GENERATE, asked, headers=key)
    assert answer.status_code == 200, answer.text
    assert answer.json()["id"] == attempt.opening.request_id
    assert probe(base64.b64decode(answer.json()["data"][0]["b64_json"])) is not None
    assert len(recent(house)) == 1


def test_a_client_that_left_its_stream_asks_later(house):
    stream = ASKED | {"stream": True, "response_format": "b64_json"}
    with httpx.stream("POST", house.router.base + GENERATE, json=stream, headers=HEADERS, timeout=10) as answer:
        request_id = answer.headers["x-request-id"]
    assert house.ask(request_id)["status"] == "processing"
    house.opened.set()
    found = house.ended(request_id)
    assert house.picture(found["response"]["data"][0]).headers["content-type"] == "image/png"
    assert float(found["response"]["metadata"]["cost"]) * 1e9 == house.billed()


def test_a_stopping_router_leaves_a_webhook_to_the_next(tmp_path):
    with Beside() as beside:
        house = build(tmp_path, beside, pauses="3600")
        house.opened.set()
        house.receiver.failing = True
        request_id = house.submit("queued", webhook_url=house.hook)
        document = tmp_path / "media" / "documents" / request_id
        until(lambda: b'"tries":1' in document.read_bytes())
        began = time.monotonic()
        assert house.router.stop() == 0
        assert time.monotonic() - began < 5
        assert list(document.parent.glob("job_*"))


def test_receivers_inside_the_network_are_not_called(tmp_path):
    with Beside() as beside:
        house = build(tmp_path, beside, private=False, pauses="")
        house.opened.set()
        for hook in (house.hook, house.hook.replace("http:", "https:")):
            answer = house.router.post(GENERATE, {"model": "queued", "prompt": "x", "webhook_url": hook})
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, "webhook_url")
        named = house.hook.replace("http://127.0.0.1", "https://localhost")  # what a name means shows when it is called
        request_id = house.submit("queued", webhook_url=named)
        assert house.ended(request_id)["status"] == "completed"
        [told] = until(lambda: house.router.events("log"))
        assert told["message"] == f"webhook msg_{request_id} given up: PermissionError"
        assert house.receiver.calls == []
        assert house.router.stop() == 0


def test_a_job_has_more_time_than_a_client_that_waits(tmp_path):
    with Beside() as beside:
        house = build(tmp_path, beside, timeout_s=1)
        request_id = house.submit("queued")
        waiting = house.router.post(GENERATE, ASKED)
        assert (waiting.status_code, waiting.json()["error"]["code"]) == (504, "timeout")
        assert house.ask(request_id)["status"] == "processing"
        house.opened.set()
        assert house.ended(request_id)["status"] == "completed"
        assert house.router.stop() == 0


def test_what_was_answered_can_be_asked_for_after_a_restart(house):
    """By a client that never saw the answer, say because its proxy gave up."""
    house.opened.set()
    answered = house.router.post(GENERATE, ASKED | {"n": 2}).json()
    house.restart()
    found = house.ask(answered["id"])
    assert (found["status"], found["http"]) == ("completed", 200)
    names = [[httpx.URL(item["url"]).path for item in body["data"]] for body in (answered, found["response"])]
    assert sorted(names[0]) == sorted(names[1])
    for item in found["response"]["data"]:
        assert str(probe(house.picture(item).content).size) == "1024x1024"
    for name in ("size", "output_format", "id"):
        assert found["response"][name] == answered[name]
    told = {"cost", "line_items", "executed_model", "warnings", "reason"}
    assert {name: found["response"]["metadata"][name] for name in told} == {
        name: answered["metadata"][name] for name in told
    }
    carried = house.router.post(GENERATE, ASKED | {"response_format": "b64_json"}).json()
    house.restart()
    assert house.ask(carried["id"])["http"] == 404  # its pictures were in the answer and nowhere else
