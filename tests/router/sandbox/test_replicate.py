"""Replicate: the official client on the emulator, states, waiting, webhooks, what is billed."""

from __future__ import annotations

import base64
import hashlib
import hmac
import io
import time
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import httpx
import pytest
from PIL import Image
from replicate.client import Client
from replicate.exceptions import ModelError, ReplicateError

from tests.router.sandbox.running import Hook, Sandbox

SCHNELL = "black-forest-labs/flux-schnell"
PRO = "black-forest-labs/flux-2-pro"


@pytest.fixture
def client(sandbox: Sandbox) -> Iterator[Client]:
    base = sandbox.base("replicate").removesuffix("/v1")
    client = Client(api_token=sandbox.key("replicate"), base_url=base)
    yield client
    client._client.close()


def create(sandbox: Sandbox, model: str, body: dict[str, Any], **headers: str) -> httpx.Response:
    url = f"{sandbox.base('replicate')}/models/{model}/predictions"
    return sandbox.http.post(url, headers=sandbox.bearer("replicate") | headers, json=body)


def ended(sandbox: Sandbox, prediction: dict[str, Any]) -> dict[str, Any]:
    for _ in range(500):
        prediction = sandbox.http.get(prediction["urls"]["get"], headers=sandbox.bearer("replicate")).json()
        if prediction["status"] not in ("starting", "processing"):
            return prediction
        time.sleep(0.01)
    raise AssertionError("never ended")


def test_client_run(client: Client, sandbox: Sandbox) -> None:
    arguments = {"prompt": "a", "num_outputs": 2, "output_format": "png", "megapixels": "0.25"}
    outputs = client.run(SCHNELL, input=arguments)
    assert isinstance(outputs, list)
    pictures = [sandbox.http.get(output).content for output in outputs]  # files only where they are https
    assert [Image.open(io.BytesIO(picture)).size for picture in pictures] == [(512, 512)] * 2
    assert sandbox.billed("replicate") == Decimal("0.006")


def test_client_predictions(client: Client, sandbox: Sandbox) -> None:
    prediction = client.models.predictions.create(PRO, input={"prompt": "a", "seed": 1})
    assert prediction.status in ("starting", "processing", "succeeded")
    prediction.wait()
    assert prediction.status == "succeeded"
    assert isinstance(prediction.output, str)
    assert prediction.metrics
    assert prediction.metrics["predict_time"] > 0
    assert client.predictions.get(prediction.id).output == prediction.output
    assert client.predictions.list().results[0].id == prediction.id
    assert client.models.get(PRO).owner == "black-forest-labs"
    assert sandbox.billed("replicate") == Decimal("0.03")


def test_client_edit_with_an_upload(client: Client, sandbox: Sandbox, source: bytes) -> None:
    file = client.files.create(io.BytesIO(source))
    prediction = client.predictions.create(
        version=PRO, input={"prompt": "a", "input_images": [file.urls["get"]], "aspect_ratio": "match_input_image"}
    )
    prediction.wait()
    picture = sandbox.http.get(str(prediction.output)).content
    assert Image.open(io.BytesIO(picture)).size == (512, 512)
    assert sandbox.billed("replicate") == Decimal("0.045")


def test_client_errors(client: Client, sandbox: Sandbox) -> None:
    with pytest.raises(ModelError, match="NSFW content detected"):
        client.run(SCHNELL, input={"prompt": "nsfw"})
    with pytest.raises(ReplicateError, match="less than or equal to 4"):
        client.run(SCHNELL, input={"prompt": "a", "num_outputs": 5})
    with pytest.raises(ReplicateError, match="Insufficient credit"):
        client.run(f"{SCHNELL}--no_credit", input={"prompt": "a"})
    with pytest.raises(ReplicateError, match="does not exist"):
        client.run("nobody/nothing", input={"prompt": "a"})
    assert sandbox.billed("replicate") == 0


def test_client_cancel(client: Client, sandbox: Sandbox) -> None:
    prediction = client.models.predictions.create(f"{SCHNELL}--stuck", input={"prompt": "a"})
    prediction.cancel()
    assert prediction.status in ("aborted", "canceled")
    assert sandbox.billed("replicate") == 0


def test_with_and_without_waiting(sandbox: Sandbox) -> None:
    at_once = create(sandbox, SCHNELL, {"input": {"prompt": "a"}})
    assert (at_once.status_code, at_once.json()["status"]) == (201, "starting")
    assert ended(sandbox, at_once.json())["status"] == "succeeded"
    held = create(sandbox, SCHNELL, {"input": {"prompt": "a"}}, Prefer="wait=5")
    assert (held.status_code, held.json()["status"]) == (201, "succeeded")
    too_short = create(sandbox, f"{SCHNELL}--stuck", {"input": {"prompt": "a"}}, Prefer="wait=1")
    assert (too_short.status_code, too_short.json()["status"]) == (202, "processing")


def test_cancel_after(sandbox: Sandbox) -> None:
    reply = create(sandbox, "community/sdxl--stuck", {"input": {"prompt": "a"}}, **{"Cancel-After": "1s"})
    time.sleep(0.9)
    prediction = ended(sandbox, reply.json())
    assert prediction["status"] == "canceled"
    seconds = Decimal(str(prediction["metrics"]["predict_time"]))
    assert sandbox.billed("replicate") == (seconds * Decimal("0.000975")).quantize(Decimal("1e-9"))
    assert seconds >= Decimal("0.9")


@pytest.mark.parametrize(("written", "status"), [("1m", 201), ("1m30s", 201), ("90s", 201), ("90", 422), ("1.5s", 422)])
def test_cancel_after_is_minutes_and_seconds(sandbox: Sandbox, written: str, status: int) -> None:
    reply = create(sandbox, SCHNELL, {"input": {"prompt": "a"}}, **{"Cancel-After": written})
    assert reply.status_code == status


@pytest.mark.parametrize(
    ("model", "fields", "usd"),
    [
        (SCHNELL, {"num_outputs": 4}, "0.012"),
        ("black-forest-labs/flux-dev", {}, "0.025"),
        ("black-forest-labs/flux-1.1-pro", {"aspect_ratio": "16:9"}, "0.04"),
        (PRO, {"resolution": "4 MP"}, "0.075"),
        ("black-forest-labs/flux-2-flex", {"aspect_ratio": "custom", "width": 1024, "height": 2048}, "0.12"),
    ],
)
def test_prices(sandbox: Sandbox, model: str, fields: dict[str, Any], usd: str) -> None:
    reply = create(sandbox, model, {"input": {"prompt": "a", **fields}}, Prefer="wait")
    assert reply.json()["status"] == "succeeded", reply.text
    assert sandbox.billed("replicate") == Decimal(usd)


def test_community_models_cost_seconds_even_when_they_fail(sandbox: Sandbox) -> None:
    reply = create(sandbox, "community/sdxl--failed", {"input": {"prompt": "a"}}, Prefer="wait")
    assert reply.json()["status"] == "failed"
    seconds = Decimal(str(reply.json()["metrics"]["predict_time"]))
    assert sandbox.billed("replicate") == (seconds * Decimal("0.000975")).quantize(Decimal("1e-9"))
    assert seconds > 0


def test_throttling(sandbox: Sandbox) -> None:
    reply = create(sandbox, f"{SCHNELL}--rate_limited:retry_after=30", {"input": {"prompt": "a"}})
    assert (reply.status_code, reply.headers["retry-after"]) == (429, "30")
    assert "resets in ~30s" in reply.json()["detail"]
    assert create(sandbox, SCHNELL, {}).status_code == 422


def test_webhook_is_signed(sandbox: Sandbox, hook: Hook) -> None:
    secret = sandbox.http.get(
        f"{sandbox.base('replicate')}/webhooks/default/secret", headers=sandbox.bearer("replicate")
    ).json()["key"]
    create(sandbox, SCHNELL, {"input": {"prompt": "a"}, "webhook": hook.url, "webhook_events_filter": ["completed"]})
    (message,) = hook.wait(1)
    assert message["status"] == "succeeded"
    headers = hook.headers[0]
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + hook.bodies[0]
    digest = hmac.new(base64.b64decode(secret.removeprefix("whsec_")), signed, hashlib.sha256).digest()
    assert headers["webhook-signature"] == f"v1,{base64.b64encode(digest).decode()}"
