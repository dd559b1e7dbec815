"""The shipped catalogue: everything in it can be asked for, reached, priced and described."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from pricing import ImageSize
from router import sandbox
from router.app import offers_for
from router.blob import Blob
from router.cli.offline import quote_offline
from router.config import load
from router.errors import RequestError
from router.providers import ADAPTERS
from router.routing.catalog import Catalog
from router.types import ImageRequest, InputImage, Operation, Successor, Target

SHIPPED = Path(__file__).parents[2] / "providers.yaml"
SANDBOX_MODELS = Path(sandbox.__file__).with_name("models.yaml")
NOW = datetime(2026, 11, 21, tzinfo=UTC)
BASES = sandbox.BASES.items()


SETTINGS = load([SHIPPED], {}, keyless=True)
OFFERS = offers_for(SETTINGS)
CATALOG = OFFERS.catalog
MODELS = list(SETTINGS.models.values())
TARGETS = [target for model in MODELS for target in model.targets]

of_targets = pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.key)
of_models = pytest.mark.parametrize("model", MODELS, ids=lambda model: model.slug)


def requests(target: Target) -> Iterator[ImageRequest]:
    """The plainest request of every operation, pinned to the target."""
    source = InputImage(Blob(), "png", ImageSize(512, 512))
    for operation in target.endpoints:
        images = () if operation is Operation.GENERATE else (source,)
        yield ImageRequest(operation, target.key, "a lake", images=images)


# --- providers ----------------------------------------------------------------------------------------------------


def test_every_adapter_and_every_emulator_is_offered():
    assert {provider.adapter for provider in SETTINGS.providers.values()} == set(ADAPTERS)
    assert set(SETTINGS.providers) == set(sandbox.BASES)
    assert {target.provider for target in TARGETS} == set(SETTINGS.providers)


def test_no_key_is_in_the_file_and_every_provider_waits_for_its_own():
    without = load([SHIPPED], {})
    assert without.providers == {}
    assert all(why.endswith("is not set") for why in without.disabled.values())
    names = [why.split()[0] for why in without.disabled.values()]
    assert len(set(names)) == len(names)
    keys = {"BFL_API_KEY": "k", "XAI_API_KEY": "k", "GEMINI_API_KEY": "k", "REPLICATE_API_TOKEN": "k"}
    assert set(load([SHIPPED], keys).providers) == {"bfl", "xai", "google", "replicate"}


def test_only_what_is_the_operators_own_has_no_address():
    for name, provider in SETTINGS.providers.items():
        own = name in ("azure", "gpu-fast", "gpu-spot")
        assert all(url.startswith("https://") for url in provider.urls.values()) or own
        ADAPTERS[provider.adapter]({url: address for url, address in provider.urls.items() if address})


def test_the_sandbox_serves_every_target_and_its_own_models():
    urls = {name: {url: f"http://127.0.0.1:9{path}" for url, path in paths.items()} for name, paths in BASES}
    settings = load([SHIPPED, SANDBOX_MODELS], {}, sandbox_urls=urls, sandbox_keys=sandbox.KEYS)
    assert settings.disabled == {}
    hard = {slug for slug in settings.models if slug.startswith("sandbox-")}
    assert set(settings.models) == set(SETTINGS.models) | hard
    assert len(hard) >= 10
    offers = offers_for(settings)
    for slug in hard:
        request = ImageRequest(settings.models[slug].operations[0], slug, "a lake")
        assert any(offer.quote for offer in offers.order(request, NOW).offers)


def test_a_pinned_name_is_described_as_what_its_provider_does():
    listed = {model["id"]: model for model in OFFERS.catalog.listed(NOW.date())}
    for name, model in listed.items():
        provider, slash, slug = name.partition("/")
        if slash and slug in listed:
            [target] = [target for target in SETTINGS.models[model["slug"]].targets if target.provider == provider]
            assert model["providers"] == [provider]
            assert set(model["operations"]) == set(target.endpoints)
            assert set(model["operations"]) <= set(listed[slug]["operations"])
    assert listed["fal/flux.1-kontext-pro"]["operations"] != listed["flux.1-kontext-pro"]["operations"]


# --- targets ------------------------------------------------------------------------------------------------------


@of_targets
def test_a_plain_request_has_a_price_in_force_and_costs_something(target):
    for request in requests(target):
        offer = OFFERS.order(request, NOW).offer(target.key)
        assert offer.lacks is None
        assert offer.price is not None
        assert offer.quote is not None
        assert 0 < offer.quote.low.total_nanos <= offer.quote.expected.total_nanos <= offer.quote.high.total_nanos
        assert offer.quote.expected.total_nanos < 10**9, "a plain picture costs less than a dollar"


@of_targets
def test_sizes_make_sense(target):
    rule = target.sizes
    assert rule.accepts(rule.largest)
    assert 512 * 512 <= rule.largest.pixels <= 6144 * 6144
    assert rule.fixed or any(rule.accepts(ImageSize(side, side)) for side in (512, 1024, 2048))
    for size in (target.default_size, SETTINGS.models[target.model].default_size):
        assert size is None or rule.accepts(size)
    assert len(set(rule.fixed)) == len(rule.fixed)


@of_targets
def test_what_a_target_takes_and_makes_is_told(target):
    assert 1 <= target.max_images <= 20
    assert (target.max_inputs > 0) == (Operation.EDIT in target.endpoints)
    assert target.max_inputs <= 16
    assert target.formats
    assert set(target.formats) <= {"png", "jpeg", "webp"}
    known = ADAPTERS[SETTINGS.providers[target.provider].adapter].settings
    for name in target.options:
        assert name in known or not name.endswith("_as"), f"{name} is no setting of the adapter"


@pytest.mark.parametrize(
    ("target", "extra", "dearer"),
    [
        ("together/flux.1-schnell", {"steps": 12}, 3),
        ("together/flux.1-schnell", {"num_inference_steps": 12}, 3),
        ("runware/flux.1-dev", {"num_inference_steps": 56}, 2),
        ("deepinfra/flux.1-schnell", {"steps": 12}, 1),  # its OpenAI path has no such field, so it is dropped
        ("deepinfra/flux.2-dev", {"num_inference_steps": 56}, 1),
        ("fal/ideogram-3", {"rendering_speed": "QUALITY"}, 1.5),
    ],
)
def test_what_a_target_is_sent_is_charged_and_what_is_dropped_is_not(target, extra, dearer):
    plain, asked = (
        OFFERS.order(ImageRequest(Operation.GENERATE, target, "a lake", extra=fields), NOW).offer(target).quote
        for fields in ({}, extra)
    )
    assert asked.expected.total_nanos == pytest.approx(plain.expected.total_nanos * dearer, abs=2)


@pytest.mark.parametrize(
    ("target", "n", "dollars"),
    [
        ("gpu-spot/flux.2-dev-turbo", 2, (2 + 1) * Decimal("0.005")),  # one call
        ("gpu-spot/flux.2-dev-turbo", 3, (3 + 2) * Decimal("0.005")),  # two, and each is sent the source picture
        ("fal/flux.2-dev-turbo", 4, (4 + 1) * Decimal("0.008")),
        ("fal/flux.2-dev-turbo", 5, (5 + 2) * Decimal("0.008")),
    ],
)
def test_source_pictures_are_charged_for_every_call_that_carries_them(target, n, dollars):
    source = InputImage(Blob(), "png", ImageSize(512, 512))
    offer = OFFERS.order(ImageRequest(Operation.EDIT, target, "a lake", n=n, images=(source,)), NOW).offer(target)
    assert offer.quote is not None
    assert offer.quote.expected.total_nanos == dollars * 10**9


# --- models -------------------------------------------------------------------------------------------------------


@of_models
def test_a_model_is_described_and_every_name_of_it_resolves(model):
    assert model.creator != "unknown"
    assert model.family
    assert model.name != model.slug
    for name in (model.slug, *model.aliases):
        assert CATALOG.resolve(name, NOW.date()) == (model, None, ())
        for target in model.targets:
            assert CATALOG.resolve(f"{target.provider}/{name}", NOW.date()) == (model, target.provider, ())


@of_models
def test_a_model_can_be_quoted_as_the_command_line_does(model):
    inputs = () if Operation.GENERATE in model.operations else (ImageSize(512, 512),)
    body = quote_offline(
        SETTINGS, model=model.slug, size=None, n=1, inputs=inputs, quality=None, prompt="a lake", at=NOW
    )
    assert Decimal(body["total_cost"]) > 0
    assert {candidate["target"] for candidate in body["candidates"]} == {target.key for target in model.targets}


def test_most_models_leave_routing_a_choice():
    assert sum(len(model.targets) > 1 for model in MODELS) >= 15
    assert max(len(model.targets) for model in MODELS) >= 5


def test_the_defaults_are_models_that_do_it():
    for operation, name in SETTINGS.defaults.items():
        assert operation in SETTINGS.models[SETTINGS.names[name]].operations


@of_models
def test_the_list_of_models_tells_what_is_known(model):
    listed = {body["id"]: body for body in CATALOG.listed(NOW.date())}
    body = listed[model.slug]
    assert body["provider_models"] == {target.provider: dict(target.endpoints) for target in model.targets}
    assert body["max_resolution"] == str(max((t.sizes.largest for t in model.targets), key=lambda size: size.pixels))
    assert ("image" in body["modalities"]["input"]) == (Operation.EDIT in model.operations)
    assert body["successor"] == model.successor
    for alias in model.aliases:
        assert listed[alias]["slug"] == model.slug


# --- retirement ---------------------------------------------------------------------------------------------------


def test_a_successor_does_what_its_predecessor_did():
    for model in MODELS:
        if model.successor is not None:
            assert model.retires is not None
            successor = SETTINGS.models[model.successor]
            assert successor.retires is None or successor.retires > model.retires
            assert set(model.operations) <= set(successor.operations)
            for target in model.targets:
                sizes = target.sizes.fixed
                assert all(any(other.sizes.accepts(size) for other in successor.targets) for size in sizes)


@pytest.mark.parametrize(
    ("name", "last_day", "successor"),
    [
        ("dall-e-2", date(2026, 5, 11), "gpt-image-2"),
        ("dall-e-3", date(2026, 5, 11), "gpt-image-2"),
        ("gpt-image-1", date(2026, 10, 22), "gpt-image-2"),
        ("grok-imagine-image-quality", date(2026, 11, 1), "grok-imagine-image-2.0"),
        ("gpt-image-1.5", date(2026, 11, 30), "gpt-image-2"),
        ("chatgpt-image-latest", date(2026, 11, 30), "gpt-image-2"),
        ("openai/gpt-image-1.5", date(2026, 11, 30), "gpt-image-2"),
        ("gpt-image-1-mini", date(2026, 11, 30), "gpt-image-2.5-flare"),
        ("gemini-2.5-flash-image", date(2027, 3, 14), "gemini-3.1-flash-image"),
    ],
)
def test_a_name_is_redirected_from_its_day_on(name, last_day, successor):
    """A running router turns the page by itself: what counts is the moment of the request."""
    request = ImageRequest(Operation.GENERATE, name, "a lake")
    midnight = datetime.combine(last_day, time(), UTC) + timedelta(days=1)
    listed = {body["id"]: body for body in CATALOG.listed(last_day)}
    if name in listed:  # before its day it is served by whoever still has it, and says when that ends
        before = OFFERS.order(request, midnight - timedelta(seconds=1))
        assert before.model.slug != successor
        assert "model_redirected" not in {warning.code for warning in before.warnings}
        assert listed[name]["shutdown_date"] == midnight.date().isoformat()
    after = OFFERS.order(request, midnight)
    assert after.model.slug == successor
    (told,) = [warning for warning in after.warnings if warning.code == "model_redirected"]
    assert midnight.date().isoformat() in told.message
    assert successor in told.message
    body = {body["id"]: body for body in CATALOG.listed(midnight.date())}[name]
    assert (body["status"], body["successor"]) == ("retired", successor)
    assert body["shutdown_date"] == midnight.date().isoformat()


def test_a_pinned_provider_that_lacks_the_successor_is_not_found():
    models = {name: SETTINGS.models[name] for name in ("flux.1-schnell", "gpt-image-2")}
    successors = {"flux.1-schnell": Successor("gpt-image-2", date(2026, 11, 1))}
    catalog = Catalog(models, {name: name for name in models}, {}, successors)
    assert catalog.resolve("fal/flux.1-schnell", NOW.date())[0].slug == "gpt-image-2"
    with pytest.raises(RequestError, match=r"together/flux\.1-schnell"):
        catalog.resolve("together/flux.1-schnell", NOW.date())
