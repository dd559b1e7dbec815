"""Runware: the official client over its WebSocket, task arrays over HTTP, costs as reported."""

from __future__ import annotations

import asyncio
import base64
import io
import time
import uuid
from decimal import Decimal
from typing import Any

import httpx
import pytest
import runware
from PIL import Image
from runware.types import IImageInference
from runware.utils import RunwareAPIError

from tests.router.sandbox.running import Sandbox


def task(**fields: Any) -> dict[str, Any]:
    usual = {"taskType": "imageInference", "model": "runware:101@1", "positivePrompt": "a cat", "width": 512}
    more = {"height": 512, "includeCost": True, "outputFormat": "PNG", "taskUUID": str(uuid.uuid4())}
    return usual | more | fields


def post(sandbox: Sandbox, *tasks: dict[str, Any]) -> httpx.Response:
    return sandbox.http.post(sandbox.base("runware"), json=list(tasks), headers=sandbox.bearer("runware"))


@pytest.mark.anyio
async def test_client(sandbox: Sandbox) -> None:
    url = sandbox.url.replace("http", "ws") + "/ws-api.runware.ai/v1"
    client = runware.Runware(api_key=sandbox.key("runware"), url=url)
    await client.connect()
    try:
        wanted = IImageInference(
            model="runware:101@1", positivePrompt="a cat", width=512, height=512, numberResults=2, includeCost=True
        )
        pictures = await client.imageInference(requestImage=wanted)
        assert isinstance(pictures, list)
        assert [picture.cost for picture in pictures] == [0.0019, 0.0019]
        data = await asyncio.to_thread(sandbox.http.get, pictures[0].imageURL)
        assert Image.open(io.BytesIO(data.content)).size == (512, 512)
        with pytest.raises(RunwareAPIError, match="invalidModel"):
            await client.imageInference(
                requestImage=IImageInference(model="nobody:1@1", positivePrompt="a cat", width=512, height=512)
            )
    finally:
        await client.disconnect()
    assert sandbox.billed("runware") == Decimal("0.0038")


@pytest.mark.parametrize(
    ("fields", "usd"),
    [
        ({"steps": 28}, "0.0019"),
        ({"width": 1024, "height": 1024}, "0.0038"),
        ({"model": "runware:100@1", "width": 1024, "height": 1024, "numberResults": 3}, "0.0018"),
        ({"model": "bfl:5@1", "width": 1920, "height": 1072}, "0.045"),
    ],
)
def test_costs(sandbox: Sandbox, fields: dict[str, Any], usd: str) -> None:
    data = post(sandbox, task(**fields)).json()["data"]
    assert sum(Decimal(str(item["cost"])) for item in data) == Decimal(usd) == sandbox.billed("runware")


def test_outputs(sandbox: Sandbox) -> None:
    (item,) = post(sandbox, task(outputType="base64Data", seed=5, checkNSFW=True)).json()["data"]
    assert Image.open(io.BytesIO(base64.b64decode(item["imageBase64Data"]))).size == (512, 512)
    assert (item["seed"], item["NSFWContent"]) == (5, False)
    (item,) = post(sandbox, task(outputType="dataURI", outputFormat="WEBP", includeCost=False)).json()["data"]
    assert item["imageDataURI"].startswith("data:image/webp;base64,")
    assert "cost" not in item


def test_data_and_errors_together(sandbox: Sandbox) -> None:
    reply = post(sandbox, task(), task(model="nobody:1@1"), task(positivePrompt="nsfw")).json()
    assert len(reply["data"]) == 1
    assert [error["code"] for error in reply["errors"]] == ["invalidModel", "contentModerated"]


def test_edit_with_an_uploaded_reference(sandbox: Sandbox, source: bytes) -> None:
    upload = {"taskType": "imageUpload", "taskUUID": str(uuid.uuid4()), "image": base64.b64encode(source).decode()}
    name = post(sandbox, upload).json()["data"][0]["imageUUID"]
    edit = task(model="bfl:5@1", inputs={"referenceImages": [name]})
    assert post(sandbox, edit).json()["data"][0]["cost"] == 0.045
    assert sandbox.invoice("runware")["lines"][0]["operation"] == "edit"


def test_asynchronous(sandbox: Sandbox) -> None:
    wanted = task(deliveryMethod="async")
    started = post(sandbox, wanted).json()["data"]
    assert started == [{"taskType": "imageInference", "taskUUID": wanted["taskUUID"]}]
    ask = {"taskType": "getResponse", "taskUUID": wanted["taskUUID"]}
    for _ in range(500):
        (item,) = post(sandbox, ask).json()["data"]
        if item["status"] == "success":
            break
        assert item["status"] == "processing"
        time.sleep(0.01)
    assert item["imageURL"]
    assert post(sandbox, ask | {"taskUUID": "none"}).json()["errors"][0]["code"] == "taskNotFound"


def test_errors(sandbox: Sandbox) -> None:
    bad_key = sandbox.http.post(sandbox.base("runware"), json=[task()])
    assert (bad_key.status_code, bad_key.json()["errors"][0]["code"]) == (401, "invalidApiKey")
    login = {"taskType": "authentication", "apiKey": sandbox.key("runware")}
    assert sandbox.http.post(sandbox.base("runware"), json=[login, task()]).status_code == 200
    assert post(sandbox, task(model="runware:101@1--no_credit")).status_code == 402
    for fields in (
        {"taskUUID": "x"},
        {"width": 100},
        {"steps": 0},
        {"numberResults": 21},
        {"outputFormat": "BMP"},
        {"outputType": "x"},
        {"positivePrompt": ""},
        {"taskType": "x"},
        {"seedImage": "!"},
    ):
        reply = post(sandbox, task(**fields))
        assert reply.status_code == 400, fields
        assert reply.json()["errors"][0]["message"]
    assert sandbox.http.post(sandbox.base("runware"), json={}, headers=sandbox.bearer("runware")).status_code == 400
    assert sandbox.billed("runware") == Decimal("0.0019")  # the one with the key in the body
