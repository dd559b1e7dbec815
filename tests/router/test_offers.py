"""What one shape of request is offered is worked out once, and never for a request that it does not hold for."""

from __future__ import annotations

from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pricing import ImageSize
from pricing.book import price_books
from router.app import offers_for
from router.config import load
from router.errors import RequestError
from router.types import Caller, ImageRequest, Operation, Preferences, Shape

SETTINGS = load([Path(__file__).parents[2] / "providers.yaml"], {}, keyless=True)
NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
TURBO, TOKENS = "flux.2-dev-turbo", "gpt-image-2"


def ask(model: str = TURBO, prompt: str = "a lake", **more: object) -> ImageRequest:
    return ImageRequest(Operation.GENERATE, model, prompt, **more)


def test_requests_of_one_shape_share_an_order_whatever_they_say():
    offers = offers_for(SETTINGS)
    order = offers.order(ask(seed=1), NOW)
    assert offers.order(ask(prompt="a much longer prompt", seed=2, user="somebody"), NOW) is order
    routed = order.routed(ask(user="somebody"), 30.0)
    assert (routed.session, routed.deadline_s, order.route.session) == ("somebody", 30.0, None)


@pytest.mark.parametrize(
    "other",
    [
        ask(n=2),
        ask(size=ImageSize(512, 512)),
        ask(size_policy="fit"),
        ask(quality="high"),
        ask(background="transparent", models=(TOKENS,)),
        ask(preferences=Preferences(ignore=("fal",))),
        ask(models=(TOKENS,)),
        ask(stream=True, partial_images=1),
        ask(extra={"num_inference_steps": 4}),
    ],
)
def test_requests_of_other_shapes_do_not(other):
    offers = offers_for(SETTINGS)
    assert offers.order(other, NOW) is not offers.order(ask(), NOW)


def test_a_shape_holds_no_content():
    names = {field.name for field in fields(ImageRequest)}
    assert names - set(Shape._fields) == {
        "output_format", "output_compression", "moderation", "style", "input_fidelity", "seed", "response_format",
        "images", "user", "deadline_s", "warnings", "later", "webhook_url",
    }  # fmt: skip
    assert ask(prompt="secret").shape.prompt == 6


def test_where_the_prompt_is_charged_for_its_length_counts():
    offers = offers_for(SETTINGS)
    short, long = (offers.order(ask(TOKENS, "x" * length), NOW).offers[0].quote for length in (10, 10_000))
    assert short.expected.total_nanos < long.expected.total_nanos


def test_a_prompt_that_is_too_long_is_refused_also_after_one_that_is_not():
    offers = offers_for(SETTINGS)
    longest = offers.order(ask(), NOW).longest
    assert offers.order(ask(prompt="x" * longest), NOW) is offers.order(ask(), NOW)
    with pytest.raises(RequestError) as refused:
        offers.order(ask(prompt="x" * (longest + 1)), NOW)
    assert refused.value.param == "prompt"


def test_a_key_that_may_not_use_a_model_gains_nothing_from_one_that_may():
    offers = offers_for(SETTINGS)
    offers.order(ask(), NOW)
    with pytest.raises(RequestError) as refused:
        offers.order(ask(), NOW, Caller(models=(TOKENS,)))
    assert refused.value.code == "model_not_allowed"
    limited = offers.order(ask(), NOW, Caller(preferences=Preferences(sort="cheapest")))
    assert (limited.route.preferences.sort, offers.order(ask(), NOW).route.preferences.sort) == ("cheapest", None)


def test_a_price_holds_from_its_moment_on_and_the_one_before_it_until_then():
    moment = datetime(2026, 11, 21, 15, 30, tzinfo=UTC)
    later = [replace(price, effective_at=moment, note="dearer") for price in SETTINGS.books if price.book == "fal"]
    offers = offers_for(replace(SETTINGS, books=price_books([*SETTINGS.books, *later])))
    times = (NOW, moment - timedelta(microseconds=1), moment, moment + timedelta(days=2), NOW)
    notes = [offers.order(ask(f"fal/{TURBO}"), at).offers[0].price.note == "dearer" for at in times]
    assert notes == [False, False, True, True, False]
