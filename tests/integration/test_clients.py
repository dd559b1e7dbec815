"""The seed requests through the real OpenAI client and a real router; the money compared with the provider's."""

from __future__ import annotations

import base64
import hashlib
import io
from decimal import Decimal

import httpx
import pytest
from openai import BadRequestError, InternalServerError, NotFoundError, OpenAI, RateLimitError
from PIL import Image

from pricing import money
from router.ledger import Reports
from tests.integration.process import KEY, RouterProcess

MOUNTAIN = "A serene mountain landscape at sunset"
TYPEWRITER = "A vintage typewriter with paper reading 'Chapter One'"
GUIDE = {"image_size": "landscape_4_3", "seed": 42}


@pytest.fixture
def client(router: RouterProcess) -> OpenAI:
    return OpenAI(base_url=f"{router.base}/v1", api_key=KEY, max_retries=0)


def picture(item) -> Image.Image:
    data = base64.b64decode(item.b64_json) if item.b64_json else httpx.get(item.url).raise_for_status().content
    return Image.open(io.BytesIO(data))


def spent(router: RouterProcess) -> dict[str, Decimal]:
    with Reports(router.ledger_url) as reports:
        return {row.group: row.cost for row in reports.costs("provider") if row.cost}


def png(width: int, height: int, color: str = "teal") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height), color).save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize(
    ("size", "cost"),
    [("512x512", "0.008"), ("1024x1024", "0.008"), ("1920x1080", "0.016"), ("2048x2048", "0.032")],
)
def test_golden_prices_of_generations(client, router, size, cost):
    answer = client.images.generate(model="fal/flux.2-dev-turbo", prompt=MOUNTAIN, size=size)
    assert answer.metadata["cost"] == cost
    assert "x".join(map(str, picture(answer.data[0]).size)) == size == answer.size
    assert router.invoice()["providers"]["fal"]["total_nanos"] == int(Decimal(cost) * 10**9)


def test_golden_price_of_an_edit(client, router):
    answer = client.images.edit(
        model="fal/flux.2-dev-turbo",
        image=("source.png", png(512, 512)),
        prompt="Add a starry night sky to this image",
        size="1024x1024",
    )
    assert answer.metadata["cost"] == "0.016"
    assert {item["type"] for item in answer.metadata["line_items"]} == {"input", "output"}
    assert answer.data[0].url
    assert answer.data[0].b64_json
    assert picture(answer.data[0]).size == (1024, 1024)
    assert router.invoice()["providers"]["fal"]["total_nanos"] == 16_000_000


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")  # the client's word for the method
@pytest.mark.parametrize("model", [None, "dall-e-2", "fal/flux.2-dev-turbo"])
def test_a_variation_is_an_edit_that_says_so(client, router, model):
    named = {"model": model} if model else {}
    answer = client.images.create_variation(image=("source.png", png(1024, 1024)), response_format="b64_json", **named)
    assert picture(answer.data[0]).size == (1024, 1024)
    assert "variation_emulated" in {warning["code"] for warning in answer.metadata["warnings"]}
    assert {item["type"] for item in answer.metadata["line_items"]} == {"input", "output"}


def test_the_fal_guide(client, router):
    once, again = (
        client.images.generate(
            model="fal/flux.2-dev-turbo", prompt=TYPEWRITER, response_format="b64_json", extra_body=GUIDE
        )
        for _ in range(2)
    )
    assert picture(once.data[0]).size == (1024, 768)
    digests = {hashlib.sha256(base64.b64decode(answer.data[0].b64_json)).digest() for answer in (once, again)}
    assert len(digests) == 1
    four = client.images.generate(model="fal/flux.2-dev-turbo", prompt=TYPEWRITER, extra_body=GUIDE | {"num_images": 4})
    assert len({item.url for item in four.data}) == 4
    assert four.metadata["cost"] == "0.032"
    sources = [("a.png", png(640, 480, color)) for color in ("red", "green", "blue", "gold")]
    combined = client.images.edit(model="fal/flux.2-dev-turbo", image=sources, prompt="Combine", size="1024x1024")
    assert combined.metadata["cost"] == "0.04"
    assert router.invoice()["providers"]["fal"]["total_nanos"] == (8 + 8 + 32 + 40) * 10**6


def test_a_token_priced_model_is_charged_by_its_usage(client, router):
    answer = client.images.generate(
        model="gpt-image-2",
        prompt="A poster",
        size="1024x1024",
        quality="medium",
        extra_body={"provider": {"only": ["openai"]}},
    )
    assert answer.data[0].b64_json
    assert answer.usage.output_tokens == 1756
    expected = Decimal(answer.usage.input_tokens_details.text_tokens) * 5 / 10**6 + Decimal(1756) * 30 / 10**6
    assert Decimal(answer.metadata["cost"]) == expected
    assert router.invoice()["providers"]["openai"]["total_nanos"] == int(expected * 10**9)


def test_a_stream_has_partials_and_a_completed_event(client):
    events = list(
        client.images.generate(
            model="gpt-image-2",
            prompt="A poster",
            size="1024x1024",
            quality="low",
            stream=True,
            partial_images=2,
            extra_body={"provider": {"only": ["openai"]}},
        )
    )
    assert [event.type for event in events] == ["image_generation.partial_image"] * 2 + ["image_generation.completed"]
    assert events[-1].usage.total_tokens > 0


def test_a_model_without_streaming_gives_one_completed_event(client):
    events = list(client.images.generate(model="gpu-fast/flux.2-dev-turbo", prompt="A poster", stream=True))
    assert [event.type for event in events] == ["image_generation.completed"]


def test_response_headers_tell_provider_cost_and_overhead(client):
    raw = client.images.with_raw_response.generate(model="fal/flux.2-dev-turbo", prompt=MOUNTAIN)
    headers = raw.headers
    assert headers["x-pixelroute-provider"] == "fal"
    assert headers["x-pixelroute-model"] == "fal/flux.2-dev-turbo"
    assert headers["x-pixelroute-cost"] == "0.008"
    assert headers["x-pixelroute-attempts"] == "1"
    assert headers["x-pixelroute-request-id"] == headers["x-request-id"] == raw.parse().id
    assert 0 <= float(headers["x-pixelroute-overhead-ms"]) < 1000


def test_failover_is_visible_and_the_failed_attempt_free(client, router):
    router.fault("fal", "server_error", status=503)
    order = {"provider": {"order": ["fal", "gpu-fast"]}}
    answer = client.images.generate(model="flux.2-dev-turbo", prompt=MOUNTAIN, extra_body=order)
    outcomes = [(attempt["provider"], attempt["outcome"], attempt["cost"]) for attempt in answer.metadata["attempts"]]
    assert outcomes == [("fal", "server_error", "0"), ("gpu-fast", "success", "0.012")]


@pytest.mark.parametrize(
    ("model", "error", "code"),
    [
        ("sandbox-down", InternalServerError, "all_providers_failed"),
        ("sandbox-rate-limited", RateLimitError, "rate_limit_exceeded"),
        ("sandbox-refused", BadRequestError, "moderation_blocked"),
        ("sandbox-text-only", InternalServerError, "all_providers_failed"),
        ("sandbox-billed-error", InternalServerError, "all_providers_failed"),
        ("sandbox-nothing", NotFoundError, "model_not_found"),
    ],
)
def test_every_hard_case_ends_in_the_clients_own_exception(client, model, error, code):
    with pytest.raises(error) as caught:
        client.images.generate(model=model, prompt=MOUNTAIN)
    assert caught.value.code == code
    assert caught.value.request_id


def test_the_sdks_own_retries_never_buy_twice(router):
    retrying = OpenAI(base_url=f"{router.base}/v1", api_key=KEY)  # two retries, as by default
    with pytest.raises(InternalServerError):
        retrying.images.generate(model="sandbox-billed-error", prompt=MOUNTAIN)
    assert router.invoice()["providers"]["openai"]["calls"] == 1


def test_models_are_listed_and_each_can_be_retrieved(client):
    listed = [model.id for model in client.models.list()]
    assert {"flux.2-dev-turbo", "fal/flux.2-dev-turbo", "gpt-image-2"} <= set(listed)
    for name in listed:
        assert client.models.retrieve(name).id == name


def test_a_dry_run_costs_nothing(client, router):
    answer = client.post(
        "/images/generations?dryRun=true",
        body={"model": "flux.2-dev-turbo", "prompt": MOUNTAIN, "size": "1920x1080"},
        cast_to=object,
    )
    assert answer["estimated"] is True
    quoted = {candidate["target"]: candidate["total_cost"] for candidate in answer["candidates"]}
    assert quoted["fal/flux.2-dev-turbo"] == "0.016"
    assert quoted["gpu-fast/flux.2-dev-turbo"] == "0.024"
    assert router.calls()["fal"]["total"] == 0


def test_ledger_and_invoices_agree_after_all_of_this(router):
    before = spent(router)
    client = OpenAI(base_url=f"{router.base}/v1", api_key=KEY, max_retries=0)
    for provider in ("fal", "gpu-fast", "gpu-spot"):
        client.images.generate(model=f"{provider}/flux.2-dev-turbo", prompt=MOUNTAIN, n=2, size="1344x768")
    billed = router.invoice()["providers"]
    after = spent(router)
    for provider in ("fal", "gpu-fast", "gpu-spot"):
        assert after[provider] - before.get(provider, Decimal(0)) == money(billed[provider]["total_nanos"])
