"""OpenAI: the official client on the emulator, tokens by the published figures, streams, every error shape."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import httpx
import openai
import pytest
from PIL import Image

from router.sandbox.openai import MODELS, output_tokens
from router.sandbox.pictures import Brief, paint
from tests.router.sandbox.running import Sandbox


@pytest.fixture
def client(sandbox: Sandbox) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=sandbox.base("openai"), api_key=sandbox.key("openai"), max_retries=0) as client:
        yield client


def opened(b64: str | None) -> Image.Image:
    assert b64
    return Image.open(io.BytesIO(base64.b64decode(b64)))


# The official client


def test_client_generate(client: openai.OpenAI, sandbox: Sandbox) -> None:
    made = client.images.generate(
        model="gpt-image-2", prompt="A serene mountain landscape at sunset", n=2, size="1536x1024", quality="low"
    )
    assert made.data is not None
    assert [opened(item.b64_json).size for item in made.data] == [(1536, 1024)] * 2
    assert made.data[0].b64_json != made.data[1].b64_json
    assert (made.size, made.quality, made.output_format, made.background) == ("1536x1024", "low", "png", "opaque")
    assert made.usage is not None
    assert (made.usage.output_tokens, made.usage.input_tokens) == (2 * 158, 10)
    assert sandbox.billed("openai") == (316 * Decimal(30) + 10 * Decimal(5)) / 1_000_000


def test_client_edit(client: openai.OpenAI, source: bytes) -> None:
    mask = paint(Brief("mask", "a", 1, (512, 512), transparent=True))
    made = client.images.edit(model="gpt-image-2", image=[source, source], mask=mask, prompt="Add stars", quality="low")
    assert made.usage is not None
    assert made.usage.input_tokens_details.image_tokens > 0
    assert made.usage.total_tokens == made.usage.input_tokens + made.usage.output_tokens
    single = client.images.edit(model="gpt-image-2", image=source, prompt="Add stars", quality="low")
    assert single.data is not None
    assert opened(single.data[0].b64_json).size == (1024, 1024)


def test_client_edit_by_json(client: openai.OpenAI, sandbox: Sandbox, source: bytes) -> None:
    body = {"model": "gpt-image-2", "prompt": "a", "quality": "low"}
    image = {"image_url": "data:image/png;base64," + base64.b64encode(source).decode()}
    url = f"{sandbox.base('openai')}/images/edits"
    reply = sandbox.http.post(url, json=body | {"images": [image]}, headers=sandbox.bearer("openai"))
    assert reply.status_code == 200
    for images in ([{"file_id": "f"}], [{"image_url": "data:,"}], None):
        reply = sandbox.http.post(url, json=body | {"images": images}, headers=sandbox.bearer("openai"))
        assert reply.status_code == 400


@pytest.mark.parametrize("format", ["jpeg", "webp"])
def test_client_formats(client: openai.OpenAI, format: Any) -> None:
    made = client.images.generate(
        model="gpt-image-2", prompt="a", output_format=format, output_compression=50, quality="low"
    )
    assert made.data is not None
    assert opened(made.data[0].b64_json).format == format.upper()


def test_client_stream(client: openai.OpenAI, sandbox: Sandbox, source: bytes) -> None:
    events = list(client.images.generate(model="gpt-image-2", prompt="a", quality="low", stream=True, partial_images=2))
    assert [event.type for event in events] == [
        "image_generation.partial_image",
        "image_generation.partial_image",
        "image_generation.completed",
    ]
    assert [opened(event.b64_json).size for event in events] == [(1024, 1024)] * 3
    assert len({event.b64_json for event in events}) == 3
    assert events[2].type == "image_generation.completed"
    assert events[2].usage.output_tokens == 196 + 2 * 100
    assert sandbox.billed("openai") == (396 * Decimal(30) + 5) / 1_000_000
    edited = list(client.images.edit(model="gpt-image-2", image=source, prompt="a", quality="low", stream=True))
    assert [event.type for event in edited] == ["image_edit.completed"]


def test_client_broken_streams(client: openai.OpenAI, sandbox: Sandbox) -> None:
    with pytest.raises(openai.APIConnectionError):
        list(client.images.generate(model="gpt-image-2--break_stream", prompt="a", stream=True, partial_images=1))
    assert sandbox.calls("openai")["billed"] == 1
    with pytest.raises(openai.APIError, match="server had an error"):
        list(client.images.generate(model="gpt-image-2--stream_error", prompt="a", stream=True, partial_images=1))
    assert sandbox.calls("openai")["billed"] == 1


def test_client_models(client: openai.OpenAI) -> None:
    assert {"gpt-image-2", "gpt-image-2.5-flare", "gpt-image-1-mini"} <= {model.id for model in client.models.list()}
    assert client.models.retrieve("gpt-image-2").owned_by == "openai"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-image-1")


@pytest.mark.parametrize(
    ("fault", "kind", "code"),
    [
        ("refused", openai.BadRequestError, "moderation_blocked"),
        ("unauthenticated", openai.AuthenticationError, "invalid_api_key"),
        ("no_credit", openai.RateLimitError, "insufficient_quota"),
        ("rate_limited", openai.RateLimitError, "rate_limit_exceeded"),
        ("500", openai.InternalServerError, "server_error"),
    ],
)
def test_client_errors(client: openai.OpenAI, sandbox: Sandbox, fault: str, kind: Any, code: str) -> None:
    with pytest.raises(kind) as problem:
        client.images.generate(model=f"gpt-image-2--{fault}", prompt="a")
    assert problem.value.code == code
    assert problem.value.request_id.startswith("req_")
    assert sandbox.billed("openai") == 0


def test_client_retries_are_seen(sandbox: Sandbox) -> None:
    sandbox.fault("server_error", provider="openai", count=1)
    with openai.OpenAI(base_url=sandbox.base("openai"), api_key=sandbox.key("openai")) as client:
        client.images.generate(model="gpt-image-2", prompt="a", quality="low")
    counts = [call["headers"]["x-stainless-retry-count"] for call in sandbox.calls("openai")["last"]]
    assert counts == ["0", "1"]


# Tokens


@pytest.mark.parametrize(
    ("size", "by_q"),
    [
        ((1024, 1024), (196, 439, 1756, 3122, 7024)),
        ((1536, 1024), (158, 343, 1372, 2459, 5488)),
        ((1024, 1536), (158, 343, 1372, 2459, 5488)),
        ((1024, 768), (134, 301, 1204, 2140, 4815)),
        ((1920, 1080), (147, 343, 1320, 2347, 5280)),
        ((2560, 1440), (205, 478, 1843, 3276, 7370)),
        ((3840, 2160), (371, 865, 3336, 5930, 13342)),
    ],
)
def test_output_tokens_of_the_published_table(size: tuple[int, int], by_q: tuple[int, ...]) -> None:
    model = MODELS["gpt-image-2.5-flare"]
    qualities = ("low", "medium", "high", "xhigh", "max")
    assert tuple(output_tokens(model, size, quality) for quality in qualities) == by_q
    two = MODELS["gpt-image-2"]
    assert [output_tokens(two, size, quality) for quality in ("low", "medium", "high")] == [by_q[0], by_q[2], by_q[4]]


@pytest.mark.parametrize(
    ("model", "size", "quality", "usd"),
    [
        ("gpt-image-1.5", "1024x1024", "low", "0.008704"),
        ("gpt-image-1.5", "1024x1024", "high", "0.13312"),
        ("gpt-image-1.5", "1024x1536", "medium", "0.050688"),
        ("gpt-image-1-mini", "1536x1024", "low", "0.0032"),
        ("gpt-image-2", "1024x1024", "high", "0.21072"),
        ("gpt-image-2.5-sunburst", "1024x1024", "high", "0.05268"),
    ],
)
def test_price_of_a_picture(
    client: openai.OpenAI, sandbox: Sandbox, model: str, size: Any, quality: Any, usd: str
) -> None:
    client.images.generate(model=model, prompt="abcd", size=size, quality=quality)
    text = MODELS[model].text_in / 1_000_000
    assert sandbox.billed("openai") - text == Decimal(usd)


# Bad requests


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"prompt": None}, "prompt", "missing_required_parameter"),
        ({"prompt": ""}, "prompt", "invalid_value"),
        ({"model": None}, "model", "missing_required_parameter"),
        ({"n": 0}, "n", "integer_out_of_range"),
        ({"n": 11}, "n", "integer_out_of_range"),
        ({"n": "x"}, "n", "invalid_type"),
        ({"size": "1024x"}, "size", "invalid_value"),
        ({"size": "0x0"}, "size", "invalid_value"),
        ({"size": "1000x1000"}, "size", "invalid_value"),
        ({"size": "512x512"}, "size", "invalid_value"),
        ({"size": "3840x1024"}, "size", "invalid_value"),
        ({"quality": "max"}, "quality", "invalid_value"),
        ({"output_format": "bmp"}, "output_format", "invalid_value"),
        ({"background": "transparent", "output_format": "jpeg"}, "background", "invalid_value"),
        ({"partial_images": 1}, "partial_images", "invalid_value"),
        ({"response_format": "url"}, "response_format", "unknown_parameter"),
        ({"seed": 1}, "seed", "unknown_parameter"),
        ({"model": "gpt-image-1.5", "size": "1024x768"}, "size", "invalid_value"),
    ],
)
def test_bad_requests(sandbox: Sandbox, fields: dict[str, Any], param: str, code: str) -> None:
    body = {"model": "gpt-image-2", "prompt": "a"} | fields
    body = {name: value for name, value in body.items() if value is not None}
    reply = sandbox.http.post(
        f"{sandbox.base('openai')}/images/generations", json=body, headers=sandbox.bearer("openai")
    )
    error = reply.json()["error"]
    assert (reply.status_code, error["param"], error["code"]) == (400, param, code)
    assert sandbox.billed("openai") == 0


def test_bad_edits(client: openai.OpenAI, source: bytes) -> None:
    small = paint(Brief("mask", "a", 1, (64, 64)))
    for arguments in ({"image": b"Example data"}, {"image": source, "mask": small}, {"image": [source] * 17}):
        with pytest.raises(openai.BadRequestError):
            client.images.edit(model="gpt-image-2", prompt="a", **arguments)


def test_markup_is_for_the_newest_models_and_excludes_a_mask(client: openai.OpenAI, source: bytes) -> None:
    over = paint(Brief("markup", "a", 1, (512, 512), transparent=True))
    request = {"image": source, "prompt": "a", "quality": "low", "markup": over}
    assert client.images.edit(model="gpt-image-2.5-flare", **request).data
    for model, more in (("gpt-image-2", {}), ("gpt-image-2.5-flare", {"mask": over})):
        with pytest.raises(openai.BadRequestError, match="markup"):
            client.images.edit(model=model, **request, **more)


def test_gone_and_unknown(client: openai.OpenAI, sandbox: Sandbox, source: bytes) -> None:
    with pytest.raises(openai.NotFoundError) as problem:
        client.images.generate(model="dall-e-3", prompt="a")
    assert problem.value.code == "model_not_found"
    url = f"{sandbox.base('openai')}/images/variations"
    closed = sandbox.http.post(url, files={"image": source}, headers=sandbox.bearer("openai"))
    assert closed.status_code == 404
    reply = sandbox.http.post(
        f"{sandbox.base('openai')}/images/generations", content=b"{", headers=sandbox.bearer("openai")
    )
    assert reply.status_code == 400


# The operator's own hosts


@pytest.fixture
def gpu(sandbox: Sandbox) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=sandbox.base("gpu-spot"), api_key=sandbox.key("gpu-spot"), max_retries=0) as client:
        yield client


def test_gpu_generate_and_edit(gpu: openai.OpenAI, sandbox: Sandbox, source: bytes, large: bytes) -> None:
    seeded: dict[str, Any] = {"model": "flux.2-dev-turbo", "prompt": "a", "extra_body": {"seed": 7}}
    by_url = gpu.images.generate(**seeded, response_format="url", size="512x512")
    by_text = gpu.images.generate(**seeded, response_format="b64_json", size="512x512")
    assert by_url.data is not None
    assert by_text.data is not None
    assert sandbox.http.get(by_url.data[0].url or "").content == base64.b64decode(by_text.data[0].b64_json or "")
    assert sandbox.billed("gpu-spot") == Decimal("0.010")
    gpu.images.edit(model="flux.2-dev-turbo", image=[source, large], prompt="mix", size="1024x1024")
    assert sandbox.billed("gpu-spot") == Decimal("0.010") + Decimal("0.005") * (1 + 1 + 2)
    assert {model.id for model in gpu.models.list()} >= {"flux.2-dev-turbo", "text-to-image-only", "fixed-sizes"}


def test_gpu_models_for_hard_cases(gpu: openai.OpenAI, source: bytes) -> None:
    with pytest.raises(openai.BadRequestError, match="does not edit"):
        gpu.images.edit(model="text-to-image-only", image=source, prompt="a")
    with pytest.raises(openai.BadRequestError, match="Supported sizes"):
        gpu.images.generate(model="fixed-sizes", prompt="a", size="1024x1536")
    with pytest.raises(openai.BadRequestError, match="'n'"):
        gpu.images.generate(model="one-at-a-time", prompt="a", n=2)
    made = gpu.images.generate(model="jpeg-only", prompt="a", response_format="b64_json")
    assert made.data is not None
    assert opened(made.data[0].b64_json).format == "JPEG"
    with pytest.raises(openai.NotFoundError):
        gpu.images.generate(model="gpt-image-2", prompt="a")


def test_gpu_takes_what_is_no_picture(gpu: openai.OpenAI, sandbox: Sandbox) -> None:
    with pytest.raises(openai.BadRequestError, match="Invalid image"):
        gpu.images.edit(model="flux.2-dev-turbo", image=b"Example data", prompt="a")
    with pytest.raises(openai.BadRequestError, match="mask"):
        gpu.images.edit(model="flux.2-dev-turbo", image=b"Example data", mask=b"Example data", prompt="a")
    gpu.images.edit(model="accepts-anything", image=b"Example data", mask=b"Example data", prompt="a", size="256x256")
    assert sandbox.billed("gpu-spot") == Decimal("0.010")


def test_error_body_is_json(sandbox: Sandbox) -> None:
    reply: httpx.Response = sandbox.http.post(
        f"{sandbox.base('gpu-fast')}/images/edits", content=b"x", headers=sandbox.bearer("gpu-fast")
    )
    assert reply.status_code == 400
    assert json.loads(reply.text)["error"]["type"] == "invalid_request_error"
