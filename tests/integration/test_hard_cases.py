"""Every model that the sandbox adds for a hard case behaves as its README says, seen from an application."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from openai import APIError, BadRequestError, InternalServerError, OpenAI, RateLimitError, Stream
from PIL import Image

from tests.integration.process import KEY, RouterProcess

SANDBOX = Path(__file__).parents[2] / "router" / "sandbox"
CASES: dict[str, Callable[[OpenAI, str], None]] = {}


def case(function: Callable[[OpenAI, str], None]) -> Callable[[OpenAI, str], None]:
    CASES[f"sandbox-{function.__name__.replace('_', '-')}"] = function
    return function


def generate(client: OpenAI, model: str, **more):
    return client.images.generate(model=model, prompt="a lake", **({"response_format": "b64_json"} | more))


def opened(item) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(item.b64_json)))


def note_types(stream: Stream[Any], seen: list[str]) -> None:
    for event in stream:
        seen.append(event.type)


def fails(client: OpenAI, model: str, kind: type[APIError], code: str, **more) -> APIError:
    with pytest.raises(kind) as caught:
        generate(client, model, **more)
    assert caught.value.code == code
    return caught.value


@case
def slow(client: OpenAI, model: str) -> None:
    def took(name: str) -> int:
        return generate(client, name, size="256x256").metadata["attempts"][0]["latency_ms"]

    assert took(model) > 2 * min(took("gpu-fast/flux.2-dev-turbo") for _ in range(4))


@case
def down(client: OpenAI, model: str) -> None:
    error = fails(client, model, InternalServerError, "all_providers_failed")
    assert {attempt["provider"] for attempt in error.body["attempts"]} == {"gpu-fast", "gpu-spot"}


@case
def failover(client: OpenAI, model: str) -> None:
    order = {"provider": {"order": ["gpu-spot", "gpu-fast"]}}
    attempts = generate(client, model, extra_body=order).metadata["attempts"]
    assert [(one["provider"], one["outcome"]) for one in attempts] == [
        ("gpu-spot", "server_error"),
        ("gpu-fast", "success"),
    ]


@case
def rate_limited(client: OpenAI, model: str) -> None:
    error = fails(client, model, RateLimitError, "rate_limit_exceeded")
    assert error.response.headers["retry-after"] == "2"  # the smaller of the two


@case
def refused(client: OpenAI, model: str) -> None:
    error = fails(client, model, BadRequestError, "moderation_blocked")
    assert error.type == "image_generation_user_error"


@case
def text_only(client: OpenAI, model: str) -> None:
    fails(client, model, InternalServerError, "all_providers_failed")


@case
def hang(client: OpenAI, model: str) -> None:
    error = fails(client, model, InternalServerError, "timeout")
    assert error.status_code == 504


@case
def billed_error(client: OpenAI, model: str) -> None:
    error = fails(client, model, InternalServerError, "all_providers_failed")
    assert error.response.headers["x-should-retry"] == "false"


@case
def broken_stream(client: OpenAI, model: str) -> None:
    seen = []
    stream = generate(client, model, stream=True, partial_images=3, response_format="url")
    with pytest.raises(APIError) as caught:
        note_types(stream, seen)
    assert seen == ["image_generation.partial_image"]
    assert caught.value.code == "timeout"


@case
def fixed_sizes(client: OpenAI, model: str) -> None:
    fails(client, model, BadRequestError, "invalid_value", size="1000x1000")
    answer = generate(client, model, n=2, size="1344x768")
    assert [opened(item).size for item in answer.data] == [(1344, 768)] * 2
    assert [warning["code"] for warning in answer.metadata["warnings"]] == ["n_emulated"]
    nearest = generate(client, model, size="1000x1000", extra_body={"size_policy": "nearest"})
    assert nearest.size == "1024x1024"
    assert opened(nearest.data[0]).size == (1024, 1024)
    fit = generate(client, model, size="1300x700", extra_body={"size_policy": "fit"})
    assert fit.size == "1300x700"
    assert opened(fit.data[0]).size == (1300, 700)
    assert fit.metadata["line_items"][0]["quantity"] == "0.984375"  # of the 1344x768 that were made
    shaped = generate(client, model, extra_body={"aspect_ratio": "16:9"})
    assert shaped.size == "1344x768"


@case
def jpeg_only(client: OpenAI, model: str) -> None:
    answer = generate(client, model, output_format="webp")
    assert answer.output_format == "webp"
    assert opened(answer.data[0]).format == "WEBP"
    assert generate(client, model).output_format == "jpeg"


@case
def variations(client: OpenAI, model: str) -> None:
    out = io.BytesIO()
    Image.new("RGB", (64, 64), "teal").save(out, "PNG")
    with pytest.warns(DeprecationWarning, match="deprecated"):
        answer = client.images.create_variation(model=model, image=out.getvalue())
    assert answer.data[0].url
    assert "variation_emulated" in {warning["code"] for warning in answer.metadata["warnings"]}


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    directory = tmp_path_factory.mktemp("router")
    impatient = directory / "impatient.yaml"
    impatient.write_text("limits: {request_timeout_s: 4}\n")
    process = RouterProcess(directory, more=impatient)
    yield OpenAI(base_url=f"{process.base}/v1", api_key=KEY, max_retries=0)
    assert process.stop() == 0


@pytest.mark.parametrize("model", CASES)
def test_it_behaves_as_described(client: OpenAI, model: str) -> None:
    CASES[model](client, model)


def test_every_case_is_described_and_tried() -> None:
    models = set(yaml.safe_load((SANDBOX / "models.yaml").read_text())["models"])
    described = set(re.findall(r"^\| `(sandbox-[a-z-]+)` \|", (SANDBOX / "README.md").read_text(), re.MULTILINE))
    elsewhere = {"sandbox-rescue"}  # needs a patient router: test_billed_once.py
    assert models == described == set(CASES) | elsewhere
