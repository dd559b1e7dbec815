"""Budgets: what is held and spent, that they hold whatever runs at once, and that a restart forgets nothing."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pricing import ImageSize
from router.app import remember
from router.budgets import Budget, Budgets
from router.errors import Billed, ErrorKind, ProviderError, RequestError
from router.ledger import Reports
from router.telemetry import Sources, Telemetry
from router.types import Caller, ImageResult, Preferences
from tests.router.test_gateway import House, ask, made
from tests.router.test_rescue import JOB, Stage

NOON = datetime(2026, 11, 30, 12, tzinfo=UTC)
SHOP = Caller("shop", "web", "launch")


def one(**limits: str) -> Budgets:
    return Budgets({("key", "shop"): Budget(**{period: Decimal(text) for period, text in limits.items()})})


def refused(act: Callable[[], object]) -> RequestError:
    with pytest.raises(RequestError) as caught:
        act()
    assert (caught.value.status, caught.value.code, caught.value.retry) == (429, "insufficient_quota", False)
    return caught.value


# --- the machine ------------------------------------------------------------------------------------------------


def test_what_is_held_is_spent_or_given_back() -> None:
    budgets = one(day="1")
    budgets.hold("a", SHOP, 400_000_000, NOON)
    budgets.hold("b", SHOP, 600_000_000, NOON)
    assert budgets.room(SHOP, NOON) == 0
    refused(lambda: budgets.hold("c", SHOP, 1, NOON))
    budgets.settle("a", 100_000_000, "USD", known=True)
    budgets.settle("a", 100_000_000, "USD", known=True)
    budgets.settle("nobody", 5, "USD", known=True)
    assert budgets.room(SHOP, NOON) == 300_000_000
    budgets.settle("b", 500_000_000, "USD", known=False)  # may have been billed: held until it is known
    assert budgets.room(SHOP, NOON) == 400_000_000
    budgets.settle("b", 0, "USD", known=True)
    assert budgets.room(SHOP, NOON) == 900_000_000


def test_what_a_payer_is_told_is_its_own() -> None:
    budgets = Budgets(
        {
            ("key", "shop"): Budget(month=Decimal("20.50")),
            ("team", "web"): Budget(day=Decimal(5)),
            ("team", "print"): Budget(total=Decimal(7)),
            ("project", "launch"): Budget(total=Decimal("4.2")),
        }
    )
    budgets.hold("a", SHOP, 3_000_000_000, NOON)
    error = refused(lambda: budgets.hold("b", SHOP, 1_300_000_000, NOON))
    assert error.message == (
        "The budget of the project 'launch' does not suffice: $4.2, of which $3 is spent or held by running requests. "
        "It does not renew."
    )
    assert error.details["budget"] == {
        "scope": "project",
        "period": "total",
        "limit": "4.2",
        "used": "3",
        "renews_at": None,
    }
    assert error.type == "insufficient_quota"
    assert error.param is None
    other = Caller("blog", "web")
    error = refused(lambda: budgets.hold("b", other, 2_000_000_001, NOON))
    assert "team 'web' does not suffice: $5 per day" in error.message
    assert "2026-12-01T00:00:00Z" in error.message
    assert budgets.room(Caller("cards", "print"), NOON) == 7_000_000_000
    assert budgets.room(Caller("nobody"), NOON) is None
    monthly = one(month="0")
    error = refused(lambda: monthly.hold("a", SHOP, 1, NOON))
    assert error.details["budget"]["renews_at"] == "2026-12-01T00:00:00Z"


def test_a_new_day_and_month_begin_with_nothing_spent_but_a_total_stays() -> None:
    budgets = one(day="1", month="2", total="3")
    for number in range(2):
        now = NOON - timedelta(days=1 - number)
        budgets.hold(f"{number}", SHOP, 1_000_000_000, now)
        assert budgets.room(SHOP, now) == 0
        budgets.settle(f"{number}", 900_000_000, "USD", known=True)
    december = NOON + timedelta(days=1)
    budgets.hold("over", SHOP, 100_000_000, NOON)
    assert budgets.room(SHOP, december) == 1_000_000_000
    budgets.settle("over", 50_000_000, "USD", known=True)  # it belongs to November
    assert budgets.room(SHOP, december) == 1_000_000_000
    assert budgets.room(SHOP, NOON) == 1_000_000_000  # a clock that goes back gives nothing twice
    budgets.hold("december", SHOP, 1_000_000_000, december)
    budgets.settle("december", 1_000_000_000, "USD", known=True)
    assert [account.used for account in budgets.accounts] == [1_000_000_000, 1_000_000_000, 2_850_000_000]
    assert budgets.room(SHOP, december + timedelta(days=1)) == 150_000_000


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["hold", "settle", "unknown", "void", "tomorrow"]),
        st.integers(0, 40),
        st.integers(0, 40),
        st.sampled_from([SHOP, Caller("blog", "web"), Caller("cards", "print")]),
    ),
    max_size=120,
)


@given(STEPS)
def test_whatever_happens_no_more_is_spent_than_may_be(steps: list[tuple[str, int, int, Caller]]) -> None:
    """Against sums made anew at every step from all attempts there ever were."""
    limits = {("key", "shop"): Budget(Decimal("6e-8"), Decimal("1.5e-7"), Decimal("3e-7"))}
    limits |= {("team", "web"): Budget(Decimal("9e-8"))}
    budgets, now, numbers = Budgets(limits), NOON - timedelta(days=3), itertools.count()
    attempts: dict[str, list[Any]] = {}  # payer, when, amount, whether it is final

    def used(scope: str, name: str, since: str) -> int:
        return sum(
            amount
            for payer, at, amount, _ in attempts.values()
            if getattr(payer, scope) == name and at.isoformat().startswith(since)
        )

    def left(payer: Caller) -> int | None:
        day, month = f"{now:%Y-%m-%d}", f"{now:%Y-%m}"
        rooms = []
        if payer.key == "shop":
            rooms = [60 - used("key", "shop", day), 150 - used("key", "shop", month), 300 - used("key", "shop", "")]
        if payer.team == "web":
            rooms.append(90 - used("team", "web", day))
        return min(rooms) if rooms else None

    for what, estimate, cost, payer in steps:
        running = [key for key, attempt in attempts.items() if not attempt[3]]
        if what == "tomorrow":
            now += timedelta(days=1)
        elif what == "hold":
            key, room = f"att_{next(numbers)}", left(payer)
            if room is not None and estimate > room:
                refused(partial(budgets.hold, key, payer, estimate, now))
                continue
            budgets.hold(key, payer, estimate, now)
            attempts[key] = [payer, now, estimate, False]
        elif running:
            attempt = attempts[running[cost % len(running)]]
            amount = {"settle": min(cost, attempt[2]), "unknown": attempt[2], "void": 0}[what]
            attempt[2], attempt[3] = amount, what != "unknown"
            budgets.settle(running[cost % len(running)], amount, "USD", known=what != "unknown")
        for each in (SHOP, Caller("blog", "web"), Caller("cards", "print")):
            room = left(each)
            assert budgets.room(each, now) == room
            assert room is None or room >= 0


# --- through the gateway ----------------------------------------------------------------------------------------

pytestmark = pytest.mark.anyio
PRICE = 8_000_000  # of fal/flux; gpu-fast takes 12_000_000


class Counting:
    """Requests in turn and at once, each under an id of its own."""

    def __init__(self, house: House) -> None:
        self._house, self._numbers = house, itertools.count()

    async def run(self, model: str = "fal/flux", **more: Any) -> str:
        """How one ended: made, or the error's code."""
        request_id = f"req_{next(self._numbers)}"
        try:
            await self._house.gateway.run(ask(model, **more), SHOP, request_id=request_id)
        except RequestError as error:
            return str(error.code)
        return "made"


def spent(url: str) -> tuple[int, int]:
    with Reports(url) as reports:
        [row] = reports.costs("key") or [None]
        return (row.cost_nanos, row.unsettled_nanos) if row is not None else (0, 0)


async def test_x20_two_hundred_at_once_and_money_for_fifty(tmp_path: Path) -> None:
    budgets = one(day="0.4")
    async with House(tmp_path, budgets=budgets) as house:

        async def slow(on_job: Any, on_partial: Any) -> ImageResult:
            await asyncio.sleep(0.02)
            return made((1024, 1024))

        house.wire.answers["fal"] = [slow]
        counting = Counting(house)
        outcomes = await asyncio.gather(*(counting.run() for _ in range(200)))
        assert (outcomes.count("made"), outcomes.count("insufficient_quota")) == (50, 150)
        assert len(house.wire.sent) == 50
        assert spent(house.url) == (400_000_000, 0)
        assert budgets.accounts[0].used == budgets.accounts[0].limit
        assert budgets.accounts[0].refused == 150


async def test_x20_neither_too_much_is_spent_nor_too_little(tmp_path: Path) -> None:
    chance = random.Random(5)
    async with House(tmp_path, budgets=one(total="0.4")) as house:

        async def perhaps(on_job: Any, on_partial: Any) -> ImageResult:
            await asyncio.sleep(chance.random() / 100)
            if chance.random() < 0.5:
                raise ProviderError(ErrorKind.REFUSED, "no", billed=Billed.NO)
            return made((512, 512))

        house.wire.answers["fal"] = [perhaps]
        counting, outcomes = Counting(house), list[str]()
        while "insufficient_quota" not in outcomes[-40:]:
            outcomes += await asyncio.gather(*(counting.run() for _ in range(40)))
            assert sum(spent(house.url)) <= 400_000_000
        while (outcome := await counting.run()) != "insufficient_quota":
            outcomes.append(outcome)
        assert outcomes.count("made") == 50  # all that the money is for, whatever failed in between
        assert spent(house.url) == (400_000_000, 0)


async def test_targets_that_fit_are_preferred(tmp_path: Path) -> None:
    async with House(tmp_path, budgets=one(month="0.021")) as house:
        order = Preferences(order=("gpu-fast",))
        for provider in ("gpu-fast", "fal"):  # 0.012, then 0.009 are left
            completed = await house.run(ask(preferences=order), SHOP)
            assert completed.provider == provider
        with pytest.raises(RequestError) as caught:
            await house.run(ask(preferences=order), SHOP)
        assert caught.value.code == "insufficient_quota"
        assert house.wire.sent == ["gpu-fast", "fal"]
        # What several pictures cost is held for all of them.
    async with House(tmp_path, budgets=one(month="0.031"), first_id=9) as house:
        house.wire.answers["fal"] = [made(*[(1024, 1024)] * 3)]
        with pytest.raises(RequestError):
            await house.run(ask("fal/flux", n=4), SHOP)
        assert (await house.run(ask("fal/flux", n=3), SHOP)).cost_nanos == 3 * PRICE


async def test_a_second_provider_is_asked_only_as_far_as_the_money_goes(tmp_path: Path) -> None:
    async with House(tmp_path, budgets=one(month="0.009")) as house:
        house.wire.answers["fal"] = [ProviderError(ErrorKind.NO_ANSWER, "reset")]  # may have been billed
        with pytest.raises(RequestError) as caught:
            await house.run(ask(size=ImageSize(1024, 1024)), SHOP)
        assert (caught.value.status, caught.value.code) == (504, "timeout")
        assert house.wire.sent == ["fal"]
        assert spent(house.url) == (0, PRICE)


async def test_what_has_no_price_has_no_budget(tmp_path: Path) -> None:
    async with House(tmp_path, budgets=one(month="100")) as house:
        with pytest.raises(RequestError) as caught:
            await house.run(ask("priceless-allowed"), SHOP)
        assert caught.value.status == 503
        assert (await house.run(ask("half-priced"), SHOP)).provider == "fal"
        assert "nowhere" not in house.wire.sent


async def test_a_job_is_refused_when_it_is_asked_for(tmp_path: Path) -> None:
    async with House(tmp_path, budgets=one(total="0.001")) as house:
        refused(lambda: house.gateway.check(ask(later=True), SHOP))
        house.gateway.check(ask(later=True), Caller("other"))
        assert house.gateway.quote(ask(), SHOP)["total_cost"] == "0.008"  # looking is free


@pytest.mark.parametrize("cancelled", [True, False])
async def test_what_was_never_sent_is_given_back(tmp_path: Path, cancelled: bool) -> None:
    budgets = one(total="0.008")
    async with House(tmp_path, budgets=budgets) as house:
        if cancelled:
            writing = asyncio.Event()

            async def never(row: Any) -> None:
                writing.set()
                await asyncio.Event().wait()

            house.ledger.open = never  # type: ignore[method-assign]
            waiting = asyncio.create_task(house.run(ask(), SHOP))
            await writing.wait()
            assert budgets.room(SHOP, house.at) == 0
            waiting.cancel()
            await asyncio.wait([waiting])
        else:
            await house.ledger.close()
            with pytest.raises(RequestError, match="ledger cannot be written"):
                await house.run(ask(), SHOP)
        assert budgets.room(SHOP, house.at) == PRICE


async def test_evidence_that_comes_later_frees_what_was_held(tmp_path: Path) -> None:
    budgets = one(total="1")
    async with Stage(tmp_path, budgets=budgets) as stage:

        async def late(on_job: Any, on_partial: Any) -> ImageResult:
            await on_job(JOB)
            raise ProviderError(ErrorKind.NO_ANSWER, "no complete answer within 120 seconds")

        stage.wire.answers["fal"] = [late, ProviderError(ErrorKind.CANCELLED, "removed", billed=Billed.NO)]
        with pytest.raises(RequestError):
            await stage.run(ask("fal/flux"), SHOP)
        await stage.asides()
        assert [row.state for row in stage.rows()] == ["void"]
        assert budgets.room(SHOP, NOON) == 1_000_000_000


async def test_a_restart_knows_what_was_spent(tmp_path: Path) -> None:
    async with House(tmp_path, budgets=one(day="0.04", total="0.04")) as house:
        counting = Counting(house)
        assert [await counting.run() for _ in range(2)] == ["made", "made"]
        house.wire.answers["fal"] = [ProviderError(ErrorKind.NO_ANSWER, "reset")]
        assert await counting.run() == "timeout"
    budgets = one(day="0.04", total="0.04")
    async with House(tmp_path, budgets=budgets, first_id=100) as house:
        remember(budgets, house.url, house.at)
        assert [(account.spent, account.held) for account in budgets.accounts] == [(2 * PRICE, PRICE)] * 2
        assert [await counting_.run() for counting_ in [Counting(house)] * 3] == ["made", "made", "insufficient_quota"]
    tomorrow = one(day="0.04", total="0.04")
    async with House(tmp_path, budgets=tomorrow, first_id=200) as house:
        remember(tomorrow, house.url, house.at + timedelta(days=1))
        assert [account.used for account in tomorrow.accounts] == [0, 5 * PRICE]


async def test_a_scrape_shows_them(tmp_path: Path) -> None:
    budgets = Budgets({("key", "shop"): Budget(day=Decimal(2), warn_at=0.5), ("team", "web"): Budget(total=Decimal(9))})
    budgets.hold("a", SHOP, 500_000_000, NOON)
    assert budgets.refusal(SHOP, NOON, first=True).status == 429
    telemetry = Telemetry(targets=(), version="1", budgets=["shop", "web"], log=object())
    accounts = [account.at(NOON) for account in budgets.accounts]
    telemetry.read_from(Sources(dict, lambda: 0, lambda: 0.0, lambda: 0, budgets=lambda: accounts))
    text = (await telemetry.scrape())[0].decode()
    day = '{id="shop",period="day",scope="key"}'
    for name, value in (("limit_usd", 2.0), ("warning_usd", 1.0), ("spent_usd", 0.5), ("rejections_total", 1.0)):
        assert f"pixelroute_budget_{name}{day} {value}\n" in text
    assert 'pixelroute_budget_spent_usd{id="web",period="total",scope="team"} 0.5\n' in text
    accounts = [account.at(NOON + timedelta(days=1)) for account in budgets.accounts]
    assert f"pixelroute_budget_spent_usd{day} 0.0\n" in (await telemetry.scrape())[0].decode()
