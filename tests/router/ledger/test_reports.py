"""Every figure of every report against the same figure worked out from the records themselves."""

from __future__ import annotations

import asyncio
import random
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest

from pricing import Expected, ImageSize, Reported, Usage
from router.ledger import (
    Ledger,
    LedgerError,
    Opening,
    Reports,
    Role,
    Settlement,
    State,
    expected_as_dict,
    usage_as_dict,
    usage_from_dict,
)
from router.ledger.reports import CUTS, PAGE, CostRow
from tests.router.ledger.builders import NOON, megapixel_item, opening, settlement

START = datetime(2026, 10, 30, tzinfo=UTC)
END = START + timedelta(days=5)


@dataclass
class Life:
    """One attempt and all that happened to it."""

    opening: Opening
    settlements: list[Settlement]
    adjustments: list[int]

    @property
    def last(self) -> Settlement | None:
        return self.settlements[-1] if self.settlements else None

    @property
    def resolved(self) -> Settlement | None:
        return self.last if self.last is not None and self.last.state is not State.UNKNOWN else None


def lives(luck: random.Random) -> list[Life]:
    """A few days of a busy installation: several currencies, failovers, unknowns, corrections, hostile names."""
    made = []
    moment = START
    for number in range(300):
        moment += timedelta(seconds=luck.uniform(0, 2880))
        provider = luck.choice(["fal", "openai", "bfl"])
        model = luck.choice(["flux.2-dev-turbo", "gpt-image"])
        size = ImageSize(*luck.choice([(512, 512), (1024, 1024), (1920, 1080)]))
        tags = luck.choice([{}, {"customer": "acme"}, {"customer": "=1+1", 'we"ird.name': "x"}, {"customer": "Zoë"}])
        currency = luck.choice(["USD", "USD", "EUR"])
        first = opening(
            f"a{number}",
            opened_at=moment,
            key=luck.choice(["studio", "web"]),
            team=luck.choice([None, "media", "shop"]),
            project=luck.choice([None, "catalogue"]),
            tags=tags,
            user=luck.choice([None, "u1"]),
            operation=luck.choice(["generate", "edit"]),
            model=model,
            provider=provider,
            target=f"{provider}/{model}",
            images=luck.choice([1, 4]),
            estimate_nanos=luck.randrange(10**8),
            currency=currency,
            expected=expected_as_dict(Expected(size=luck.choice([None, size]))),
        )
        tries = [first]
        while luck.random() < 0.3:
            tries.append(
                replace(
                    tries[-1],
                    attempt_id=f"{first.attempt_id}-{len(tries)}",
                    attempt_no=len(tries) + 1,
                    role=luck.choice([Role.FAILOVER, Role.RETRY, Role.RESCUE]),
                    provider=(other := luck.choice(["fal", "openai", "bfl"])),
                    target=f"{other}/{model}",
                )
            )
        made += [Life(one, outcomes(luck, one, size), []) for one in tries]
    for life in made:
        if life.resolved is not None:
            life.adjustments = [luck.randrange(-(10**7), 10**7) for _ in range(luck.choice([0, 0, 0, 1, 2]))]
    return made


def outcomes(luck: random.Random, one: Opening, size: ImageSize) -> list[Settlement]:
    kind = luck.choice(["picture", "picture", "picture", "void", "unknown", "found out", "open", "unpriced", "wasted"])
    amount = luck.randrange(10**9)
    at = one.opened_at + timedelta(seconds=3)
    common: dict[str, Any] = {"recorded_at": at, "currency": one.currency, "latency_ms": luck.randrange(60_000)}
    unknown = settlement(
        one.attempt_id,
        State.UNKNOWN,
        amount_nanos=one.estimate_nanos,
        evidence=luck.choice(["response", "restart"]),
        **common,
    )
    pictures = luck.randrange(1, 4)
    picture = settlement(
        one.attempt_id,
        amount_nanos=amount,
        list_nanos=amount + luck.randrange(100),
        usage=usage_as_dict(Usage(outputs=(size,) * pictures, inputs=luck.choice([(), (size, None)]))),
        items=(
            megapixel_item(format(Decimal(size.pixels * pictures) / 1_048_576, "f"), str(2 * pictures)),
            {"metric": "request", "quantity": "1", "billable_quantity": "1"},
        ),
        **common,
    )
    match kind:
        case "picture":
            return [picture]
        case "wasted":
            return [replace(picture, delivered=False, outcome="bad_response")]
        case "unpriced":
            return [replace(picture, amount_nanos=0, list_nanos=0, basis="unpriced")]
        case "void":
            return [settlement(one.attempt_id, State.VOID, outcome="rate_limited", **common)]
        case "unknown":
            return [unknown]
        case "found out":  # in a currency of the invoice's own
            late = replace(picture, recorded_at=at + timedelta(days=40), evidence="invoice", delivered=False)
            return [unknown, replace(late, currency=luck.choice(["USD", "EUR", "GBP"]))]
    return []


@dataclass
class Installation:
    path: Path
    lives: list[Life]


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    path = tmp_path_factory.mktemp("reports") / "ledger.db"
    made = lives(random.Random(20261120))

    async def write() -> None:
        async with Ledger(path, clock=lambda: NOON, reserve_bytes=0) as ledger:
            await asyncio.gather(*(ledger.open(life.opening) for life in made))
            for turn in range(2):
                await asyncio.gather(
                    *(ledger.settle(life.settlements[turn]) for life in made if len(life.settlements) > turn)
                )
            for life in made:
                for amount in life.adjustments:
                    assert life.resolved is not None
                    await ledger.adjust(life.opening.attempt_id, amount, life.resolved.currency, "why", "who", NOON)

    asyncio.run(write())
    return Installation(path, made)


@pytest.fixture
def reports(installation: Installation) -> Iterator[Reports]:
    with Reports(installation.path) as reports:
        yield reports


def recomputed(lives: list[Life], group: Callable[[Opening], str | None]) -> dict[tuple[str | None, str], CostRow]:
    """The rows a report should have, by group and currency, from the records themselves."""
    grouped: dict[tuple[str | None, str], list[Life]] = defaultdict(list)
    for life in lives:
        currency = life.last.currency if life.last is not None else life.opening.currency
        grouped[group(life.opening), currency].append(life)
    return {key: _row(key, members) for key, members in grouped.items()}


def _row(key: tuple[str | None, str], members: list[Life]) -> CostRow:
    ended = [(life, life.resolved) for life in members if life.resolved is not None]
    waiting = [life for life in members if life.resolved is None]
    costs = {life.opening.attempt_id: end.amount_nanos + sum(life.adjustments) for life, end in ended}
    sizes = [[ImageSize.parse(text) for text in end.usage.get("outputs", ())] for _, end in ended]
    priced = [item for _, end in ended for item in end.items if item["metric"] == "megapixel"]
    return CostRow(
        group=key[0],
        currency=key[1],
        requests=len({life.opening.request_id for life in members}),
        attempts=len(members),
        images=sum(map(len, sizes)),
        output_pixels=sum(size.pixels for outputs in sizes for size in outputs),
        metered_nanomp=sum(round(Fraction(item["quantity"]) * 10**9) for item in priced),
        billed_nanomp=sum(round(Fraction(item["billable_quantity"]) * 10**9) for item in priced),
        cost_nanos=sum(costs.values()),
        unsettled=len(waiting),
        unsettled_nanos=sum(life.last.amount_nanos if life.last else life.opening.estimate_nanos for life in waiting),
        undelivered_nanos=sum(costs[life.opening.attempt_id] for life, end in ended if not end.delivered),
        list_nanos=sum(end.list_nanos for _, end in ended),
        unpriced=sum(life.last is not None and life.last.basis == "unpriced" for life in members),
    )


BY: dict[str, Callable[[Opening], Any]] = {
    **{name: attrgetter(name) for name in CUTS if name not in ("hour", "day", "month")},
    "hour": lambda one: one.opened_at.isoformat()[:13],
    "day": lambda one: one.opened_at.isoformat()[:10],
    "month": lambda one: one.opened_at.isoformat()[:7],
    "tag:customer": lambda one: one.tags.get("customer"),
    'tag:we"ird.name': lambda one: one.tags.get('we"ird.name'),
    "tag:nobody": lambda one: None,
}
BERLIN = timezone(timedelta(hours=1))
PERIODS = [
    (None, None),
    (START + timedelta(days=1), START + timedelta(days=3)),
    (datetime(2026, 11, 1, 1, tzinfo=BERLIN), None),  # midnight in UTC
    (None, START + timedelta(hours=7, microseconds=1)),
    (END, START),
]


@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("period", PERIODS)
def test_costs_are_exact(
    installation: Installation, reports: Reports, by: str, period: tuple[datetime | None, datetime | None]
) -> None:
    since, until = period[0] or datetime.min.replace(tzinfo=UTC), period[1] or datetime.max.replace(tzinfo=UTC)
    chosen = [life for life in installation.lives if since <= life.opening.opened_at < until]
    report = reports.report(by, *period)
    assert {(row.group, row.currency): row for row in report.rows} == recomputed(chosen, BY[by])
    assert {(None, row.currency): row for row in report.totals} == recomputed(chosen, lambda _: None)
    assert reports.costs(by, *period) == list(report.rows)
    assert reports.totals(*period) == list(report.totals)
    for total in report.totals:  # columns add up, without a nano lost
        parts = [row for row in report.rows if row.currency == total.currency]
        for column in ("attempts", "images", "cost_nanos", "unsettled_nanos", "undelivered_nanos", "list_nanos"):
            assert sum(getattr(row, column) for row in parts) == getattr(total, column)
    keys = [
        (row.currency, *((row.group,) if by in ("hour", "day", "month") else (-row.cost_nanos,))) for row in report.rows
    ]
    assert keys == sorted(keys)


def test_the_period_includes_its_beginning_and_not_its_end(installation: Installation, reports: Reports) -> None:
    moment = installation.lives[10].opening.opened_at
    together = sum(life.opening.opened_at == moment for life in installation.lives)
    assert sum(row.attempts for row in reports.totals(moment, moment + timedelta(microseconds=1))) == together
    assert reports.totals(moment, moment) == []
    before = sum(row.attempts for row in reports.totals(None, moment))
    after = sum(row.attempts for row in reports.totals(moment, None))
    assert before + after == len(installation.lives)


def test_an_unknown_cut_is_named(reports: Reports) -> None:
    with pytest.raises(ValueError, match="by: 'color'"):
        reports.report("color")
    with pytest.raises(ValueError, match="by:"):
        reports.report("provider; DROP TABLE attempt")


def test_amounts_are_decimals_of_whole_units(reports: Reports) -> None:
    (row, *_) = reports.totals()
    assert row.cost * 10**9 == row.cost_nanos
    assert row.megapixels * 2**20 == row.output_pixels


def test_unsettled_attempts_are_listed_in_order(installation: Installation, reports: Reports) -> None:
    expected = [life for life in installation.lives if life.resolved is None]
    found = reports.unsettled()
    assert [record.opening for record in found] == [life.opening for life in expected]
    assert [record.settlement for record in found] == [life.last for life in expected]
    assert [record.state for record in found] == [life.last.state if life.last else State.OPEN for life in expected]
    assert [record.unsettled_nanos for record in found] == [
        life.last.amount_nanos if life.last else life.opening.estimate_nanos for life in expected
    ]
    assert [one.opening for one in reports.unresolved()] == [record.opening for record in found]


def test_a_request_shows_all_that_happened(installation: Installation, reports: Reports) -> None:
    by_request: dict[str, list[Life]] = defaultdict(list)
    for life in installation.lives:
        by_request[life.opening.request_id].append(life)
    for request_id, members in by_request.items():
        record = reports.request(request_id)
        assert record is not None
        assert [attempt.opening for attempt in record.attempts] == [life.opening for life in members]
        for attempt, life in zip(record.attempts, members, strict=True):
            assert [entry.settlement for entry in attempt.entries if entry.settlement] == life.settlements
            assert [entry.amount_nanos for entry in attempt.entries if entry.kind == "adjusted"] == life.adjustments
            assert attempt.settlement == life.last
        delivered = [life for life in members if life.last is not None and life.last.delivered]
        assert (record.delivered.opening if record.delivered else None) == (delivered[0].opening if delivered else None)
    assert reports.request("req_nobody") is None


def test_recent_requests_come_latest_first(installation: Installation, reports: Reports) -> None:
    order = list(dict.fromkeys(life.opening.request_id for life in reversed(installation.lives)))
    assert [record.request_id for record in reports.recent(20)] == order[:20]
    assert [record.request_id for record in reports.recent(10_000)] == order
    assert reports.recent(1)[0] == reports.request(order[0])
    assert reports.recent(0) == []


@pytest.mark.parametrize("period", PERIODS)
def test_usages_are_what_was_settled(
    installation: Installation,
    reports: Reports,
    period: tuple[datetime | None, datetime | None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("router.ledger.reports.PAGE", 7)
    since, until = period[0] or datetime.min.replace(tzinfo=UTC), period[1] or datetime.max.replace(tzinfo=UTC)
    expected = [
        (life.opening, life.resolved, usage_from_dict(life.resolved.usage))
        for life in installation.lives
        if life.resolved and life.resolved.state is State.SETTLED and since <= life.opening.opened_at < until
    ]
    assert [(one.opening, one.settlement, one.usage) for one in reports.usages(*period)] == expected


def test_samples_are_what_was_seen_to_end(installation: Installation, reports: Reports) -> None:
    since = START + timedelta(days=2)
    expected = []
    for life in installation.lives:
        if life.opening.opened_at < since:
            continue
        for seen in life.settlements:
            if seen.evidence != "response":
                continue
            size = life.opening.expected["size"]
            count, pixels = life.opening.images, ImageSize.parse(size).pixels * life.opening.images if size else None
            if seen.usage.get("outputs"):
                outputs = [ImageSize.parse(text) for text in seen.usage["outputs"]]
                count, pixels = len(outputs), sum(size.pixels for size in outputs)
            expected.append(
                (
                    life.opening.target,
                    life.opening.operation,
                    count,
                    pixels and pixels / 2**20,
                    seen.outcome,
                    seen.latency_ms,
                    seen.recorded_at,
                )
            )
    assert list(map(tuple, reports.samples(since))) == expected
    assert len(expected) > 50
    assert list(reports.samples(END + timedelta(days=1))) == []


def test_one_reader_serves_several_threads(installation: Installation, reports: Reports) -> None:
    expected = (reports.report("provider"), list(reports.samples()))
    found: list[object] = []

    def ask() -> None:
        for _ in range(10):
            found.append((reports.report("provider"), list(reports.samples())))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 40


@pytest.mark.anyio
async def test_reports_see_what_a_running_router_has_committed(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    async with Ledger(path, reserve_bytes=0) as ledger:
        with Reports(f"sqlite:///{path}") as reports:  # opened before there is anything
            for number in range(5):
                await ledger.open(opening(f"a{number}"))
                assert reports.totals()[0].attempts == number + 1
            iterator = reports.samples()
            await ledger.settle(settlement("a0"))
            assert next(iterator).target == "fal/flux.2-dev-turbo"
            await ledger.open(opening("late"))  # a half-read iterator is in nobody's way
            assert reports.totals()[0].attempts == 6
    with Reports(str(path)) as reports:  # and when it has stopped
        assert reports.totals()[0].attempts == 6


@pytest.mark.anyio
async def test_pages_join_without_a_seam(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    async with Ledger(path, reserve_bytes=0) as ledger:
        for turn in range(0, 2 * PAGE + 1, 500):
            names = [f"a{number}" for number in range(turn, min(turn + 500, 2 * PAGE + 1))]
            await asyncio.gather(*(ledger.open(opening(name)) for name in names))
            await asyncio.gather(*(ledger.settle(settlement(name)) for name in names))
    with Reports(path) as reports:
        assert [one.opening.attempt_id for one in reports.usages()] == [f"a{number}" for number in range(2 * PAGE + 1)]


def test_there_must_be_a_ledger(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="no ledger"):
        Reports(tmp_path / "missing.db")


@pytest.mark.parametrize(
    "usage",
    [
        Usage(),
        Usage(
            outputs=(ImageSize(1, 2), ImageSize(3, 4)),
            inputs=(None, ImageSize(5, 6)),
            tokens={"text_input": 7},
            requests=2,
            seconds=Decimal("0.000000000000000000012"),
            steps=0,
            attributes={"quality": "high"},
            reported=Reported(Decimal("8E-3"), "USD"),
        ),
    ],
)
def test_usage_travels_without_loss(usage: Usage) -> None:
    assert usage_from_dict(usage_as_dict(usage)) == usage
