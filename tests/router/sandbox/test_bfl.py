"""Black Forest Labs: there is no client, so its protocol by hand: submit, poll the region, fetch, count credits."""

from __future__ import annotations

import base64
import io
import time
from decimal import Decimal
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.router.sandbox.running import Hook, Sandbox


def submit(sandbox: Sandbox, model: str, **body: Any) -> httpx.Response:
    headers = {"x-key": sandbox.key("bfl")}
    return sandbox.http.post(f"{sandbox.base('bfl')}/{model}", headers=headers, json={"prompt": "a", **body})


def poll(sandbox: Sandbox, url: str) -> dict[str, Any]:
    for _ in range(500):
        body: dict[str, Any] = sandbox.http.get(url, headers={"x-key": sandbox.key("bfl")}).json()
        if body["status"] != "Pending":
            return body
        time.sleep(0.01)
    raise AssertionError("still pending")


def test_submit_poll_fetch(sandbox: Sandbox) -> None:
    ticket = submit(sandbox, "flux-2-pro", width=1920, height=1088, seed=42).json()
    assert (ticket["cost"], ticket["input_mp"], ticket["output_mp"]) == (4.5, 0.0, 1.99)
    assert "/api.eu2.bfl.ai/" in ticket["polling_url"]
    task = poll(sandbox, ticket["polling_url"])
    assert (task["status"], task["result"]["seed"]) == ("Ready", 42)
    picture = sandbox.http.get(task["result"]["sample"])
    assert Image.open(io.BytesIO(picture.content)).size == (1920, 1088)
    assert picture.headers["content-type"] == "image/jpeg"
    assert sandbox.billed("bfl") == Decimal("0.045")


@pytest.mark.parametrize(
    ("model", "width", "height", "usd"),
    [
        ("flux-2-pro", 1024, 1024, "0.03"),
        ("flux-2-pro", 2048, 2048, "0.075"),
        ("flux-2-pro", 4096, 4096, "0.075"),  # scaled down to 4 MP
        ("flux-2-max", 1536, 1536, "0.13"),
        ("flux-2-flex", 1024, 2048, "0.10"),
        ("flux-2-klein-4b", 1024, 1024, "0.014"),
        ("flux-2-klein-9b", 1024, 2048, "0.017"),
        ("flux-pro-1.1", 1024, 768, "0.04"),
        ("flux-dev", 512, 512, "0.025"),
    ],
)
def test_prices(sandbox: Sandbox, model: str, width: int, height: int, usd: str) -> None:
    ticket = submit(sandbox, model, width=width, height=height).json()
    assert poll(sandbox, ticket["polling_url"])["status"] == "Ready"
    assert sandbox.billed("bfl") == Decimal(usd)
    if model.startswith("flux-2"):
        assert Decimal(str(ticket["cost"])) == Decimal(usd) * 100


def test_reference_costs_and_gives_the_size(sandbox: Sandbox, source: bytes, large: bytes) -> None:
    b64 = base64.b64encode(source).decode()
    ticket = submit(sandbox, "flux-2-pro", input_image=b64, width=1024, height=1024).json()
    assert (ticket["cost"], ticket["input_mp"]) == (4.5, 0.25)
    task = poll(sandbox, submit(sandbox, "flux-2-pro", input_image=b64).json()["polling_url"])
    assert Image.open(io.BytesIO(sandbox.http.get(task["result"]["sample"]).content)).size == (512, 512)
    uri = "data:image/jpeg;base64," + base64.b64encode(large).decode()
    assert submit(sandbox, "flux-2-pro", input_image=b64, input_image_2=uri, width=64, height=64).json()["cost"] == 7.5


def test_another_host_does_not_know_the_task(sandbox: Sandbox) -> None:
    url = submit(sandbox, "flux-dev").json()["polling_url"]
    assert poll(sandbox, url.replace("api.eu2.bfl.ai", "api.bfl.ai"))["status"] == "Task not found"
    assert poll(sandbox, f"{url}x")["status"] == "Task not found"


def test_moderation_is_free(sandbox: Sandbox) -> None:
    for model, status in (("flux-2-pro--refused", "Request"), ("flux-2-pro--refused:stage=output", "Content")):
        task = poll(sandbox, submit(sandbox, model).json()["polling_url"])
        assert (task["status"], task["result"]) == (f"{status} Moderated", None)
        assert task["details"]["Moderation Reasons"]
    assert poll(sandbox, submit(sandbox, "flux-2-pro--failed").json()["polling_url"])["status"] == "Error"
    empty = poll(sandbox, submit(sandbox, "flux-2-pro--empty").json()["polling_url"])
    assert (empty["status"], empty["result"]) == ("Ready", None)
    assert sandbox.billed("bfl") == 0


def test_errors(sandbox: Sandbox) -> None:
    assert sandbox.http.post(f"{sandbox.base('bfl')}/flux-dev", json={"prompt": "a"}).status_code == 403
    assert submit(sandbox, "flux-9").status_code == 404
    assert submit(sandbox, "flux-dev--no_credit").status_code == 402
    wrong = submit(sandbox, "flux-2-pro", width=1000)
    assert (wrong.status_code, wrong.json()["detail"][0]["loc"]) == (422, ["body", "width"])
    for body in ({"seed": "x"}, {"output_format": "gif"}, {"safety_tolerance": 9}, {"input_image": "!"}):
        assert submit(sandbox, "flux-2-pro", **body).status_code == 422
    assert submit(sandbox, "flux-kontext-pro", aspect_ratio="wide").status_code == 422


def test_at_most_24_tasks_at_once(sandbox: Sandbox) -> None:
    statuses = [submit(sandbox, "flux-dev--stuck", width=64, height=64).status_code for _ in range(25)]
    assert statuses == [200] * 24 + [429]


def test_expired_link(sandbox: Sandbox) -> None:
    task = poll(sandbox, submit(sandbox, "flux-dev--expired_link").json()["polling_url"])
    assert sandbox.http.get(task["result"]["sample"]).status_code == 403


def test_webhook_and_credits(sandbox: Sandbox, hook: Hook) -> None:
    before = sandbox.http.get(f"{sandbox.base('bfl')}/credits", headers={"x-key": sandbox.key("bfl")}).json()
    reply = submit(sandbox, "flux-dev--duplicate_webhook", webhook_url=hook.url, webhook_secret="s").json()
    assert reply["webhook_url"] == hook.url
    first, second = hook.wait(2)
    assert first == second
    assert first["status"] == "Ready"
    assert hook.headers[0]["x-webhook-secret"] == "s"
    after = sandbox.http.get(f"{sandbox.base('bfl')}/credits", headers={"x-key": sandbox.key("bfl")}).json()
    assert before["credits"] - after["credits"] == 2.5
