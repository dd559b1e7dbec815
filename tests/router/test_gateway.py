"""The use case with everything real but the wire: catalogue, prices, selector, ledger. The transport is scripted."""

from __future__ import annotations

import asyncio
import inspect
import io
import itertools
import random
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pricing import ImageSize, Reported
from router.app import drawn, offers_for
from router.blob import Blob
from router.cli.finance import charged_rows
from router.clock import Clock
from router.config import load
from router.delivery import Delivery
from router.errors import Billed, ErrorKind, ProviderError, RequestError
from router.gateway import Gateway
from router.ledger import Ledger, Reports
from router.offers import Agreements
from router.providers.base import Job, Partial
from router.routing import Selector
from router.transport import Ran
from router.types import (
    Accepted,
    Caller,
    Completed,
    GeneratedImage,
    ImageRequest,
    ImageResult,
    InputImage,
    Operation,
    PartialImage,
    Preferences,
)

pytestmark = pytest.mark.anyio

CONFIG = """
version: 1
defaults: {generate: flux}
providers:
  fal: {prices: fal, billing: {server_error: "no"}}
  openai: {prices: openai}
  gpu-fast: {adapter: openai, urls: {api: "http://127.0.0.1:9/v1"}, prices: gpu-fast, billing: {server_error: "no"}}
  gpu-spot: {adapter: openai, urls: {api: "http://127.0.0.1:9/v1"}, prices: gpu-spot}
  nowhere: {adapter: openai, urls: {api: "http://127.0.0.1:9/v1"}, prices: no-such-book}
models:
  flux:
    default_size: 1024x1024
    targets:
      fal:
        generate: fal-ai/flux-2/turbo
        edit: fal-ai/flux-2/turbo/edit
        max_images: 4
        max_inputs: 4
        sizes: {max_side: 2048}
        prior: {p50_s: 3, p95_s: 6, success: 0.99}
      gpu-fast:
        generate: flux.2-dev-turbo
        edit: flux.2-dev-turbo
        max_images: 2
        max_inputs: 1
        sizes: {max_side: 1024}
        prior: {p50_s: 3, p95_s: 6, success: 0.99}
      gpu-spot:
        generate: flux.2-dev-turbo
        sizes: {max_side: 1024}
        prior: {p50_s: 30, p95_s: 60, success: 0.9}
  gpt:
    targets:
      openai: {generate: gpt-image-2, edit: gpt-image-2, max_images: 10, max_inputs: 16, mask: true, streams: true}
  terse: {targets: {openai: {generate: gpt-image-2, max_prompt: 100}}}
  inpaint:
    default_size: 1024x1024
    targets:
      gpu-fast: {edit: flux.2-dev-turbo, mask: true, mask_rule: white}
      gpu-spot: {edit: flux.2-dev-turbo, mask: true, mask_rule: black}
      fal: {edit: fal-ai/flux-2/turbo/edit, mask: true}
  priceless:
    default_size: 512x512
    targets: {nowhere: {generate: x}}
  priceless-allowed:
    default_size: 512x512
    unpriced: allow
    targets: {nowhere: {generate: x}}
  half-priced:
    default_size: 512x512
    unpriced: allow
    targets: {nowhere: {generate: x}, fal: {generate: fal-ai/flux-2/turbo, max_images: 4}}
  old: {retires: 2026-11-21, successor: flux}
"""


def png(width: int, height: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height), "teal").save(out, "PNG")
    return out.getvalue()


def made(*sizes: tuple[int, int], **more: Any) -> ImageResult:
    return ImageResult(images=tuple(GeneratedImage(data=png(*size)) for size in sizes), **more)


class Wire:
    """Stands for the transport: answers per provider in turn, and remembers what was sent."""

    def __init__(self) -> None:
        self.answers: dict[str, list[Any]] = {}
        self.sent: list[str] = []
        self.requests: list[ImageRequest] = []
        self.patience: list[float] = []
        self.before: Callable[[str], None] = lambda provider: None
        self.downloads: dict[str, bytes | ProviderError] = {}

    async def run(self, flow, provider, auth, *, timeout_s, on_job=None, on_partial=None, resumed=False) -> Ran:
        self.requests.append(inspect.getgeneratorlocals(flow).get("request"))
        flow.close()
        self.patience.append(timeout_s)
        self.sent.append(provider.name)
        self.auth = auth
        self.before(provider.name)
        queue = self.answers.get(provider.name) or [made((1024, 1024))]
        answer = queue.pop(0) if len(queue) > 1 else queue[0]
        if callable(answer):
            answer = await answer(on_job, on_partial)
        if isinstance(answer, BaseException):
            raise answer
        return Ran(answer, 0.01, 0.005, True, "upstream-1")

    async def download(self, url, provider, *, timeout_s, max_bytes):
        answer = self.downloads[url]
        if isinstance(answer, ProviderError):
            raise answer
        return answer, "image/png"


class Shelf:
    def __init__(self) -> None:
        self.kept: list[tuple[str, str]] = []

    async def put(self, data: bytes, format: str, request_id: str) -> str:
        self.kept.append((format, request_id))
        return f"/v1/media/{len(self.kept)}.{format}"


class Watch:
    """Remembers what observers are told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, tuple[Any, ...]]] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args: self.told.append((name, args))

    def named(self, name: str) -> list[Any]:
        return [args for told, args in self.told if told == name]


class House:
    """A gateway and what surrounds it."""

    def __init__(self, directory: Path, text: str = CONFIG, clock: Clock | None = None, **more: Any) -> None:
        path = directory / "providers.yaml"
        path.write_text(text)
        self.settings = load([path], {"FAL_KEY": "k", "OPENAI_API_KEY": "k"})
        self.url = f"sqlite:///{directory}/ledger.db"
        self.settings = replace(self.settings, ledger_url=self.url)
        self.wire, self.shelf, self.watch = Wire(), Shelf(), Watch()
        self.ledger = Ledger(directory / "ledger.db", reserve_bytes=0)
        self.selector = Selector(self.settings.routing, self.settings.priors, random.Random(7))
        self.at = datetime(2026, 11, 20, tzinfo=UTC)
        numbers = itertools.count(more.pop("first_id", 1))
        self.agreements = Agreements(self.settings.terms)
        self.gateway = Gateway(
            offers=offers_for(self.settings),
            selector=self.selector,
            transport=self.wire,  # type: ignore[arg-type]
            ledger=self.ledger,
            delivery=Delivery(self.wire, self.shelf, max_bytes=10**8),
            observer=self.watch,
            clock=clock or Clock(lambda: self.at, time.monotonic, lambda: f"att_{next(numbers)}"),
            timeout_s=more.pop("timeout_s", 60.0),
            agreements=self.agreements,
            **more,
        )

    async def __aenter__(self) -> House:
        await self.ledger.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.gateway.close(1.0)
        await self.ledger.close()

    async def run(self, request: ImageRequest, caller: Caller | None = None, **more: Any):
        return await self.gateway.run(request, caller or Caller("k", "team"), request_id="req_1", **more)

    def rows(self) -> list[Any]:
        with Reports(self.url) as reports:
            record = reports.request("req_1")
        return list(record.attempts) if record else []


def ask(model: str = "flux", **more: Any) -> ImageRequest:
    return ImageRequest(Operation.GENERATE, model, "a lake", **({"response_format": "b64_json"} | more))


@pytest.fixture
async def house(tmp_path):
    async with House(tmp_path) as built:
        yield built


# --- the straight way -------------------------------------------------------------------------------------------


async def test_a_request_is_routed_metered_booked_and_answered(house):
    completed = await house.run(ask())
    assert completed.executed_model == "fal/flux"
    assert completed.cost_nanos == 8_000_000
    assert [item["amount"] for item in completed.items] == ["0.008"]
    assert completed.size == ImageSize(1024, 1024)
    assert completed.output_format == "png"
    [row] = house.rows()
    assert (row.state, row.cost_nanos, row.opening.target) == ("settled", 8_000_000, "fal/flux")
    assert row.opening.price_id == "fal:fal-ai/flux-2/turbo@2025-12-29"
    assert (row.opening.key, row.opening.team) == ("k", "team")
    assert row.settlement.delivered
    assert house.watch.named("attempt_finished")[0][0].amount_nanos == 8_000_000


async def test_the_row_is_durable_before_anything_is_sent(house):
    seen = []
    house.wire.before = lambda provider: seen.append([row.state for row in house.rows()])
    await house.run(ask())
    assert seen == [["open"]]


async def test_the_prompt_is_kept_nowhere(house, tmp_path):
    await house.run(ask())
    for path in tmp_path.glob("ledger.db*"):
        assert b"a lake" not in path.read_bytes()


@pytest.mark.parametrize(
    ("size", "made_size", "cost"),
    [
        ("512x512", (512, 512), 8_000_000),
        ("1920x1080", (1920, 1080), 16_000_000),
        ("2048x2048", (2048, 2048), 32_000_000),
        ("1024x1024", (1920, 1080), 16_000_000),  # what came out is charged, not what was asked
    ],
)
async def test_pixels_that_came_out_are_charged(house, size, made_size, cost):
    house.wire.answers["fal"] = [made(made_size)]
    completed = await house.run(ask("fal/flux", size=ImageSize.parse(size)))
    assert completed.cost_nanos == cost
    assert str(completed.size) == "{}x{}".format(*opened(completed).size) == size
    changed = [warning.code for warning in completed.warnings]
    assert changed == ([] if ImageSize(*made_size) == completed.size else ["size_changed"])


def opened(completed: Completed) -> Image.Image:
    return Image.open(io.BytesIO(completed.images[0].data))


async def test_a_default_size_is_nobodys_wish(house):
    house.wire.answers["fal"] = [made((1040, 1024))]
    completed = await house.run(ask("fal/flux"))
    assert str(completed.size) == "{}x{}".format(*opened(completed).size) == "1040x1024"


# --- sizes that a target does not make ------------------------------------------------------------------------------

SIZED = CONFIG.replace("sizes: {max_side: 2048}", "sizes: {fixed: [1024x1024, 1536x1024, 2048x1024]}")


@pytest.fixture
async def sized(tmp_path):
    async with House(tmp_path, SIZED) as built:
        yield built


async def test_exact_is_the_rule(sized):
    with pytest.raises(RequestError, match="2048x1024") as caught:
        await sized.run(ask(size=ImageSize(1200, 1199)))
    assert (caught.value.status, caught.value.code, caught.value.param) == (400, "invalid_value", "size")
    assert not sized.wire.sent


@pytest.mark.parametrize(
    ("policy", "ordered", "answered", "code", "nanos"),
    [
        ("nearest", (1536, 1024), (1536, 1024), "size_nearest", 16_000_000),  # 1.5 megapixels, rounded up
        ("fit", (1536, 1024), (1500, 900), "size_fitted", 16_000_000),
    ],
)
async def test_a_size_policy_decides_what_is_asked_for_and_what_is_answered(
    sized, policy, ordered, answered, code, nanos
):
    request = ask("fal/flux", size=ImageSize(1500, 900), size_policy=policy)
    quoted = sized.gateway.quote(request, Caller())
    assert quoted["total_cost_micros"] * 1000 == nanos
    sized.wire.answers["fal"] = [made(ordered)]
    completed = await sized.run(request)
    assert sized.wire.requests[-1].size == ImageSize(*ordered)
    assert completed.size == ImageSize(*answered)
    assert opened(completed).size == answered
    assert [warning.code for warning in completed.warnings] == [code]
    assert completed.cost_nanos == nanos  # the size that was really made


async def test_fit_never_enlarges(sized):
    with pytest.raises(RequestError) as caught:
        await sized.run(ask(size=ImageSize(2050, 1000), size_policy="fit"))
    assert caught.value.param == "size"


async def test_who_makes_the_size_comes_first_and_the_others_stand_behind(sized):
    request = ask(size=ImageSize(1000, 1000), size_policy="nearest")  # fal would be cheaper, but has 1024x1024 only
    completed = await sized.run(request, routing=True)
    assert completed.provider == "gpu-fast"
    assert next(row for row in completed.routing["candidates"] if row["target"] == "fal/flux")["why"] == "lesser"
    sized.wire.answers["gpu-fast"] = [ProviderError(ErrorKind.NOT_SENT, "down")]
    sized.wire.answers["gpu-spot"] = [ProviderError(ErrorKind.NOT_SENT, "down")]
    completed = await sized.run(request)
    assert completed.provider == "fal"
    assert [warning.code for warning in completed.warnings] == ["size_nearest"]


async def test_a_models_own_policy_holds_unless_the_request_has_one(tmp_path):
    text = SIZED.replace("  flux:\n", "  flux:\n    size_policy: nearest\n")
    async with House(tmp_path, text) as house:
        completed = await house.run(ask("fal/flux", size=ImageSize(1000, 1000)))
        assert completed.size == ImageSize(1024, 1024)
        with pytest.raises(RequestError):
            await house.run(ask("fal/flux", size=ImageSize(1000, 1000), size_policy="exact"))


# --- partial pictures -----------------------------------------------------------------------------------------------

BOTH = CONFIG.replace("streams: true}", "streams: true}\n      gpu-fast: {generate: flux.2-dev-turbo, max_images: 4}")


async def test_partial_pictures_are_asked_of_who_makes_them_whatever_the_others_cost(tmp_path):
    async with House(tmp_path, BOTH) as house:
        assert (await house.run(ask("gpt"))).provider == "gpu-fast"  # cheaper and nothing is missing
        streamed = ask("gpt", stream=True, partial_images=2)
        completed = await house.run(streamed, routing=True)
        assert completed.provider == "openai"
        [other] = [row for row in completed.routing["candidates"] if row["target"] != "openai/gpt"]
        assert other["why"] == "lesser"
        assert (await house.run(ask("gpt", stream=True))).provider == "gpu-fast"  # no partials asked for
        first = Preferences(order=("gpu-fast",))
        assert (await house.run(replace(streamed, preferences=first))).provider == "gpu-fast"
        house.wire.answers["openai"] = [ProviderError(ErrorKind.NOT_SENT, "down")]
        assert (await house.run(streamed)).provider == "gpu-fast"  # better a picture without partials than none


async def test_an_edit_charges_the_pixels_that_went_in(house):
    source = InputImage(Blob(png(512, 512)), "png", ImageSize(512, 512))
    request = ImageRequest(Operation.EDIT, "fal/flux", "stars", images=(source,), response_format="b64_json")
    completed = await house.run(request)
    assert completed.cost_nanos == 16_000_000
    assert [item["type"] for item in completed.items] in (["input", "output"], ["output", "input"])


async def test_a_source_of_unknown_size_is_charged_by_the_books_rule_and_never_nothing(house):
    sources = (
        InputImage(Blob(png(512, 512)), "png", ImageSize(512, 512)),
        InputImage(Blob(b"raw file contents"), None, None),
    )
    request = ImageRequest(Operation.EDIT, "fal/flux", "stars", images=sources, response_format="b64_json")
    quoted = house.gateway.quote(request, Caller())
    completed = await house.run(request)
    # fal scales sources to at most 4 megapixels, so the book assumes that much of one that nobody could measure.
    [item] = [item for item in completed.items if item["type"] == "input"]
    assert Decimal(item["quantity"]) > 1
    assert completed.cost_nanos == quoted["total_cost_micros"] * 1000 > 16_000_000
    [row] = house.rows()
    assert row.settlement.usage["inputs"] == ["512x512", None]


async def test_what_the_provider_reports_wins_and_the_computed_figure_is_kept(house):
    house.wire.answers["fal"] = [made((1024, 1024), reported=Reported(Decimal("3"), "unit"))]
    completed = await house.run(ask("fal/flux"))
    assert (completed.cost_nanos, completed.basis) == (24_000_000, "reported_quantity")
    [row] = house.rows()
    assert (row.settlement.computed_nanos, row.settlement.reported_nanos) == (8_000_000, 24_000_000)


async def test_pictures_by_url_are_fetched_measured_and_hosted(house):
    house.wire.answers["fal"] = [ImageResult((GeneratedImage(url="https://v3.fal.media/a.png"),))]
    house.wire.downloads["https://v3.fal.media/a.png"] = png(640, 480)
    completed = await house.run(ask("fal/flux", response_format="url"))
    assert completed.images[0].url == "/v1/media/1.png"
    assert completed.images[0].data is None
    assert completed.size == ImageSize(640, 480)
    assert house.shelf.kept == [("png", "req_1")]


async def test_the_format_asked_for_is_delivered(house):
    completed = await house.run(ask("fal/flux", output_format="webp"))
    assert completed.images[0].data[:4] == b"RIFF"
    assert completed.output_format == "webp"
    assert [warning.code for warning in completed.warnings] == ["output_format_converted"]


async def test_a_contracts_discount_is_booked_beside_the_list_price(tmp_path):
    terms = tmp_path / "terms.yaml"
    terms.write_text(
        'discounts:\n  - {name: fal 2026, book: fal, skus: "*", percent: 12.5, effective_at: 2026-01-01}\n'
    )
    async with House(tmp_path, CONFIG + f"terms: {terms}\n") as house:
        completed = await house.run(ask("fal/flux"))
        assert completed.cost_nanos == 7_000_000
        with Reports(house.url) as reports:
            [row] = reports.costs("provider")
        assert (row.cost_nanos, row.list_nanos) == (7_000_000, 8_000_000)


async def test_a_compatible_host_may_take_its_key_in_another_header(tmp_path):
    azure = CONFIG.replace(
        "  openai: {prices: openai}", '  openai: {prices: openai, auth_header: api-key, auth_prefix: ""}'
    )
    async with House(tmp_path, azure) as house:
        await house.run(ask("gpt"))
        assert (house.wire.auth.header, house.wire.auth.prefix) == ("api-key", "")
        await house.run(ask("fal/flux"), Caller("other"))
        assert (house.wire.auth.header, house.wire.auth.prefix) == ("Authorization", "Key ")


TERMS = """
discounts:
  - {name: fal 2026, book: fal, skus: "*", percent: 12.5, effective_at: 2026-01-01}
commitments:
  - {name: fal credit, book: fal, amount: 0.010, paid: 0.009, currency: USD, effective_at: 2026-01-01}
markups:
  - {name: team, payer: team, book: "*", percent: 10, effective_at: 2026-01-01}
exchange_rates:
  - {from: USD, to: EUR, rate: 0.8, effective_at: 2026-11-01, source: a test}
"""


async def test_prepaid_credit_is_drawn_until_it_is_used_up_and_a_restart_remembers(tmp_path):
    (tmp_path / "terms.yaml").write_text(TERMS)
    text = CONFIG + f"terms: {tmp_path / 'terms.yaml'}\n"
    async with House(tmp_path, text) as house:
        completed = await house.run(ask("fal/flux"))
        # $0.007 after the discount, all of it from credit that cost 90 cents a dollar
        assert completed.cost_nanos == 6_300_000
        assert [item["type"] for item in completed.items] == ["output", "credit"]
        assert sum(Decimal(item["amount"]) for item in completed.items) == Decimal("0.0063")
    async with House(tmp_path, text, first_id=100) as house:
        house.agreements.draw(drawn(house.settings))
        completed = await house.gateway.run(ask("fal/flux"), Caller("k", "team"), request_id="req_2")
        # $0.003 of credit are left: they cost $0.0027, the other $0.004 their price
        assert completed.cost_nanos == 6_700_000
        with Reports(house.url) as reports:
            [row] = reports.costs("provider")
            assert (row.cost_nanos, row.list_nanos) == (13_000_000, 16_000_000)
            [charged] = charged_rows("team", reports.usages(), house.settings, "EUR")
        assert charged == {
            "team": "team",
            "attempts": 2,
            "list_cost": "0.0128",
            "cost": "0.0104",
            "charged": "0.01144",
            "currency": "EUR",
        }


# --- several pictures -------------------------------------------------------------------------------------------


async def test_more_pictures_than_a_call_makes_come_from_several_calls_under_one_row(house):
    house.wire.answers["gpu-fast"] = [made((1024, 1024), (1024, 1024)), made((1024, 1024))]
    completed = await house.run(ask("gpu-fast/flux", n=3))
    assert house.wire.sent == ["gpu-fast", "gpu-fast"]
    assert (len(completed.images), completed.cost_nanos) == (3, 36_000_000)
    assert len(house.rows()) == 1


async def test_fewer_pictures_than_asked_is_a_failure_that_is_booked_at_what_was_made(house):
    house.wire.answers["gpu-spot"] = [made((1024, 1024)), ProviderError(ErrorKind.NOT_SENT, "refused")]
    with pytest.raises(RequestError) as caught:
        await house.run(ask("gpu-spot/flux", n=2))
    assert caught.value.status == 502
    assert not caught.value.retry
    [row] = house.rows()
    assert row.state == "settled"
    assert row.cost_nanos > 0
    assert not row.settlement.delivered


async def test_a_short_answer_is_charged_for_what_came(house):
    house.wire.answers["fal"] = [made((1024, 1024))]
    with pytest.raises(RequestError):
        await house.run(ask("fal/flux", n=2))
    [row] = house.rows()
    assert (row.state, row.cost_nanos, row.settlement.outcome) == ("settled", 8_000_000, "bad_response")


# --- failures ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [ErrorKind.NOT_SENT, ErrorKind.RATE_LIMITED, ErrorKind.SERVER_ERROR, ErrorKind.AUTH])
async def test_unbilled_failures_move_on_and_cost_nothing(house, kind):
    house.wire.answers["fal"] = [ProviderError(kind, "no")]
    completed = await house.run(ask())
    assert completed.provider != "fal"
    assert (completed.attempts[0].provider, completed.attempts[0].billed) == ("fal", "no")
    first, second = house.rows()
    assert (first.state, first.cost_nanos, first.unsettled_nanos) == ("void", 0, 0)
    assert (second.state, second.opening.role) == ("settled", "failover")
    assert house.watch.named("failover")[0][1:3] == ("fal", completed.provider)


async def test_a_maybe_billed_failure_is_booked_as_unknown_and_shown(house):
    house.wire.answers["fal"] = [ProviderError(ErrorKind.NO_ANSWER, "timeout")]
    completed = await house.run(ask())
    first, second = house.rows()
    assert (first.state, first.unsettled_nanos, first.cost_nanos) == ("unknown", 8_000_000, 0)
    assert second.state == "settled"
    assert [attempt.billed for attempt in completed.attempts] == ["maybe", "yes"]
    assert completed.cost_nanos == second.cost_nanos


@pytest.mark.parametrize(
    ("kind", "status", "code"),
    [(ErrorKind.REFUSED, 400, "moderation_blocked"), (ErrorKind.BAD_REQUEST, 400, "invalid_value")],
)
async def test_refusals_and_the_clients_mistakes_are_final(house, kind, status, code):
    house.wire.answers["fal"] = [ProviderError(kind, "because")]
    with pytest.raises(RequestError) as caught:
        await house.run(ask())
    assert (caught.value.status, caught.value.code, caught.value.retry) == (status, code, False)
    assert house.wire.sent == ["fal"]


async def test_a_refusal_may_fail_over_where_the_operator_wants_it(tmp_path):
    async with House(tmp_path, refused_elsewhere=True) as house:
        house.wire.answers["fal"] = [ProviderError(ErrorKind.REFUSED, "because", billed=Billed.NO)]
        assert (await house.run(ask())).provider != "fal"


async def test_a_failed_download_never_buys_the_picture_again(house):
    house.wire.answers["fal"] = [ImageResult((GeneratedImage(url="https://v3.fal.media/gone.png"),))]
    house.wire.downloads["https://v3.fal.media/gone.png"] = ProviderError(ErrorKind.DOWNLOAD, "404")
    with pytest.raises(RequestError) as caught:
        await house.run(ask())
    assert (caught.value.code, caught.value.retry) == ("download_failed", False)
    assert house.wire.sent == ["fal"]
    [row] = house.rows()
    assert (row.state, row.cost_nanos) == ("settled", 8_000_000)


async def test_bytes_that_are_no_picture_are_a_failure(house):
    house.wire.answers["fal"] = [ImageResult((GeneratedImage(data=b"<html>"),))]
    completed = await house.run(ask())
    assert completed.provider != "fal"
    assert house.rows()[0].settlement.outcome == "bad_response"


async def test_when_all_limit_requests_the_client_is_told_when_to_come_back(house):
    for provider, after in (("fal", 9.0), ("gpu-fast", 4.0), ("gpu-spot", 7.0)):
        house.wire.answers[provider] = [ProviderError(ErrorKind.RATE_LIMITED, "slow down", retry_after_s=after)]
    with pytest.raises(RequestError) as caught:
        await house.run(ask(size=ImageSize(512, 512)))
    error = caught.value
    assert (error.status, error.code, error.retry, error.retry_after_s) == (429, "rate_limit_exceeded", True, 4.0)


@pytest.mark.parametrize(("pause_s", "again"), [(20.0, True), (90.0, False), (None, False)])
async def test_x26_where_nobody_may_be_asked_it_is_sent_again_only_if_that_helps_soon(house, pause_s, again):
    for target in ("fal/flux", "gpu-spot/flux"):
        house.selector.drain(target)  # nobody knows for how long
    if pause_s is None:
        house.selector.drain("gpu-fast/flux")
    else:
        house.wire.answers["gpu-fast"] = [
            ProviderError(ErrorKind.RATE_LIMITED, "slow down", retry_after_s=pause_s),
        ]
        with pytest.raises(RequestError):
            await house.run(ask(deadline_s=5.0))
    sent = len(house.wire.sent)
    with pytest.raises(RequestError) as caught:
        await house.run(ask())
    error = caught.value
    assert (error.status, error.code, error.retry) == (503, "all_providers_failed", again)
    assert error.retry_after_s == (pytest.approx(pause_s, abs=1.0) if pause_s else None)
    assert len(house.wire.sent) == sent


async def test_when_everything_fails_a_client_that_repeats_would_pay_again(house):
    for provider in ("fal", "gpu-fast", "gpu-spot"):
        house.wire.answers[provider] = [ProviderError(ErrorKind.SERVER_ERROR, "boom", billed=Billed.MAYBE)]
    with pytest.raises(RequestError) as caught:
        await house.run(ask())
    assert (caught.value.status, caught.value.code, caught.value.retry) == (502, "all_providers_failed", False)
    assert {row.state for row in house.rows()} == {"unknown"}


async def test_a_bug_of_ours_is_booked_as_a_maybe_and_ends_as_an_error(house):
    house.wire.answers["openai"] = [KeyError("surprise")]
    with pytest.raises(RequestError) as caught:
        await house.run(ask("gpt"))
    assert "surprise" not in caught.value.message
    [row] = house.rows()
    assert row.state == "unknown"
    assert row.unsettled_nanos > 0


async def test_without_a_ledger_nothing_is_sent(house):
    await house.ledger.close()
    with pytest.raises(RequestError) as caught:
        await house.run(ask())
    assert (caught.value.status, caught.value.code, caught.value.retry) == (503, "ledger_unavailable", True)
    assert house.wire.sent == []


# --- the client leaves ------------------------------------------------------------------------------------------


async def test_stopping_waits_for_what_runs(house):
    going, begun = asyncio.Event(), asyncio.Event()

    async def slow(on_job, on_partial):
        begun.set()
        await going.wait()
        return made((1024, 1024))

    house.wire.answers["fal"] = [slow]
    waiting = asyncio.create_task(house.run(ask()))
    await begun.wait()
    closing = asyncio.create_task(house.gateway.close(5.0))
    assert [row.state for row in house.rows()] == ["open"]
    going.set()
    await closing
    assert waiting.done()
    [row] = house.rows()
    assert (row.state, row.cost_nanos) == ("settled", 8_000_000)


async def test_what_still_runs_when_the_router_stops_becomes_unknown(house):
    begun = asyncio.Event()

    async def forever(on_job, on_partial):
        begun.set()
        await asyncio.Event().wait()

    house.wire.answers["fal"] = [forever]
    waiting = asyncio.create_task(house.run(ask()))
    await begun.wait()
    await house.gateway.close(0.0)
    with pytest.raises(asyncio.CancelledError):
        await waiting
    [row] = house.rows()
    assert (row.state, row.settlement.outcome, row.unsettled_nanos) == ("unknown", "cancelled", 8_000_000)


# --- streaming --------------------------------------------------------------------------------------------------


async def test_a_streaming_client_is_told_of_acceptance_and_partials(house):
    async def partials(on_job, on_partial):
        await on_job(Job("job-1", {"url": "https://queue.fal.run/x"}))
        await on_partial(Partial(GeneratedImage(data=png(64, 64)), 0))
        return made((1024, 1024), tokens={"text_input": 10, "image_output": 1756})

    told: list[Any] = []

    async def emit(event: Accepted | PartialImage) -> None:
        told.append(event)

    house.wire.answers["openai"] = [partials]
    completed = await house.run(ask("gpt", stream=True, response_format="url"), emit=emit)
    assert [type(event) for event in told] == [Accepted, PartialImage]
    assert completed.response_format == "b64_json"
    assert house.rows()[0].jobs[0].job_id == "job-1"


async def test_a_stream_whose_client_is_gone_goes_on(house):
    async def partials(on_job, on_partial):
        await on_partial(Partial(GeneratedImage(data=png(64, 64)), 0))
        return made((1024, 1024), tokens={"text_input": 10, "image_output": 1756})

    async def emit(event: Any) -> None:
        raise ConnectionResetError

    house.wire.answers["openai"] = [partials]
    assert (await house.run(ask("gpt", stream=True), emit=emit)).cost_nanos > 0


# --- refused before anything is spent ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "status", "code", "param"),
    [
        (ask("nothing"), 404, "model_not_found", "model"),
        (ask("flux", size=ImageSize(4096, 4096)), 400, "invalid_value", "size"),
        (ask("flux", background="transparent"), 400, "unsupported_parameter", "background"),
        (replace(ask("terse"), prompt="x" * 101), 400, "string_above_max_length", "prompt"),
        (ImageRequest(Operation.VARIATION, "flux", ""), 400, "unsupported_model", "model"),
        (
            ImageRequest(Operation.EDIT, "flux", "x", images=(InputImage(Blob(), "png", None),) * 5),
            400,
            "array_above_max_length",
            "image",
        ),
        (
            ImageRequest(
                Operation.EDIT,
                "flux",
                "x",
                images=(InputImage(Blob(), "png", None),),
                mask=InputImage(Blob(), "png", None),
            ),
            400,
            "unsupported_parameter",
            "mask",
        ),
        (ask("priceless"), 503, "model_unpriced", "model"),
        (ask(preferences=Preferences(only=("bfl",))), 400, "no_feasible_provider", "provider"),
        (ask(preferences=Preferences(max_cost=Decimal("0.001"))), 400, "no_feasible_provider", "provider"),
    ],
)
async def test_what_cannot_be_served_costs_nothing(house, request_, status, code, param):
    with pytest.raises(RequestError) as caught:
        await house.run(request_)
    assert (caught.value.status, caught.value.code, caught.value.param) == (status, code, param)
    assert house.wire.sent == []
    assert house.rows() == []


async def test_a_key_may_be_limited_to_some_models(house):
    with pytest.raises(RequestError) as caught:
        await house.run(ask("gpt"), Caller("k", models=("flux",)))
    assert (caught.value.status, caught.value.code) == (403, "model_not_allowed")
    assert {model["id"] for model in house.gateway.models(Caller("k", models=("flux",)))} >= {"flux", "fal/flux"}
    assert house.gateway.model("gpt", Caller("k", models=("flux",))) is None


async def test_an_unpriced_model_may_be_allowed_and_is_flagged_not_free(house):
    house.wire.answers["nowhere"] = [made((512, 512))]
    completed = await house.run(ask("priceless-allowed"))
    assert completed.basis == "unpriced"
    assert house.watch.named("attempt_finished")[0][0].unpriced
    with Reports(house.url) as reports:
        assert [row.unpriced for row in reports.costs("provider")] == [1]


async def test_what_has_no_price_is_not_free_to_the_selector_and_never_within_a_limit_on_cost(house):
    order = offers_for(house.settings).order(ask("half-priced"), house.at)
    assert [candidate.price_nanos for candidate in order.route.candidates] == [8_000_000, 8_000_000]
    body = house.gateway.quote(ask("half-priced"), Caller())
    nowhere, fal = body["candidates"]
    assert (nowhere["target"], nowhere["unpriced"], nowhere["total_cost"]) == ("nowhere/half-priced", True, None)
    assert fal["total_cost"] == "0.008"
    limited = house.gateway.quote(ask("half-priced", preferences=Preferences(max_cost=Decimal(1))), Caller())
    assert [candidate["excluded_by"] for candidate in limited["candidates"]] == ["unpriced", None]
    with pytest.raises(RequestError, match="max_cost") as caught:
        await house.run(ask("priceless-allowed", preferences=Preferences(max_cost=Decimal(1))))
    assert (caught.value.status, caught.value.code) == (503, "model_unpriced")
    alone = house.gateway.quote(ask("priceless-allowed"), Caller())
    assert (alone["unpriced"], alone["total_cost_micros"], alone["price_id"]) == (True, None, None)


async def test_a_retired_name_is_served_by_its_successor_and_the_client_is_told(house):
    house.wire.answers["fal"] = [made((1024, 1024)), made((1024, 1024))]
    with pytest.raises(RequestError) as caught:
        await house.run(ask("old"))  # the day before
    assert caught.value.code == "model_not_found"
    house.at = datetime(2026, 11, 21, tzinfo=UTC)
    completed = await house.run(ask("old"))
    assert completed.executed_model == "fal/flux"
    assert completed.model == "old"
    assert [warning.code for warning in completed.warnings] == ["model_redirected"]
    assert house.gateway.model("old", Caller())["status"] == "retired"
    assert [warning["code"] for warning in house.gateway.quote(ask("old"), Caller())["warnings"]] == [
        "model_redirected"
    ]


# --- a dry run --------------------------------------------------------------------------------------------------


async def test_a_dry_run_quotes_every_candidate_and_runs_nothing(house):
    body = house.gateway.quote(ask(size=ImageSize(1920, 1080)), Caller())
    assert (body["estimated"], body["provider"], body["total_cost_micros"]) == (True, "fal", 16_000)
    quoted = {candidate["target"]: candidate for candidate in body["candidates"]}
    assert quoted["fal/flux"]["total_cost"] == "0.016"
    assert quoted["gpu-fast/flux"]["excluded_by"] == "size"
    assert house.wire.sent == []
    assert house.rows() == []


# --- after a crash ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "state", "cost", "code"),
    [
        (lambda: made((1920, 1080)), "settled", 16_000_000, None),
        (lambda: ProviderError(ErrorKind.SERVER_ERROR, "failed", billed=Billed.NO), "void", 0, "all_providers_failed"),
        (lambda: ProviderError(ErrorKind.REFUSED, "no", billed=Billed.NO), "void", 0, "moderation_blocked"),
        (lambda: ProviderError(ErrorKind.NO_ANSWER, "nobody knows"), "unknown", 0, "outcome_unknown"),
    ],
)
async def test_a_request_is_resumed_by_evidence_only(tmp_path, answer, state, cost, code):
    async with House(tmp_path) as house:
        await left_behind(house, Job("job-1", URLS))
        assert house.rows()[0].state == "unknown"
        house.wire.answers["fal"] = [answer()]
        wanted = ask("fal/flux", output_format="webp")
        if code is None:
            completed = await house.gateway.resume("req_1", wanted, awaited=True)
            assert (completed.cost_nanos, completed.request_id, completed.size) == (
                cost,
                "req_1",
                ImageSize(1920, 1080),
            )
            assert (completed.output_format, completed.provider_name) == ("webp", "fal")
            assert [attempt.billed for attempt in completed.attempts] == ["yes"]
            assert "resumed" in [warning.code for warning in completed.warnings]
            assert completed.images[0].data is not None
        else:
            with pytest.raises(RequestError) as caught:
                await house.gateway.resume("req_1", wanted, awaited=True)
            assert caught.value.code == code
            assert not caught.value.retry
        [row] = house.rows()
        assert (row.state, row.cost_nanos) == (state, cost)
        if state == "settled":
            assert row.settlement.evidence == "resume"
            assert row.settlement.delivered
            # killed again before the pictures were kept: they are fetched again, and booked once
            assert (await house.gateway.resume("req_1", wanted, awaited=True)).cost_nanos == cost
            assert len(house.rows()[0].entries) == len(row.entries)


async def test_a_resumed_request_is_told_what_it_would_have_been_told(tmp_path):
    text = CONFIG.replace(
        "fal-ai/flux-2/turbo/edit\n", "fal-ai/flux-2/turbo/edit\n        variation: fal-ai/flux-2/turbo/edit\n"
    )
    async with House(tmp_path, text) as house:
        house.at = datetime(2026, 11, 22, tzinfo=UTC)
        source = InputImage(Blob(png(8, 8)), "png", ImageSize(8, 8))
        wanted = ImageRequest(Operation.VARIATION, "old", "", n=5, images=(source,), size=ImageSize(512, 512))
        live = ["model_redirected", "variation_emulated", "n_emulated"]
        house.wire.answers["fal"] = [made(*[(512, 512)] * 4), made((512, 512))]
        completed = await house.run(wanted)
        assert [warning.code for warning in completed.warnings] == live
        await left_behind(house, Job("job-1", URLS), Job("job-2", URLS), wanted=wanted, request_id="req_2")
        house.wire.answers["fal"] = [made(*[(512, 512)] * 4), made((512, 512))]
        blank = replace(wanted, prompt="", images=(), later=True)  # what is kept of it
        again = await house.gateway.resume("req_2", blank, awaited=True)
        assert [warning.code for warning in again.warnings] == [*live, "resumed"]
        assert again.warnings[:3] == completed.warnings


async def test_an_answer_can_be_told_again_from_its_rows(house):
    house.wire.answers["gpu-fast"] = [ProviderError(ErrorKind.SERVER_ERROR, "down", billed=Billed.NO)]
    house.wire.answers["fal"] = [made((1024, 1024), (1024, 1024))]
    wanted = ask(n=2, preferences=Preferences(order=("gpu-fast", "fal")))
    answered = await house.run(wanted, Caller("k", "team"))
    kept = (GeneratedImage(url="/v1/media/a.png", size=ImageSize(1024, 1024), format="png"),) * 2
    told = await house.gateway.recorded("req_1", "k", kept)
    same = ("request_id", "operation", "model", "executed_model", "provider", "provider_name", "cost_nanos", "currency",
            "items", "reason", "basis", "output_format", "size", "warnings")  # fmt: skip
    assert {name: getattr(told, name) for name in same} == {name: getattr(answered, name) for name in same}
    assert [attempt.outcome for attempt in told.attempts] == ["server_error", "success"]
    assert abs(told.created - answered.created) <= 1
    assert (told.images, told.response_format) == (kept, "url")
    assert await house.gateway.recorded("req_1", "another key", kept) is None
    assert await house.gateway.recorded("req_9", "k", kept) is None
    assert await house.gateway.recorded("req_1", "k", kept[:1]) is None
    house.wire.answers["fal"] = [ProviderError(ErrorKind.REFUSED, "no", billed=Billed.NO)]
    with pytest.raises(RequestError):
        await house.gateway.run(ask("fal/flux"), Caller("k"), request_id="req_3")
    assert await house.gateway.recorded("req_3", "k", kept) is None


URLS = {"status_url": "https://queue.fal.run/s", "response_url": "https://queue.fal.run/r"}


async def left_behind(house: House, *jobs: Job, wanted: ImageRequest | None = None, request_id: str = "req_1") -> None:
    """A request whose router stopped after the provider had accepted these jobs, one by each call."""
    accepted, left = asyncio.Event(), list(jobs)

    async def submitted(on_job, on_partial):
        if left:
            await on_job(left.pop(0))
        if not left:
            accepted.set()
        await asyncio.Event().wait()

    house.wire.answers["fal"] = [submitted]
    running = house.gateway.run(wanted or ask("fal/flux"), Caller("k", "team"), request_id=request_id)
    waiting = asyncio.create_task(running)
    await accepted.wait()
    await house.gateway.close(0.0)
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_without_a_job_the_outcome_stays_unknown(tmp_path):
    async with House(tmp_path) as house:
        await left_behind(house)
        sent = len(house.wire.sent)
        with pytest.raises(RequestError) as caught:
            await house.gateway.resume("req_1", ask("fal/flux"), awaited=True)
        assert (caught.value.code, caught.value.details["attempts"][0]["billed"]) == ("outcome_unknown", "maybe")
        assert len(house.wire.sent) == sent


async def test_jobs_of_which_some_were_never_noted_are_not_taken_for_the_whole(tmp_path):
    async with House(tmp_path) as house:
        numbers = iter(range(9))

        async def submitted(on_job, on_partial):
            if next(numbers) == 0:
                await on_job(Job("job-1", URLS))
            raise ProviderError(ErrorKind.NO_ANSWER, "the process died here")

        house.wire.answers["fal"] = [submitted]
        with pytest.raises(RequestError):
            await house.run(ask("fal/flux", n=5))
        house.wire.answers["fal"] = [made((1024, 1024))]
        with pytest.raises(RequestError) as caught:
            await house.gateway.resume("req_1", ask("fal/flux", n=5), awaited=True)
        assert caught.value.code == "outcome_unknown"
        assert house.rows()[0].state == "unknown"


async def test_what_was_never_sent_may_be_sent_again(tmp_path):
    async with House(tmp_path) as house:
        with pytest.raises(RequestError) as caught:
            await house.gateway.resume("req_1", ask("fal/flux"), awaited=True)
        assert (caught.value.code, caught.value.retry) == ("interrupted", True)


async def test_a_paid_picture_that_nobody_kept_is_called_lost(house):
    await house.run(ask("fal/flux"))
    with pytest.raises(RequestError) as caught:
        await house.gateway.resume("req_1", ask("fal/flux"), awaited=True)
    assert (caught.value.code, caught.value.retry) == ("result_lost", False)


@pytest.mark.parametrize(
    ("provider", "edited", "kept"), [("gpu-fast", 255, 0), ("gpu-spot", 0, 255), ("fal", (0, 0, 0, 0), (9, 9, 9, 255))]
)
async def test_a_mask_is_painted_as_its_provider_reads_it(tmp_path, provider, edited, kept):
    mask = Image.new("RGBA", (8, 4), (9, 9, 9, 255))
    mask.paste((0, 0, 0, 0), (0, 0, 4, 4))
    out = io.BytesIO()
    mask.save(out, "PNG")
    source = InputImage(Blob(png(8, 4)), "png", ImageSize(8, 4))
    over = InputImage(Blob(out.getvalue()), "png", ImageSize(8, 4))
    async with House(tmp_path) as house:
        request = ImageRequest(Operation.EDIT, f"{provider}/inpaint", "a boat", images=(source,), mask=over)
        await house.run(request)
        sent = house.wire.requests[0].mask
    assert (sent.format, sent.size) == ("png", ImageSize(8, 4))
    pixels = Image.open(io.BytesIO(bytes(sent.data))).load()
    assert (pixels[0, 0], pixels[7, 3]) == (edited, kept)


@pytest.mark.parametrize(
    ("model", "more", "attempt_s"),
    [
        ("flux", {}, 60),  # a provider has 120 of these 60
        ("flux", {"later": True}, 300),
        ("flux", {"later": True, "deadline_s": 9.0}, 9),
        ("patient", {}, 6),  # this one's calls have a tenth of the time
        ("patient", {"later": True}, 60),
    ],
)
async def test_a_job_has_more_time_and_its_attempts_their_share_of_it(tmp_path, model, more, attempt_s):
    patient = "  patient: {default_size: 512x512, job_timeout_s: 600, targets: {quick: {generate: flux.2-dev-turbo}}}\n"
    quick = '{adapter: openai, urls: {api: "http://127.0.0.1:9/v1"}, prices: gpu-fast, timeout_s: 6}\n'
    text = CONFIG.replace("models:\n", f"  quick: {quick}models:\n{patient}", 1)
    async with House(tmp_path, text, timeout_s=60.0, job_timeout_s=300.0) as house:
        await house.run(ImageRequest(Operation.GENERATE, model, "a lake", **more))
        assert house.wire.patience == [pytest.approx(attempt_s, abs=0.5)]
