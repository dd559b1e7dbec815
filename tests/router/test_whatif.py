"""Past requests through another policy: known answers, and agreement with the record where nothing is changed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pricing import Expected, ImageSize
from router import booking
from router.errors import Billed, ErrorKind, ProviderError
from router.ledger import Ledger, Opening, Reports, Role, Settlement, State, expected_as_dict
from router.routing import Candidate, Outcome, Preset, RouteRequest, RoutingSettings, Selector, pack
from router.whatif import Comparison, History, Past, Seen, compare
from tests.router.ledger.builders import opening, settlement

DAY = datetime(2026, 11, 20, tzinfo=UTC)
PRICES = {"a/m": 10_000_000, "b/m": 5_000_000}


@dataclass
class Attempt:
    target: str
    seconds: float
    kind: ErrorKind | None = None
    state: State = State.SETTLED
    cost: int | None = None  # None: as predicted


Fate = Callable[[str, float], Attempt]  # what a target does at a time


class Book:
    """Writes a ledger as a gateway would that routes by a policy, in virtual time."""

    def __init__(self, prices: dict[str, int], settings: RoutingSettings | None = None, seed: int = 0) -> None:
        self.selector = Selector(settings, random=random.Random(seed))
        self.prices = prices
        self.rows: list[tuple[Opening, Settlement]] = []
        self.firsts: list[str] = []

    def request(self, at: float, fate: Fate, *, excluded: dict[str, str] | None = None) -> None:
        """One request, from its first attempt to its last."""
        candidates = tuple(
            Candidate(target, target.partition("/")[0], price, price, excluded=(excluded or {}).get(target))
            for target, price in self.prices.items()
        )
        asked = RouteRequest("m", "generate", candidates, megapixels=1.0, deadline_s=280.0)
        number, now, tried = len(self.firsts), at, list[str]()
        for attempt_no in (1, 2, 3):
            decision = self.selector.choose(asked, now, tried, now - at)
            assert decision.target is not None
            if attempt_no == 1:
                self.firsts.append(decision.target)
            what = fate(decision.target, now)
            name = f"att_{number}_{attempt_no}"
            self.selector.on_start(decision.target, asked, now, name)
            self.rows.append(self._row(name, number, attempt_no, decision, what, now))
            now += what.seconds
            cost = self.rows[-1][1].amount_nanos
            if what.kind is None:
                self.selector.on_end(name, Outcome.success(what.seconds, cost), now)
                return
            billed = {State.SETTLED: Billed.YES, State.VOID: Billed.NO, State.UNKNOWN: Billed.MAYBE}[what.state]
            self.selector.on_end(name, booking.outcome(ProviderError(what.kind, "", billed=billed), cost), now)
            step = self.selector.after(
                asked, what.kind, billed, attempt_no, now - at, now, target=decision.target, tried=tried
            )
            if step.action != "failover":
                return
            tried.append(decision.target)

    def _row(self, name: str, number: int, attempt_no: int, decision: Any, what: Attempt, now: float) -> Any:
        opened = opening(
            name,
            request_id=f"req_{number}",
            attempt_no=attempt_no,
            role=Role.FIRST if attempt_no == 1 else Role.FAILOVER,
            opened_at=DAY + timedelta(seconds=now),
            model="m",
            target=decision.target,
            provider=decision.target.partition("/")[0],
            decision=pack(decision),
            expected=expected_as_dict(Expected(size=ImageSize(1024, 1024))),
        )
        cost = 0 if what.state is State.VOID else self.prices[decision.target] if what.cost is None else what.cost
        settled = settlement(
            name,
            what.state,
            recorded_at=DAY + timedelta(seconds=now + what.seconds),
            outcome="success" if what.kind is None else "server_error",
            error_kind=what.kind and what.kind.value,
            amount_nanos=cost,
            list_nanos=cost,
            delivered=what.kind is None,
            latency_ms=round(what.seconds * 1000),
        )
        return opened, settled

    def write(self, path: Path) -> Path:
        async def run() -> None:
            async with Ledger(path, reserve_bytes=0) as ledger:
                await asyncio.gather(*(ledger.open(opened) for opened, _ in self.rows))
                await asyncio.gather(*(ledger.settle(settled) for _, settled in self.rows))

        asyncio.run(run())
        return path


def replayed(
    path: Path,
    *,
    value_of_time: float | None = None,
    runs: int = 3,
    settings: RoutingSettings | None = None,
    **change: Any,
) -> tuple[Comparison, Sequence[Past]]:
    history = History(timeout_s=280.0, **change)
    with Reports(path) as reports:
        past = history.read(reports.answered())
    if value_of_time is not None:
        settings = RoutingSettings(presets={"balanced": Preset(value_of_time)})
    return compare(history, past, lambda seed: Selector(settings, random=random.Random(seed)), runs, 0), past


def two_targets(tmp_path: Path) -> Path:
    """Ten requests at the dear and quick target, ten at the cheap and slow one."""
    book = Book(PRICES)
    for number in range(20):
        shut = {"b/m": "ignore"} if number % 2 else {"a/m": "ignore"}
        book.request(60.0 * number, lambda target, _: Attempt(target, 2.0 if target == "a/m" else 4.0), excluded=shut)
        # What was ruled out by the caller stays so; here both were free to be chosen.
        opened, settled = book.rows[-1]
        names, rows = opened.decision["rows"]
        for row in rows:
            row_as_list = list(row)
            row_as_list[names.index("why")] = None
            rows[rows.index(row)] = row_as_list
        book.rows[-1] = opened, settled
    return book.write(tmp_path / "ledger.db")


def test_where_waiting_is_worth_nothing_all_go_to_the_cheap_one(tmp_path):
    comparison, _ = replayed(two_targets(tmp_path), value_of_time=0.0, policy="balanced")
    then = comparison.recorded
    assert (then.requests, then.delivered, then.failed, then.attempts) == (20, 20, 0, 20)
    assert then.money_nanos == then.predicted_nanos == 10 * 10_000_000 + 10 * 5_000_000
    assert dict(then.firsts) == {"a/m": 10, "b/m": 10}
    assert (then.quantile(0.5), then.quantile(0.95)) == (2.0, 4.0)
    for now in comparison.runs:
        assert dict(now.firsts) == {"b/m": 20}
        assert now.money_nanos == now.predicted_nanos == 20 * 5_000_000
        assert (now.quantile(0.5), now.quantile(0.95)) == (4.0, 4.0)
        assert (now.delivered, now.failed, now.guessed) == (20, 0, 0)


def test_where_waiting_is_worth_much_all_go_to_the_quick_one(tmp_path):
    comparison, _ = replayed(two_targets(tmp_path), value_of_time=0.1, policy="balanced")
    for now in comparison.runs:
        assert now.firsts["a/m"] >= 18  # it has to find out
        assert now.quantile(0.5) == 2.0


def test_providers_left_out_and_those_that_were_never_used(tmp_path):
    path = two_targets(tmp_path)
    comparison, _ = replayed(path, only=("a",))
    assert comparison.spread(lambda side: side.money_nanos) == (200_000_000,) * 3
    comparison, _ = replayed(path, ignore=("a/m", "b/m"))
    assert comparison.spread(lambda side: side.failed) == (20, 20, 20)
    assert comparison.spread(lambda side: side.money_nanos) == (0, 0, 0)


def test_what_no_record_tells_is_guessed_and_counted(tmp_path):
    book = Book({"a/m": 10_000_000, "new/m": 1_000_000}, RoutingSettings(explore_share=0.0))
    for number in range(10):
        book.request(60.0 * number, lambda target, _: Attempt(target, 2.0), excluded={"new/m": "drained"})
    comparison, _ = replayed(book.write(tmp_path / "ledger.db"), only=("a/m",))
    assert comparison.spread(lambda side: side.guessed) == (0, 0, 0)
    book = Book({"a/m": 10_000_000, "new/m": 1_000_000})
    book.request(0.0, lambda target, _: Attempt(target, 2.0))
    only = "a/m" if book.firsts == ["new/m"] else "new/m"
    comparison, _ = replayed(book.write(tmp_path / "other.db"), only=(only,))
    assert comparison.spread(lambda side: side.guessed) >= (1, 1, 1)


def weather(seed: int) -> Fate:
    """Two targets that vary; the cheap one has a bad hour."""
    rng = random.Random(seed)

    def fate(target: str, at: float) -> Attempt:
        seconds = round(rng.lognormvariate(0.7 if target == "a/m" else 1.4, 0.4), 3)
        bad = 0.6 if target == "b/m" and 3600 < at < 7200 else 0.02
        if rng.random() < bad:
            return Attempt(target, seconds, ErrorKind.SERVER_ERROR, State.VOID)
        if rng.random() < 0.03:
            return Attempt(target, seconds, ErrorKind.REFUSED, State.VOID)
        return Attempt(target, seconds)

    return fate


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Book]:
    book, fate = Book(PRICES), weather(1)
    for number in range(600):
        book.request(20.0 * number, fate)
    return book.write(tmp_path_factory.mktemp("ledger") / "ledger.db"), book


def test_the_same_policy_agrees_with_the_record(day):
    path, book = day
    comparison, past = replayed(path)
    then = comparison.recorded
    assert then.requests == 600 == len(past)
    assert sum(then.firsts.values()) == 600
    assert min(then.firsts.values()) > 30, "the record should hold something of both"
    assert then.firsts == {name: book.firsts.count(name) for name in set(book.firsts)}
    # Days of the same weather and other luck differ by 18 requests of 600 (standard deviation), and so do replays: each
    # stays within three of these, and their mean, which has no luck but the day's, within one and a half.
    off = [now.firsts["a/m"] - then.firsts["a/m"] for now in comparison.runs]
    assert max(map(abs, off)) <= 3 * 18
    assert abs(sum(off)) <= len(off) * 1.5 * 18
    for now in comparison.runs:
        assert now.money_nanos == pytest.approx(then.money_nanos, rel=0.05)
        assert abs(now.failed - then.failed) <= 6
        assert now.refused == then.refused
        assert now.quantile(0.5) == pytest.approx(then.quantile(0.5), rel=0.05)
        assert now.guessed == 0


def test_cheapest_is_never_dearer(day):
    path, _ = day
    comparison, _ = replayed(path, policy="cheapest")
    _, _, highest = comparison.spread(lambda side: side.predicted_nanos)
    assert highest <= comparison.recorded.predicted_nanos
    fast, _ = replayed(path, policy="fastest")
    assert fast.spread(lambda side: side.quantile(0.5) or 0.0)[2] < (comparison.recorded.quantile(0.5) or 0.0) * 1.02


def test_equal_seeds_give_equal_answers(day):
    path, _ = day
    one, _ = replayed(path, policy="cheapest", runs=1)
    two, _ = replayed(path, policy="cheapest", runs=1)
    assert one.runs == two.runs


def test_what_cannot_be_played_is_left_out_and_counted(tmp_path):
    book = Book(PRICES)
    book.request(0.0, lambda target, _: Attempt(target, 2.0))
    book.request(60.0, lambda target, _: Attempt(target, 2.0, ErrorKind.CANCELLED, State.UNKNOWN))
    book.rows.append((opening("old", opened_at=DAY), settlement("old", recorded_at=DAY)))
    history = History(timeout_s=280.0)
    with Reports(book.write(tmp_path / "ledger.db")) as reports:
        assert len(history.read(reports.answered())) == 1
        assert history.requests == reports.count() == 3
    assert history.left_out == {"given up by the client or the router": 1, "decision not readable": 1}


@given(price=st.integers(0, 10**12), cost=st.integers(0, 10**12), predicted=st.integers(1, 10**12))
def test_an_outcome_at_another_price_is_exact(price, cost, predicted):
    seen = Seen("a/m", "generate", "", 0.0, 1.0, None, Billed.YES, cost, predicted)
    found = seen.cost_at(price)
    assert isinstance(found, int)
    assert abs(Decimal(found) - Decimal(price) * cost / predicted) <= Decimal("0.5000001")
    assert seen.cost_at(predicted) == cost
