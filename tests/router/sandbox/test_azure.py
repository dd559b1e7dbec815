"""Azure OpenAI: the official client in its classic form and in v1, the key's header, and errors in Azure's shape."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from decimal import Decimal

import openai
import pytest
from PIL import Image

from tests.router.sandbox.running import Sandbox

VERSION = "2025-04-01-preview"


@pytest.fixture
def classic(sandbox: Sandbox) -> Iterator[openai.AzureOpenAI]:
    with openai.AzureOpenAI(
        azure_endpoint=sandbox.base("azure"), api_version=VERSION, api_key=sandbox.key("azure"), max_retries=0
    ) as client:
        yield client


def size_of(made: openai.types.ImagesResponse) -> tuple[int, int]:
    assert made.data is not None
    assert made.data[0].b64_json
    return Image.open(io.BytesIO(base64.b64decode(made.data[0].b64_json))).size


def test_the_official_client_by_deployment(classic: openai.AzureOpenAI, sandbox: Sandbox, source: bytes) -> None:
    made = classic.images.generate(model="gpt-image-2", prompt="A lake at dawn", size="1536x1024", quality="low")
    assert size_of(made) == (1536, 1024)
    assert made.usage is not None
    assert sandbox.billed("azure") == (158 * Decimal(30) + made.usage.input_tokens * Decimal(5)) / 1_000_000
    edited = classic.images.edit(model="gpt-image-2", image=[source, source], prompt="Add stars", quality="low")
    assert size_of(edited) == (1024, 1024)
    assert set(sandbox.calls("azure")["endpoints"]) == {
        f"POST /sandbox.openai.azure.com/openai/deployments/{{deployment}}/images/{call}"
        for call in ("generations", "edits")
    }


def test_the_official_client_by_v1(sandbox: Sandbox) -> None:
    with openai.OpenAI(base_url=f"{sandbox.base('azure')}/openai/v1", api_key=sandbox.key("azure")) as client:
        assert size_of(client.images.generate(model="gpt-image-2", prompt="A lake", quality="low")) == (1024, 1024)
        assert "gpt-image-2" in {model.id for model in client.models.list()}


def test_errors_are_azures(classic: openai.AzureOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        classic.images.generate(model="no-such", prompt="A lake")
    assert missing.value.code == "DeploymentNotFound"
    with pytest.raises(openai.RateLimitError) as busy:
        classic.images.generate(model="gpt-image-2--rate_limited:retry_after=26", prompt="A lake")
    assert (busy.value.code, busy.value.response.headers["retry-after-ms"]) == ("429", "26000")
    with pytest.raises(openai.BadRequestError) as refused:
        classic.images.generate(model="gpt-image-2", prompt="A lake [fault: refused]")
    assert refused.value.code == "content_policy_violation"
    with pytest.raises(openai.AuthenticationError):
        classic.with_options(api_key="wrong").images.generate(model="gpt-image-2", prompt="A lake")


def test_the_classic_form_needs_its_version(sandbox: Sandbox) -> None:
    url = f"{sandbox.base('azure')}/openai/deployments/gpt-image-2/images/generations"
    answer = sandbox.http.post(url, json={"prompt": "A lake"}, headers={"api-key": sandbox.key("azure")})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "404")
