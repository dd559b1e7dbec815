"""What may serve a request: preferences of the request, its key and its model, tags, and models that stand in."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from pricing import ImageSize
from router.config import ConfigError, load
from router.errors import ErrorKind, ProviderError, RequestError
from router.types import Caller, Preferences
from tests.router.test_gateway import House, ask, made

pytestmark = pytest.mark.anyio

CONFIG = """
version: 1
providers:
  fal: {prices: fal, billing: {server_error: "no"}}
  gpu-fast:
    adapter: openai
    urls: {api: "http://127.0.0.1:9/v1"}
    prices: gpu-fast
    data_region: eu
    tags: [own]
    billing: {server_error: "no"}
  gpu-spot: {adapter: openai, urls: {api: "http://127.0.0.1:9/v1"}, prices: gpu-spot}
models:
  flux:
    default_size: 1024x1024
    fallbacks: [%(fallbacks)s]
    preferences: {%(preferences)s}
    targets:
      fal:
        generate: fal-ai/flux-2/turbo
        sizes: {max_side: 2048}
        tags: [non-commercial]
        prior: {p50_s: 3, p95_s: 6, success: 0.99}
      gpu-fast:
        generate: flux.2-dev-turbo
        sizes: {max_side: 1024}
        prior: {p50_s: 3, p95_s: 6, success: 0.99}
  lesser:
    default_size: 512x512
    tags: [open-weights]
    targets:
      gpu-spot:
        generate: flux.2-dev-turbo
        data_region: us
        prior: {p50_s: 30, p95_s: 60, success: 0.9}
"""
KEYS = """
keys:
  cautious: {secret_env: CAUTIOUS, preferences: {only: [gpu-fast, gpu-spot], max_cost: 0.05}}
"""


def text(*, fallbacks: str = "", preferences: str = "") -> str:
    return CONFIG % {"fallbacks": fallbacks, "preferences": preferences}


async def chosen(house: House, caller: Caller | None = None, model: str = "flux", **more: Any) -> str:
    return (await house.run(ask(model, **more), caller)).executed_model


async def refused(house: House, caller: Caller | None = None, model: str = "flux", **more: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        await house.run(ask(model, **more), caller)
    assert house.wire.sent == []
    return caught.value


def wants(**more: Any) -> dict[str, Preferences]:
    return {"preferences": Preferences(**more)}


# --- three voices -----------------------------------------------------------------------------------------------


def test_the_file_says_it_in_the_same_words(tmp_path: Path) -> None:
    path = tmp_path / "providers.yaml"
    path.write_text(text(preferences="max_latency_s: 20, order: [fal]") + KEYS)
    settings = load([path], {"FAL_KEY": "k", "CAUTIOUS": "s"})
    assert settings.models["flux"].preferences == Preferences(max_latency_s=20, order=("fal",))
    assert settings.keys[0].preferences == Preferences(only=("gpu-fast", "gpu-spot"), max_cost=Decimal("0.05"))
    path.write_text(text(preferences="max_price: 1, min_success: 3, max_cost: much", fallbacks="nothing") + KEYS)
    with pytest.raises(ConfigError) as caught:
        load([path], {"FAL_KEY": "k", "CAUTIOUS": "s"})
    wrong = {problem.key for problem in caught.value.problems}
    assert wrong == {
        "models.flux.preferences.max_price",
        "models.flux.preferences.min_success",
        "models.flux.preferences.max_cost",
        "models.flux.fallbacks",
    }


async def test_a_key_narrows_its_model_and_a_request_its_key(tmp_path: Path) -> None:
    async with House(tmp_path, text(preferences="only: [fal, gpu-fast], order: [fal]")) as house:
        cautious = Caller("k", preferences=Preferences(order=("gpu-fast",)))
        assert await chosen(house) == "fal/flux"
        assert await chosen(house, cautious) == "gpu-fast/flux"
        assert await chosen(house, cautious, **wants(order=("fal",))) == "fal/flux"
        # none of the three can let in what another has ruled out
        limited = Caller("k", preferences=Preferences(only=("gpu-fast",)))
        assert await chosen(house, limited, **wants(only=("fal", "gpu-fast"))) == "gpu-fast/flux"
        house.wire.sent.clear()
        error = await refused(house, limited, **wants(only=("fal",)))
        assert (error.status, error.code, error.param) == (400, "no_feasible_provider", "provider")
        assert error.details["candidates"] == {"fal/flux": ("only",), "gpu-fast/flux": ("only",)}


async def test_a_keys_constraints_hold_in_a_dry_run_too(tmp_path: Path) -> None:
    async with House(tmp_path, text()) as house:
        limited = Caller("k", preferences=Preferences(only=("gpu-fast",)))
        body = house.gateway.quote(ask(), limited)
        assert body["provider"] == "gpu-fast"
        assert {quoted["target"]: quoted["excluded_by"] for quoted in body["candidates"]}["fal/flux"] == "only"


# --- constraints that cannot be met ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preferences", "nearest", "misses", "words"),
    [
        (  # one picture of a megapixel: $0.008 at fal, $0.012 at gpu-fast
            Preferences(max_cost=Decimal("0.0079")), "fal/flux", ("max_cost",),
            "fal/flux, which would cost $0.008, more than $0.0079 (max_cost)",
        ),
        (
            Preferences(max_cost=Decimal("0.0079"), ignore=("fal",)), "gpu-fast/flux", ("max_cost",),
            "gpu-fast/flux, which would cost $0.012, more than $0.0079 (max_cost)",
        ),
        (
            Preferences(max_latency_s=1.0), "fal/flux", ("max_latency_s",), "takes up to 6 s (p95), more than 1 s",
        ),
        (Preferences(min_success=0.999), "fal/flux", ("min_success",), "fewer than 99.9%"),
        (
            Preferences(require_tags=("region:eu",), exclude_tags=("own",)), "fal/flux", ("require_tags",),
            "fal/flux, which is not tagged region:eu (require_tags)",
        ),
        (
            Preferences(only=("fal",), max_cost=Decimal("0.001")), "fal/flux", ("max_cost",),
            "would cost $0.008, more than $0.001 (max_cost)",
        ),
    ],
)  # fmt: skip
async def test_the_nearest_candidate_is_named_with_what_it_misses(
    tmp_path: Path, preferences: Preferences, nearest: str, misses: tuple[str, ...], words: str
) -> None:
    async with House(tmp_path, text()) as house:
        error = await refused(house, preferences=preferences)
        assert (error.status, error.code, error.param) == (400, "no_feasible_provider", "provider")
        assert error.details["nearest"] == {"target": nearest, "misses": misses}
        assert words in error.message
        with pytest.raises(RequestError) as caught:
            house.gateway.quote(ask(preferences=preferences), Caller())
        assert caught.value.message == error.message


async def test_limits_are_held_against_this_very_request(tmp_path: Path) -> None:
    async with House(tmp_path, text()) as house:
        dear = Preferences(max_cost=Decimal("0.01"), only=("fal",))
        assert await chosen(house, preferences=dear) == "fal/flux"
        house.wire.sent.clear()
        error = await refused(house, preferences=dear, size=ImageSize(2048, 2048))
        assert "would cost $0.032" in error.message


async def test_constraints_that_failed_targets_leave_behind_are_not_the_clients_mistake(tmp_path: Path) -> None:
    async with House(tmp_path, text()) as house:
        house.wire.answers["fal"] = [ProviderError(ErrorKind.AUTH, "no")]
        with pytest.raises(RequestError) as caught:
            await house.run(ask(preferences=Preferences(only=("fal",))))
        assert (caught.value.status, caught.value.code) == (502, "all_providers_failed")
        assert house.wire.sent == ["fal"]


# --- tags -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preferences", "target"),
    [
        (Preferences(require_tags=("region:eu",)), "gpu-fast/flux"),
        (Preferences(require_tags=("own", "region:eu")), "gpu-fast/flux"),
        (Preferences(exclude_tags=("non-commercial",)), "gpu-fast/flux"),
        (Preferences(exclude_tags=("region:eu",)), "fal/flux"),
        (Preferences(require_tags=("non-commercial",)), "fal/flux"),
    ],
)
async def test_tags_of_targets_and_their_providers_narrow_the_choice(
    tmp_path: Path, preferences: Preferences, target: str
) -> None:
    async with House(tmp_path, text()) as house:
        assert await chosen(house, preferences=preferences) == target


async def test_tags_are_listed_with_the_models(tmp_path: Path) -> None:
    async with House(tmp_path, text(fallbacks="lesser")) as house:
        flux, lesser = (house.gateway.model(name, Caller()) for name in ("flux", "lesser"))
        assert flux is not None
        assert lesser is not None
        assert flux["provider_tags"] == {"fal": ["non-commercial"], "gpu-fast": ["own", "region:eu"]}
        assert flux["fallbacks"] == ["lesser"]
        assert lesser["provider_tags"] == {"gpu-spot": ["region:us", "open-weights"]}


# --- other models -----------------------------------------------------------------------------------------------


def warned(completed: Any) -> list[str]:
    return [warning.code for warning in completed.warnings if warning.code == "model_fallback"]


async def test_another_model_serves_only_when_none_of_the_first_can(tmp_path: Path) -> None:
    async with House(tmp_path, text()) as house:
        completed = await house.run(ask(models=("lesser",)), routing=True)
        assert completed.executed_model == "fal/flux"
        assert not warned(completed)
        assert completed.routing is not None
        why = {row["target"]: row.get("why") for row in completed.routing["candidates"]}
        assert why["gpu-spot/lesser"] == "fallback"
        for provider in ("fal", "gpu-fast"):
            house.wire.answers[provider] = [ProviderError(ErrorKind.NOT_SENT, "down")]
        house.wire.answers["gpu-spot"] = [made((512, 512))]
        completed = await house.gateway.run(ask(models=("lesser",)), Caller("k"), request_id="req_2")
        assert (completed.model, completed.executed_model) == ("flux", "gpu-spot/lesser")
        assert warned(completed) == ["model_fallback"]
        assert completed.size == ImageSize(512, 512)  # its own default, and priced as that
        assert completed.cost_nanos == completed.attempts[-1].cost_nanos > 0


async def test_the_operator_names_the_models_that_stand_in(tmp_path: Path) -> None:
    async with House(tmp_path, text(fallbacks="lesser")) as house:
        for provider in ("fal", "gpu-fast"):
            house.wire.answers[provider] = [ProviderError(ErrorKind.SERVER_ERROR, "down")]
        house.wire.answers["gpu-spot"] = [made((512, 512))]
        completed = await house.run(ask())
        assert completed.executed_model == "gpu-spot/lesser"
        [*_, row] = house.rows()
        assert (row.opening.model, row.opening.requested_model, row.opening.role) == ("lesser", "flux", "failover")
        for asked in (ask(models=()), ask("fal/flux"), ask(preferences=Preferences(allow_fallbacks=False))):
            with pytest.raises(RequestError) as caught:  # the client wants no other model, or names its target
                await house.gateway.run(asked, Caller("k"), request_id="req_2")
            assert caught.value.code == "all_providers_failed"


@pytest.mark.parametrize(
    ("more", "target"),
    [
        ({"size": ImageSize(512, 512), "preferences": Preferences(only=("gpu-spot",))}, "gpu-spot/lesser"),
        ({"preferences": Preferences(require_tags=("region:us",))}, "gpu-spot/lesser"),
        ({"preferences": Preferences(max_cost=Decimal("0.0075"))}, "gpu-spot/lesser"),
        ({"preferences": Preferences(max_latency_s=7)}, "fal/flux"),
    ],
)
async def test_constraints_are_held_against_every_models_own_money_and_time(
    tmp_path: Path, more: Mapping[str, Any], target: str
) -> None:
    async with House(tmp_path, text()) as house:
        house.wire.answers["gpu-spot"] = [made((512, 512))]
        completed = await house.run(ask(models=("lesser",), **more))
        assert completed.executed_model == target
        assert bool(warned(completed)) == target.endswith("lesser")


async def test_a_model_that_cannot_do_it_at_all_gives_way(tmp_path: Path) -> None:
    async with House(tmp_path, text()) as house:
        house.wire.answers["gpu-spot"] = [made((4096, 1024))]
        completed = await house.run(ask(models=("lesser",), size=ImageSize(4096, 1024)))
        assert completed.executed_model == "gpu-spot/lesser"


async def test_a_refusal_is_not_taken_to_another_model(tmp_path: Path) -> None:
    async with House(tmp_path, text(fallbacks="lesser")) as house:
        house.wire.answers["fal"] = [ProviderError(ErrorKind.REFUSED, "because")]
        with pytest.raises(RequestError) as caught:
            await house.run(ask())
        assert caught.value.code == "moderation_blocked"
        assert house.wire.sent == ["fal"]


@pytest.mark.parametrize(
    ("caller", "models", "status", "param"),
    [
        (Caller("k"), ("nothing",), 404, "models"),
        (Caller("k", models=("flux",)), ("lesser",), 403, "models"),
    ],
)
async def test_models_a_client_may_not_use_are_refused(
    tmp_path: Path, caller: Caller, models: tuple[str, ...], status: int, param: str
) -> None:
    async with House(tmp_path, text(fallbacks="lesser")) as house:
        error = await refused(house, caller, models=models)
        assert (error.status, error.param) == (status, param)


async def test_a_key_that_may_not_use_the_operators_stand_in_goes_without(tmp_path: Path) -> None:
    async with House(tmp_path, text(fallbacks="lesser")) as house:
        for provider in ("fal", "gpu-fast"):
            house.wire.answers[provider] = [ProviderError(ErrorKind.SERVER_ERROR, "down")]
        with pytest.raises(RequestError):
            await house.run(ask(), Caller("k", models=("flux",)))
        assert set(house.wire.sent) == {"fal", "gpu-fast"}


async def test_a_target_is_expected_to_take_as_long_as_its_own_models_size_takes(tmp_path: Path) -> None:
    """Where the models' default sizes differ, so does the work."""
    async with House(tmp_path, text()) as house:
        beside = await house.run(ask(models=("lesser",)), routing=True)
        alone = house.gateway.quote(ask("lesser"), Caller())
        assert beside.routing is not None
        told = {row["target"]: row["p50_s"] for row in beside.routing["candidates"]}
        [lesser] = alone["candidates"]
        assert told["gpu-spot/lesser"] == pytest.approx(lesser["latency_p50_s"], rel=0.01)
        assert lesser["latency_p50_s"] < 20  # a quarter of a megapixel at a target that takes 30 s for a whole one
