"""Google: the official client on the emulator, tokens and prices, refusals that are successes."""

from __future__ import annotations

import io
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import httpx
import pytest
from google import genai
from google.genai import errors, types
from PIL import Image

from tests.router.sandbox.running import Sandbox

FLASH = "gemini-2.5-flash-image"


@pytest.fixture
def client(sandbox: Sandbox) -> Iterator[genai.Client]:
    url = sandbox.base("google").removesuffix("/v1beta")
    options = types.HttpOptions(base_url=url, api_version="v1beta")
    client = genai.Client(api_key=sandbox.key("google"), http_options=options)
    yield client
    client.close()


def config(ratio: str | None = None, tier: str | None = None) -> types.GenerateContentConfig:
    image = types.ImageConfig(aspect_ratio=ratio, image_size=tier)
    return types.GenerateContentConfig(response_modalities=["IMAGE"], image_config=image)


def post(sandbox: Sandbox, model: str, body: dict[str, Any] | None = None, version: str = "v1beta") -> httpx.Response:
    url = f"{sandbox.base('google').removesuffix('v1beta')}{version}/models/{model}:generateContent"
    body = body or {"contents": [{"parts": [{"text": "abcd"}]}], "generationConfig": {"responseModalities": ["IMAGE"]}}
    return sandbox.http.post(url, headers={"x-goog-api-key": sandbox.key("google")}, json=body)


def picture(reply: types.GenerateContentResponse) -> Image.Image:
    (part,) = reply.parts or []
    assert part.inline_data is not None
    return Image.open(io.BytesIO(part.inline_data.data or b""))


def test_client_generate(client: genai.Client, sandbox: Sandbox) -> None:
    reply = client.models.generate_content(model=FLASH, contents="a red bicycle", config=config("16:9"))
    assert picture(reply).size == (1344, 768)
    assert reply.usage_metadata is not None
    assert (reply.usage_metadata.prompt_token_count, reply.usage_metadata.candidates_token_count) == (4, 1290)
    assert sandbox.billed("google") == (4 * Decimal("0.30") + 1290 * 30) / 1_000_000


def test_client_edit(client: genai.Client, sandbox: Sandbox, source: bytes, large: bytes) -> None:
    parts: Any = ["make it night", types.Part.from_bytes(data=large, mime_type="image/jpeg")]
    reply = client.models.generate_content(model=FLASH, contents=parts, config=config())
    assert picture(reply).size == (1344, 768)  # the ratio of the input
    assert reply.usage_metadata is not None
    assert reply.usage_metadata.prompt_token_count == 4 + 258
    with pytest.raises(errors.ClientError, match="At most 3"):
        client.models.generate_content(model=FLASH, contents=parts + parts[1:] * 3, config=config())


def test_client_stream(client: genai.Client) -> None:
    chunks = list(client.models.generate_content_stream(model=FLASH, contents="a", config=config()))
    assert picture(chunks[0]).size == (1024, 1024)


def test_client_refusals(client: genai.Client, sandbox: Sandbox) -> None:
    blocked = client.models.generate_content(model=FLASH, contents="nsfw", config=config())
    assert not blocked.candidates
    assert blocked.prompt_feedback is not None
    assert blocked.prompt_feedback.block_reason == types.BlockedReason.PROHIBITED_CONTENT
    for model, reason in (("refused:stage=output", "IMAGE_SAFETY"), ("empty", "NO_IMAGE")):
        reply = client.models.generate_content(model=f"{FLASH}--{model}", contents="a", config=config())
        assert reply.candidates
        assert reply.candidates[0].finish_reason == reason
        assert reply.parts is None
    assert sandbox.billed("google") == 0
    words = client.models.generate_content(model=f"{FLASH}--text_only", contents="a", config=config())
    assert words.text
    assert sandbox.billed("google") > 0


def test_client_errors(client: genai.Client, sandbox: Sandbox) -> None:
    with pytest.raises(errors.ClientError) as limited:
        client.models.generate_content(model=f"{FLASH}--rate_limited:retry_after=27", contents="a")
    assert (limited.value.code, limited.value.status) == (429, "RESOURCE_EXHAUSTED")
    assert limited.value.details["error"]["details"][0]["retryDelay"] == "27s"
    with pytest.raises(errors.ServerError) as down:
        client.models.generate_content(model=f"{FLASH}--down", contents="a")
    assert down.value.status == "UNAVAILABLE"
    with pytest.raises(errors.ClientError, match="not found"):
        client.models.generate_content(model="gemini-1", contents="a")


@pytest.mark.parametrize(
    ("model", "tier", "size", "tokens", "usd"),
    [
        ("gemini-2.5-flash-image", "1K", 1024, 1290, "0.0387"),
        ("gemini-3.1-flash-image", "512", 512, 747, "0.04482"),
        ("gemini-3.1-flash-image", "1K", 1024, 1120, "0.0672"),
        ("gemini-3.1-flash-image", "2K", 2048, 1680, "0.1008"),
        ("gemini-3.1-flash-lite-image", "1K", 1024, 1120, "0.0336"),
        ("gemini-3-pro-image", "1K", 1024, 1120, "0.1344"),
        ("gemini-nano-banana-2.1", "1K", 1024, 1120, "0.0336"),
    ],
)
def test_tokens_and_prices(sandbox: Sandbox, model: str, tier: str, size: int, tokens: int, usd: str) -> None:
    image = {"aspectRatio": "1:1", "imageSize": tier}
    body = {
        "contents": [{"parts": [{"text": "abcd"}]}],
        "generationConfig": {"responseModalities": ["IMAGE"], "imageConfig": image},
    }
    reply = post(sandbox, model, body).json()
    usage = reply["usageMetadata"]
    assert usage["candidatesTokensDetails"] == [{"modality": "IMAGE", "tokenCount": tokens}]
    prompt, thinking = {
        "gemini-2.5-flash-image": ("0.30", "2.50"),
        "gemini-3.1-flash-image": ("0.50", "3.00"),
        "gemini-3.1-flash-lite-image": ("0.25", "1.50"),
        "gemini-3-pro-image": ("2.00", "12.00"),
        "gemini-nano-banana-2.1": ("1.50", "7.50"),
    }[model]
    thoughts = usage.get("thoughtsTokenCount", 0)
    assert usage["totalTokenCount"] == 1 + tokens + thoughts
    rest = (Decimal(prompt) + thoughts * Decimal(thinking)) / 1_000_000
    assert sandbox.billed("google") == Decimal(usd) + rest


def test_bad_requests(sandbox: Sandbox) -> None:
    parts = [{"text": "a"}]
    bad: list[dict[str, Any]] = [
        {"contents": []},
        {"contents": [{"parts": [{"inlineData": {"data": "!"}}]}]},
        {"contents": [{"parts": [*parts, {"inlineData": {"data": "RXhhbXBsZQ=="}}]}]},
        {"contents": [{"parts": parts}], "generationConfig": {"imageConfig": {"aspectRatio": "7:1"}}},
        {"contents": [{"parts": parts}], "generationConfig": {"imageConfig": {"imageSize": "4K"}}},
        {"contents": [{"parts": parts}], "generationConfig": {"candidateCount": 2}},
    ]
    for body in bad:
        reply = post(sandbox, FLASH, body)
        assert (reply.status_code, reply.json()["error"]["status"]) == (400, "INVALID_ARGUMENT")
    url = f"{sandbox.base('google')}/models/{FLASH}:generateContent"
    bad_key = sandbox.http.post(url, json={"contents": [{"parts": parts}]})
    assert (bad_key.status_code, bad_key.json()["error"]["details"][0]["reason"]) == (400, "API_KEY_INVALID")
    assert post(sandbox, FLASH, version="v1").status_code == 200
