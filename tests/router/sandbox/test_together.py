"""Together: the official client on the emulator, prices from the request alone, the picky delivery host."""

from __future__ import annotations

import base64
import io
import urllib.request
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import httpx
import pytest
import together
from PIL import Image

from tests.router.sandbox.running import Sandbox

SCHNELL = "black-forest-labs/FLUX.1-schnell"


@pytest.fixture
def client(sandbox: Sandbox) -> Iterator[together.Together]:
    base = sandbox.base("together").removesuffix("/v1")
    with together.Together(api_key=sandbox.key("together"), base_url=base, max_retries=0) as client:
        yield client


def generate(sandbox: Sandbox, **body: Any) -> httpx.Response:
    body = {"model": SCHNELL, "prompt": "a", "response_format": "base64"} | body
    url = f"{sandbox.base('together')}/images/generations"
    return sandbox.http.post(url, json=body, headers=sandbox.bearer("together"))


def test_client_generate(client: together.Together, sandbox: Sandbox) -> None:
    made = client.images.generate(model=SCHNELL, prompt="a", width=512, height=256, n=2, response_format="base64")
    pictures = [Image.open(io.BytesIO(base64.b64decode(str(item.model_dump()["b64_json"])))) for item in made.data]
    assert [picture.size for picture in pictures] == [(512, 256)] * 2
    assert pictures[0].format == "JPEG"
    by_url = client.images.generate(model=SCHNELL, prompt="a", output_format="png").data[0]
    assert by_url.type == "url"
    assert Image.open(io.BytesIO(sandbox.http.get(str(by_url.model_dump()["url"])).content)).format == "PNG"


def test_client_edit_and_errors(client: together.Together, sandbox: Sandbox, source: bytes) -> None:
    uri = "data:image/png;base64," + base64.b64encode(source).decode()
    client.images.generate(model="black-forest-labs/FLUX.2-dev", prompt="a", reference_images=[uri])
    assert sandbox.billed("together") == Decimal("0.0154")
    with pytest.raises(together.UnprocessableEntityError, match="NSFW"):
        client.images.generate(model=SCHNELL, prompt="nsfw")
    with pytest.raises(together.NotFoundError):
        client.images.generate(model="nobody/nothing", prompt="a")
    with pytest.raises(together.BadRequestError):
        client.images.generate(model=SCHNELL, prompt="a", reference_images=[uri])
    with pytest.raises(together.RateLimitError):
        client.images.generate(model=f"{SCHNELL}--rate_limited", prompt="a")


@pytest.mark.parametrize(
    ("body", "usd"),
    [
        ({}, "0.002831155"),  # 1.048576 MP of 10^6 px
        ({"steps": 8}, "0.005662310"),
        ({"steps": 1}, "0.002831155"),
        ({"width": 1000, "height": 1000, "n": 4}, "0.0108"),
        ({"model": "black-forest-labs/FLUX.1.1-pro", "width": 512, "height": 512}, "0.04"),
        ({"model": "google/gemini-3-pro-image"}, "0.134"),
    ],
)
def test_prices(sandbox: Sandbox, body: dict[str, Any], usd: str) -> None:
    assert generate(sandbox, **body).status_code == 200
    assert sandbox.billed("together") == Decimal(usd)


def test_bad_requests(sandbox: Sandbox) -> None:
    for body in ({"n": 5}, {"width": 1001}, {"steps": 13}, {"output_format": "webp"}, {"response_format": "x"}):
        assert generate(sandbox, **body).status_code == 400
    assert generate(sandbox, model=f"{SCHNELL}--no_credit").status_code == 402


def test_downloads_need_a_user_agent(sandbox: Sandbox) -> None:
    url = generate(sandbox, response_format="url").json()["data"][0]["url"]
    assert sandbox.http.get(url).status_code == 200
    assert sandbox.http.get(url, headers={"user-agent": ""}).status_code == 403
    with urllib.request.urlopen(url) as reply:
        assert reply.status == 200
