"""DeepInfra, xAI and Stability: near to OpenAI's shape, far from it in detail."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import httpx
import openai
import pytest
from PIL import Image

from tests.router.sandbox.running import Sandbox


def opened(b64: str | None) -> Image.Image:
    assert b64
    return Image.open(io.BytesIO(base64.b64decode(b64)))


# DeepInfra


@pytest.fixture
def deepinfra(sandbox: Sandbox) -> Iterator[openai.OpenAI]:
    url, key = sandbox.base("deepinfra"), sandbox.key("deepinfra")
    with openai.OpenAI(base_url=url, api_key=key, max_retries=0) as client:
        yield client


def native(sandbox: Sandbox, model: str, **body: Any) -> httpx.Response:
    url = f"{sandbox.base('deepinfra').removesuffix('/openai')}/inference/{model}"
    return sandbox.http.post(url, json={"prompt": "a", **body}, headers=sandbox.bearer("deepinfra"))


def test_deepinfra_by_the_openai_client(deepinfra: openai.OpenAI, sandbox: Sandbox, source: bytes) -> None:
    made = deepinfra.images.generate(model="black-forest-labs/FLUX-2-dev", prompt="a", size="512x1024", n=2)
    assert made.data is not None
    assert [opened(item.b64_json).size for item in made.data] == [(512, 1024)] * 2
    assert sandbox.billed("deepinfra") == Decimal("0.01")
    edited = deepinfra.images.edit(model="black-forest-labs/FLUX-2-dev", image=source, prompt="a", size="1024x1024")
    assert edited.data is not None
    assert sandbox.billed("deepinfra") == Decimal("0.02")
    with pytest.warns(DeprecationWarning, match="deprecated"):
        varied = deepinfra.images.create_variation(
            model="black-forest-labs/FLUX-2-dev", image=source, size="512x512", response_format="b64_json"
        )
    assert varied.data is not None
    with pytest.raises(openai.NotFoundError):
        deepinfra.images.generate(model="nobody/nothing", prompt="a")
    with pytest.raises(openai.BadRequestError, match="flagged"):
        deepinfra.images.generate(model="black-forest-labs/FLUX-2-dev", prompt="nsfw")
    with pytest.raises(openai.BadRequestError, match="at most 0"):
        deepinfra.images.edit(model="black-forest-labs/FLUX-1-dev", image=source, prompt="a")


@pytest.mark.parametrize(
    ("model", "body", "usd"),
    [
        ("black-forest-labs/FLUX-2-dev", {"num_inference_steps": 14}, "0.005"),
        ("black-forest-labs/FLUX-2-klein-4b", {"width": 512, "height": 512}, "0.0035"),
        ("black-forest-labs/FLUX-1-schnell", {"num_inference_steps": 4}, "0.002"),
        ("black-forest-labs/FLUX-1-dev", {"num_images": 2, "num_inference_steps": 25}, "0.018"),
        ("black-forest-labs/FLUX-2-max", {"width": 2048, "height": 2048}, "0.07"),
        ("black-forest-labs/FLUX-2-dev", {"width": 1000, "height": 1000, "num_inference_steps": 10}, "0.003405980"),
    ],
)
def test_deepinfra_native_reports_its_cost(sandbox: Sandbox, model: str, body: dict[str, Any], usd: str) -> None:
    reply = native(sandbox, model, **body).json()
    assert Decimal(str(reply["inference_status"]["cost"])) == Decimal(usd) == sandbox.billed("deepinfra")
    assert reply["images"][0].startswith("data:image/png;base64,")


def test_deepinfra_native_shapes(sandbox: Sandbox, source: bytes) -> None:
    uri = "data:image/png;base64," + base64.b64encode(source).decode()
    assert native(sandbox, "black-forest-labs/FLUX-2-dev", image=uri, seed=3).json()["seed"] == "3"
    assert native(sandbox, "black-forest-labs/FLUX-2-dev--refused").json()["nsfw_content_detected"] is True
    wrong = native(sandbox, "black-forest-labs/FLUX-2-dev", num_images=9)
    assert (wrong.status_code, list(wrong.json())) == (400, ["detail"])
    assert native(sandbox, "nobody/nothing").status_code == 404


# xAI


@pytest.fixture
def xai(sandbox: Sandbox) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=sandbox.base("xai"), api_key=sandbox.key("xai"), max_retries=0) as client:
        yield client


def grok(sandbox: Sandbox, path: str = "generations", **body: Any) -> httpx.Response:
    body = {"model": "grok-imagine-image", "prompt": "a", **body}
    return sandbox.http.post(f"{sandbox.base('xai')}/images/{path}", json=body, headers=sandbox.bearer("xai"))


def test_xai_by_the_openai_client(xai: openai.OpenAI, sandbox: Sandbox) -> None:
    made = xai.images.generate(model="grok-imagine-image", prompt="a", n=2, response_format="b64_json")
    assert made.data is not None
    assert [opened(item.b64_json).format for item in made.data] == ["JPEG"] * 2
    with pytest.raises(openai.BadRequestError) as problem:
        xai.images.generate(model="grok-imagine-image", prompt="a", size="1024x1024")
    assert problem.value.response.json()["error"] == "Argument not supported: size"
    assert sandbox.billed("xai") == Decimal("0.04")


def test_xai_ticks_ratios_and_edits(sandbox: Sandbox, source: bytes) -> None:
    reply = grok(sandbox, aspect_ratio="16:9", resolution="2k").json()
    assert reply["usage"]["cost_in_usd_ticks"] == 200_000_000
    picture = Image.open(io.BytesIO(sandbox.http.get(reply["data"][0]["url"]).content))
    assert picture.width * 9 == pytest.approx(picture.height * 16, rel=0.02)
    assert 3_800_000 < picture.width * picture.height <= 4 << 20
    uri = "data:image/png;base64," + base64.b64encode(source).decode()
    edited = grok(sandbox, "edits", image={"url": uri, "type": "image_url"}).json()
    assert edited["usage"]["cost_in_usd_ticks"] == 220_000_000
    assert sandbox.billed("xai") == Decimal("0.042")
    assert grok(sandbox, "edits").status_code == 400
    files = {"image": ("a.png", source)}
    form = sandbox.http.post(f"{sandbox.base('xai')}/images/edits", files=files, headers=sandbox.bearer("xai"))
    assert form.status_code == 415


def test_xai_withholds_and_charges(sandbox: Sandbox) -> None:
    reply = grok(sandbox, prompt="nsfw")
    assert reply.status_code == 200
    assert (reply.json()["data"][0]["url"], reply.json()["data"][0]["respect_moderation"]) == ("", False)
    assert sandbox.billed("xai") == Decimal("0.02")
    assert grok(sandbox, prompt="a [fault: refused; stage=prompt]").json()["code"] == "content moderation"
    assert isinstance(grok(sandbox, model="grok-imagine-image--500").json()["error"], str)


# Stability


def stable(sandbox: Sandbox, path: str, accept: str = "application/json", **fields: Any) -> httpx.Response:
    files = {"image": fields.pop("image")} if "image" in fields else {"none": b""}
    url = f"{sandbox.base('stability')}/v2beta/stable-image/{path}"
    headers = sandbox.bearer("stability") | {"accept": accept}
    return sandbox.http.post(url, data=fields, files=files, headers=headers)


@pytest.mark.parametrize(
    ("path", "fields", "usd"),
    [
        ("generate/core", {}, "0.03"),
        ("generate/ultra", {}, "0.08"),
        ("generate/sd3", {}, "0.065"),
        ("generate/sd3", {"model": "sd3.5-large-turbo"}, "0.04"),
        ("generate/sd3", {"model": "sd3.5-medium"}, "0.035"),
    ],
)
def test_stability_generates(sandbox: Sandbox, path: str, fields: dict[str, Any], usd: str) -> None:
    reply = stable(sandbox, path, prompt="a", seed="7", **fields).json()
    assert (reply["finish_reason"], reply["seed"]) == ("SUCCESS", 7)
    assert opened(reply["image"]).size == (1024, 1024)
    assert sandbox.billed("stability") == Decimal(usd)


def test_stability_bytes_edits_and_credits(sandbox: Sandbox, source: bytes) -> None:
    raw = stable(sandbox, "generate/core", "image/*", prompt="a", output_format="webp", aspect_ratio="16:9")
    assert (raw.headers["content-type"], raw.headers["finish-reason"]) == ("image/webp", "SUCCESS")
    assert int(raw.headers["seed"]) > 0
    edited = stable(sandbox, "edit/search-and-replace", prompt="a", image=source).json()
    assert opened(edited["image"]).size == (512, 512)
    upscaled = stable(sandbox, "upscale/fast", image=source).json()
    assert opened(upscaled["image"]).size == (2048, 2048)
    assert sandbox.billed("stability") == Decimal("0.10")
    url = f"{sandbox.base('stability')}/v1/user/balance"
    assert sandbox.http.get(url, headers=sandbox.bearer("stability")).json() == {"credits": 990.0}


def test_stability_later(sandbox: Sandbox, source: bytes) -> None:
    id_ = stable(sandbox, "upscale/creative", prompt="a", image=source).json()["id"]
    url = f"{sandbox.base('stability')}/v2beta/results/{id_}"
    for _ in range(500):
        reply = sandbox.http.get(url, headers=sandbox.bearer("stability"))
        if reply.status_code == 200:
            break
        assert reply.status_code == 202
        time.sleep(0.01)
    assert opened(reply.json()["image"]).size == (1024, 1024)
    assert sandbox.http.get(f"{url}x", headers=sandbox.bearer("stability")).status_code == 404


def test_stability_refusals_and_errors(sandbox: Sandbox, source: bytes) -> None:
    refused = stable(sandbox, "generate/core", prompt="nsfw")
    assert (refused.status_code, refused.json()["name"]) == (403, "content_moderation")
    assert sandbox.billed("stability") == 0
    filtered = stable(sandbox, "generate/core--refused:stage=output", prompt="a")
    assert filtered.json()["finish_reason"] == "CONTENT_FILTERED"
    assert sandbox.billed("stability") == Decimal("0.03")
    for path, fields in (
        ("generate/core", {}),
        ("generate/core", {"prompt": "a", "aspect_ratio": "7:1"}),
        ("generate/core", {"prompt": "a", "seed": "-1"}),
        ("generate/sd3", {"prompt": "a", "model": "sd1"}),
        ("generate/sd3", {"prompt": "a", "output_format": "webp"}),
        ("edit/erase", {}),
        ("edit/erase", {"image": b"Example data"}),
    ):
        reply = stable(sandbox, path, **fields)
        assert (reply.status_code, reply.json()["name"]) == (400, "bad_request")
    assert stable(sandbox, "generate/sd3", prompt="a", model="sd3.5-medium--no_credit").status_code == 402
    assert stable(sandbox, "generate/none", prompt="a").status_code == 404
    url = f"{sandbox.base('stability')}/v2beta/stable-image/generate/core"
    assert sandbox.http.post(url, json={"prompt": "a"}, headers=sandbox.bearer("stability")).status_code == 400
