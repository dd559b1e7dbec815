"""What holds for all emulators: keys, rate limits, outages, broken answers, and that only pictures are billed."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

import router.sandbox
from router.sandbox import (
    BASES,
    KEYS,
    PROVIDERS,
    bfl,
    deepinfra,
    fal_apps,
    google,
    gpu,
    openai,
    replicate,
    runware,
    stability,
    together,
    xai,
)
from router.sandbox.faults import split_model
from tests.router.sandbox.running import Sandbox

# Provider -> URL name, path, and a body that makes one small picture.
SMALL: Mapping[str, tuple[str, str, dict[str, Any]]] = {
    "fal": ("run", "/fal-ai/flux-2/turbo", {"prompt": "a", "image_size": "square"}),
    "openai": ("api", "/images/generations", {"prompt": "a", "model": "gpt-image-2", "quality": "low"}),
    "azure": (
        "api",
        "/openai/deployments/gpt-image-2/images/generations?api-version=2025-04-01-preview",
        {"prompt": "a", "quality": "low"},
    ),
    "gpu-fast": ("api", "/images/generations", {"prompt": "a", "size": "256x256"}),
    "gpu-spot": ("api", "/images/generations", {"prompt": "a", "size": "256x256"}),
    "bfl": ("api", "/flux-dev", {"prompt": "a", "width": 64, "height": 64}),
    "replicate": ("api", "/models/black-forest-labs/flux-schnell/predictions", {"input": {"prompt": "a"}}),
    "google": ("api", "/models/gemini-2.5-flash-image:generateContent", {"contents": [{"parts": [{"text": "a"}]}]}),
    "together": (
        "api",
        "/images/generations",
        {"prompt": "a", "model": "black-forest-labs/FLUX.1-schnell", "width": 64, "height": 64},
    ),
    "runware": (
        "api",
        "",
        {"taskType": "imageInference", "model": "runware:100@1", "positivePrompt": "a", "width": 128, "height": 128},
    ),
    "deepinfra": ("api", "/images/generations", {"prompt": "a", "model": "black-forest-labs/FLUX-2-dev"}),
    "xai": ("api", "/images/generations", {"prompt": "a", "model": "grok-imagine-image"}),
    "stability": ("api", "/v2beta/stable-image/generate/core", {"prompt": "a"}),
}
PROMPT_COSTS = {"openai", "azure"}  # whatever comes of it
PREPAID_429 = {"openai", "azure", "gpu-fast", "gpu-spot"}  # an empty account looks like a rate limit there


def auth(provider: str, key: str) -> dict[str, str]:
    match provider:
        case "fal":
            return {"Authorization": f"Key {key}"}
        case "bfl":
            return {"x-key": key}
        case "google":
            return {"x-goog-api-key": key}
        case "azure":
            return {"api-key": key}
        case _:
            return {"Authorization": f"Bearer {key}"}


def send(sandbox: Sandbox, provider: str, fault: str = "", key: str | None = None) -> httpx.Response:
    name, path, body = SMALL[provider]
    headers = auth(provider, key or KEYS[provider]) | ({"X-Sandbox-Fault": fault} if fault else {})
    url = sandbox.base(provider, name) + path
    if provider == "stability":
        return sandbox.http.post(url, data=body, files={"none": b""}, headers=headers)
    if provider == "runware":
        return sandbox.http.post(url, json=[body | {"taskUUID": str(uuid.uuid4())}], headers=headers)
    return sandbox.http.post(url, json=body, headers=headers)


def test_everything_the_catalogue_offers_is_emulated() -> None:
    emulated = {
        "fal": fal_apps.APPS,
        "openai": openai.MODELS,
        "azure": openai.MODELS,
        "gpu-fast": gpu.MODELS,
        "gpu-spot": gpu.MODELS,
        "bfl": bfl.MODELS,
        "replicate": replicate.MODELS,
        "google": google.MODELS,
        "together": together.MODELS,
        "runware": runware.MODELS,
        "deepinfra": deepinfra.MODELS,
        "xai": xai.MODELS,
        "stability": stability.SERVICES,
    }
    root = Path(router.sandbox.__file__).parents[2]
    for file in (root / "providers.yaml", root / "router/sandbox/models.yaml"):
        for model in yaml.safe_load(file.read_text())["models"].values():
            for provider, target in (model.get("targets") or {}).items():
                for name in {"generate", "edit", "variation"} & set(target):
                    plain, _ = split_model(target[name])  # raises where a fault is unknown
                    assert plain in emulated[provider], (file.name, provider, name)


def test_names_agree() -> None:
    names = {provider.name for provider in PROVIDERS}
    assert names == set(BASES) == set(KEYS) == set(SMALL)
    assert all(path.startswith("/") and not path.endswith("/") for urls in BASES.values() for path in urls.values())


@pytest.mark.parametrize("provider", SMALL)
def test_works(sandbox: Sandbox, provider: str) -> None:
    reply = send(sandbox, provider)
    assert reply.status_code in (200, 201), reply.text
    calls = sandbox.calls(provider)
    assert calls["total"] == 1
    assert calls["last"][0]["status"] == reply.status_code
    assert KEYS[provider] not in str(calls)


@pytest.mark.parametrize("provider", SMALL)
def test_only_its_own_key_opens(sandbox: Sandbox, provider: str) -> None:
    other = next(key for key in KEYS.values() if key != KEYS[provider])
    expected = {"google": 400, "bfl": 403}.get(provider, 401)
    assert send(sandbox, provider, key=other).status_code == expected
    assert send(sandbox, provider, "unauthenticated").status_code == expected
    assert sandbox.billed(provider) == 0


@pytest.mark.parametrize("provider", SMALL)
def test_refusals_to_serve_are_json_and_free(sandbox: Sandbox, provider: str) -> None:
    for fault, status in (
        ("rate_limited", 429),
        ("server_error; status=500", 500),
        ("server_error; status=502", 502),
        ("server_error; status=503", 503),
        ("server_error; status=504", 504),
    ):
        reply = send(sandbox, provider, fault)
        assert (reply.status_code, type(reply.json())) == (status, dict)
    broke = send(sandbox, provider, "no_credit").status_code
    assert broke == 429 if provider in PREPAID_429 else broke in (400, 402, 403)
    assert sandbox.billed(provider) == 0


ODD: list[Any] = [None, True, -1, 1.5, 10**30, "", "0x0", "9" * 300, [], [1], {"a": [1]}]
FIELDS = [
    "prompt", "model", "n", "num_images", "size", "image_size", "width", "height", "seed", "quality", "output_format",
    "response_format", "stream", "image_urls", "aspect_ratio", "resolution", "steps", "input_image", "webhook_url",
    "generationConfig", "contents", "input", "numberResults", "outputType", "referenceImages", "inputs", "safety",
    "taskUUID", "reference_images", "image_url", "background", "partial_images", "safety_tolerance", "seedImage",
]  # fmt: skip


@pytest.mark.parametrize("provider", [name for name in SMALL if name != "stability"])  # its fields are all text
def test_odd_values_are_the_callers_fault(sandbox: Sandbox, provider: str) -> None:
    name, path, body = SMALL[provider]
    url = sandbox.base(provider, name) + path
    small = {"openai": {"size": "x"}}.get(provider, {"seed": 1} if provider != "xai" else {})
    for field in FIELDS:
        for value in ODD:
            sent: Any = small | body | {field: value}
            if provider == "replicate":
                sent = {"input": body["input"] | {field: value}} if field != "input" else {"input": value}
            if provider == "runware":
                sent = [{"taskUUID": str(uuid.uuid4())} | sent]
            reply = sandbox.http.post(url, json=sent, headers=auth(provider, KEYS[provider]))
            assert reply.status_code < 500, (field, value, reply.text)


@pytest.mark.parametrize("provider", SMALL)
def test_broken_answers(sandbox: Sandbox, provider: str) -> None:
    for fault in ("reset", "cut"):
        with pytest.raises(httpx.RemoteProtocolError):
            send(sandbox, provider, fault)
    assert send(sandbox, provider, "wrong_type").headers["content-type"].startswith("text/html")
    truncated = send(sandbox, provider, "truncated; share=0.3")
    assert truncated.status_code in (200, 201)
    if provider != "stability":  # bytes by default
        with pytest.raises(ValueError, match=r"."):
            truncated.json()


@pytest.mark.parametrize("provider", SMALL)
def test_a_500_after_billing(sandbox: Sandbox, provider: str) -> None:
    assert send(sandbox, provider, "billed_error").status_code == 500
    for _ in range(200):  # providers with jobs bill when the job is done
        if sandbox.calls(provider)["billed"] == 1 or provider == "fal":
            break
    assert sandbox.calls(provider)["billed"] == 1
    assert sandbox.billed(provider) > 0


@pytest.mark.parametrize("provider", [name for name in SMALL if name not in PROMPT_COSTS])
def test_an_empty_success_is_free(sandbox: Sandbox, provider: str) -> None:
    assert send(sandbox, provider, "empty").status_code in (200, 201)
    assert sandbox.billed(provider) == 0
