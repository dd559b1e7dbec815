import asyncio
import io
import json
import random
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pricing import Basis, Charge, LineItem, load_price_books, money
from router.events import AttemptFinished, Observer, RequestFinished
from router.logs import Redactor, RequestLog
from router.metrics import ATTEMPT_OUTCOMES
from router.telemetry import Sources, Telemetry
from router.types import Operation, Target

BOTH = {Operation.GENERATE: "a", Operation.EDIT: "b"}
TARGETS = (
    Target("fal/flux", "fal", "flux", BOTH),
    Target("spot/flux", "spot", "flux", BOTH),
    Target("openai/gpt", "openai", "gpt", BOTH),
)
REQUEST = RequestFinished(
    request_id="req_1",
    operation="generate",
    model="flux",
    outcome="success",
    code=200,
    duration_s=1.5,
    overhead_s=0.002,
    attempts=1,
    provider="fal",
    target="fal/flux",
    images=1,
    cost_nanos=16_000_000,
    basis="measured",
    key="app",
    team="art",
    body_in=300,
    body_out=2_000_000,
    reason="cheapest",
    mp_out=1.9775390625,
)


def item(type_: str, metric: str, nanos: int, quantity: str = "1", billable: str = "1") -> dict[str, Any]:
    return LineItem(type_, metric, Decimal(quantity), Decimal(billable), money(nanos), nanos).as_dict()


ATTEMPT = AttemptFinished(
    provider="fal",
    model="flux",
    operation="generate",
    outcome="success",
    duration_s=1.4,
    ttfb_s=0.2,
    queue_s=0.3,
    images=1,
    delivered=True,
    amount_nanos=16_000_000,
    items=(item("output", "megapixel", 16_000_000, "1.9775390625", "2"),),
    output_pixels=1920 * 1080,
    computed_nanos=16_000_000,
    quoted_nanos=16_000_000,
    team="art",
)


class Scrape:
    """An exposition, read back the way Prometheus reads it."""

    def __init__(self, telemetry: Telemetry) -> None:
        body, _ = telemetry.exposition()
        self.text = body.decode()
        self.samples = [
            (sample.name.removeprefix("pixelroute_"), sample.labels, sample.value)
            for family in text_string_to_metric_families(self.text)
            for sample in family.samples
        ]

    def __call__(self, name: str, **labels: str) -> float:
        """The sum over all series that have these labels."""
        found = [value for series, has, value in self.samples if series == name and labels.items() <= has.items()]
        assert found, f"no series {name} {labels}"
        return sum(found)

    def series(self, name: str) -> list[dict[str, str]]:
        return [labels for series, labels, value in self.samples if series == name and value]


class Log(RequestLog):
    """Request lines, kept."""

    def __init__(self) -> None:
        self._kept = io.BytesIO()
        super().__init__(Redactor(), self._kept)

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._kept.getvalue().splitlines()]


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def telemetry(log: Log) -> Telemetry:
    return Telemetry(targets=TARGETS, teams=("art", "shop"), version="1.2.3", log=log)


def test_it_is_an_observer(telemetry: Telemetry) -> None:
    observer: Observer = telemetry
    observer.request_started("generate")
    assert Scrape(telemetry)("requests_in_flight", operation="generate") == 1


def test_a_request_counts_once_and_leaves_the_gauge(telemetry: Telemetry) -> None:
    telemetry.request_started("generate")
    telemetry.request_finished(REQUEST)
    scrape = Scrape(telemetry)
    assert scrape("requests_in_flight") == 0
    assert scrape("requests_total") == 1
    assert scrape("requests_total", operation="generate", model="flux", outcome="success", code="200") == 1
    assert scrape("request_duration_seconds_sum", outcome="success") == 1.5
    assert scrape("overhead_seconds_bucket", le="0.0025") == 1
    assert scrape("overhead_seconds_bucket", le="0.001") == 0
    assert scrape("request_body_bytes_sum") == 300
    assert scrape("response_body_bytes_sum") == 2_000_000
    assert scrape("attempts_per_request_count") == 1


def test_the_canonical_line(telemetry: Telemetry, log: Log) -> None:
    telemetry.request_finished(REQUEST)
    telemetry.request_finished(replace(REQUEST, outcome="error", code=502, error_code="all_providers_failed"))
    (first, second) = log.lines
    assert (first.pop("level"), second.pop("level")) == ("info", "error")
    assert first.pop("ts").endswith("Z")
    assert first == {
        "event": "request",
        "request_id": "req_1",
        "key": "app",
        "team": "art",
        "operation": "generate",
        "model": "flux",
        "provider": "fal",
        "target": "fal/flux",
        "reason": "cheapest",
        "attempts": 1,
        "outcome": "success",
        "code": 200,
        "error_code": None,
        "ms": 1500.0,
        "overhead_ms": 2.0,
        "images": 1,
        "mp_in": 0.0,
        "mp_out": 1.977539,
        "cost": "0.016",
        "currency": "USD",
        "cost_basis": "measured",
        "retry_count": 0,
        "body_in": 300,
        "body_out": 2_000_000,
    }


def test_a_success_counts_time_pictures_megapixels_and_money(telemetry: Telemetry) -> None:
    telemetry.attempt_started("fal")
    assert Scrape(telemetry)("provider_in_flight", provider="fal") == 1
    telemetry.attempt_finished(ATTEMPT)
    scrape = Scrape(telemetry)
    target = {"provider": "fal", "model": "flux"}
    assert scrape("provider_in_flight", provider="fal") == 0
    assert scrape("provider_attempts_total", **target, operation="generate", outcome="success") == 1
    assert scrape("provider_duration_seconds_count", **target) == 1
    assert scrape("provider_failure_duration_seconds_count") == 0
    assert scrape("provider_ttfb_seconds_sum") == 0.2
    assert scrape("provider_queue_seconds_sum") == 0.3
    assert scrape("images_total", **target) == 1
    assert scrape("megapixels_total", direction="output", basis="exact") == pytest.approx(1.9775390625)
    assert scrape("megapixels_total", direction="output", basis="billed") == 2
    assert scrape("cost_usd_total", **target, component="output_megapixel", basis="computed") == 0.016
    assert scrape("team_cost_usd_total", team="art", model="flux") == 0.016
    assert scrape("unpriced_requests_total") == 0
    for absent in ("undelivered_cost_usd_total", "price_drift_usd_total", "quote_error_usd_total"):
        assert scrape.series(absent) == []


def test_a_failure_stays_out_of_the_latency_of_successes(telemetry: Telemetry) -> None:
    failed = replace(
        ATTEMPT, outcome="timeout", delivered=False, duration_s=60.0, basis="worst_case", items=(), output_pixels=0
    )
    telemetry.attempt_finished(failed)
    scrape = Scrape(telemetry)
    assert scrape("provider_duration_seconds_count") == 0
    assert scrape("provider_failure_duration_seconds_sum", provider="fal") == 60
    assert scrape("images_total") == 0
    assert scrape("cost_usd_total", component="_other", basis="worst_case") == pytest.approx(0.016)
    assert scrape("undelivered_cost_usd_total", provider="fal", model="flux", reason="timeout") == 0.016


def test_tokens_by_kind_and_what_the_provider_reported(telemetry: Telemetry) -> None:
    telemetry.attempt_finished(
        replace(
            ATTEMPT,
            provider="openai",
            model="gpt",
            tokens={"text_input": 10, "cached_image_input": 7, "image_output": 1056},
            items=(item("output", "token", 12_000_000), item("input", "request", 4_000_000)),
            basis="reported_quantity",
            computed_nanos=15_000_000,
            reported_nanos=16_000_000,
            quoted_nanos=20_000_000,
        )
    )
    scrape = Scrape(telemetry)
    assert scrape("tokens_total", direction="input", modality="text") == 10
    assert scrape("tokens_total", direction="cached_input", modality="image") == 7
    assert scrape("tokens_total", direction="output", modality="image") == 1056
    assert scrape("cost_usd_total", component="token", basis="reported") == 0.012
    assert scrape("cost_usd_total", component="request", basis="reported") == 0.004
    assert scrape("price_drift_usd_total", direction="over") == 0.001
    assert scrape("quote_error_usd_total", direction="under") == 0.004


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"unpriced": True, "amount_nanos": 0, "items": ()}, "no_price"), ({"currency": "EUR"}, "currency")],
)
def test_what_is_not_in_the_dollars_is_counted(telemetry: Telemetry, change: dict[str, Any], reason: str) -> None:
    telemetry.attempt_finished(replace(ATTEMPT, **change))
    scrape = Scrape(telemetry)
    assert scrape("unpriced_requests_total", provider="fal", model="flux", reason=reason) == 1
    assert scrape.series("cost_usd_total") == scrape.series("team_cost_usd_total") == []


def test_the_choice_its_reason_and_who_was_left_out(telemetry: Telemetry) -> None:
    excluded = [("spot/flux", "ejected: 5 failures in a row"), ("fal/flux", "size"), ("spot/flux", "max_cost")]
    telemetry.decision("flux", "fal", "balanced", "best", excluded)
    telemetry.failover("flux", "spot", "fal", "server_error")
    telemetry.retry("fal", "not_sent")
    telemetry.rescue("flux", "spot", "fal", True)
    scrape = Scrape(telemetry)
    assert scrape("routing_decisions_total", model="flux", provider="fal", policy="balanced", reason="best") == 1
    assert scrape("routing_exclusions_total", provider="spot", reason="circuit") == 1
    assert scrape("routing_exclusions_total", provider="fal", reason="capability") == 1
    assert scrape("routing_exclusions_total", provider="spot", reason="price") == 1
    assert scrape("failovers_total", from_provider="spot", to_provider="fal", reason="server_error") == 1
    assert scrape("retries_total", provider="fal", reason="not_sent") == 1
    assert scrape("rescues_total", from_provider="spot", to_provider="fal", won="true") == 1


@pytest.mark.parametrize(
    ("error_code", "reason"), [(None, "missing"), ("missing_api_key", "missing"), ("invalid_api_key", "unknown")]
)
def test_refused_keys(telemetry: Telemetry, error_code: str | None, reason: str) -> None:
    refused = replace(REQUEST, outcome="rejected", code=401, error_code=error_code, model="", attempts=0)
    telemetry.request_finished(refused)
    scrape = Scrape(telemetry)
    assert scrape("auth_failures_total", reason=reason) == scrape("auth_failures_total") == 1
    assert scrape("requests_total", model="_none") == 1
    assert scrape("label_overflow_total") == 0
    assert scrape.series("attempts_per_request_count") == []


def test_ledger_commits(telemetry: Telemetry) -> None:
    telemetry.ledger_commit(3, 0.002, True)
    telemetry.ledger_commit(9, 0.5, False)
    scrape = Scrape(telemetry)
    assert scrape("ledger_writes_total", result="ok") == scrape("ledger_writes_total", result="error") == 1
    assert scrape("ledger_write_seconds_count") == 2
    assert scrape("ledger_rows_total") == 3


class TestLabels:
    def test_a_client_cannot_make_series(self, telemetry: Telemetry) -> None:
        before = len(Scrape(telemetry).samples)
        for number in range(500):
            telemetry.request_finished(replace(REQUEST, model=f"model-{number}", team=f"team-{number}"))
            telemetry.attempt_finished(replace(ATTEMPT, team=f"team-{number}"))
        scrape = Scrape(telemetry)
        assert scrape("requests_total", model="_unknown") == 500
        assert scrape("team_cost_usd_total", team="_other") == pytest.approx(8)
        assert scrape("label_overflow_total", label="model") == 500
        assert scrape("label_overflow_total", label="team") == 500
        assert len(scrape.samples) - before < 120

    def test_no_value_is_none_and_no_overflow(self, telemetry: Telemetry) -> None:
        telemetry.attempt_finished(replace(ATTEMPT, team=None))
        scrape = Scrape(telemetry)
        assert scrape("team_cost_usd_total", team="_none", model="flux") == 0.016
        assert scrape("label_overflow_total") == 0

    def test_words_outside_a_vocabulary(self, telemetry: Telemetry) -> None:
        telemetry.request_finished(replace(REQUEST, outcome="strange", operation="paint", code=999))
        scrape = Scrape(telemetry)
        assert scrape("requests_total", operation="_other", outcome="_other", code="_other") == 1
        assert scrape("label_overflow_total", label="operation") > 0

    def test_teams_beyond_the_limit_share_one_label(self, log: Log) -> None:
        telemetry = Telemetry(
            targets=TARGETS, teams=[f"team-{n}" for n in range(300)], version="1", max_label_values=200, log=log
        )
        telemetry.attempt_finished(replace(ATTEMPT, team="team-199"))
        telemetry.attempt_finished(replace(ATTEMPT, team="team-200"))
        scrape = Scrape(telemetry)
        assert scrape("team_cost_usd_total", team="team-199") == scrape("team_cost_usd_total", team="_other") == 0.016

    def test_the_first_failure_is_an_increase_and_not_a_new_series(self, telemetry: Telemetry) -> None:
        scrape = Scrape(telemetry)
        for target in TARGETS:
            names = {"provider": target.provider, "model": target.model}
            for outcome in ("timeout", "server_error", "rate_limited", "connect_error", "bad_response", "auth_error"):
                assert scrape("provider_attempts_total", **names, operation="edit", outcome=outcome) == 0
            assert scrape("unpriced_requests_total", **names) == 0
            assert scrape("circuit_state", **names, state="closed") == scrape("circuit_state", **names) == 1
        assert scrape("requests_total", outcome="error", code="504", model="gpt") == 0
        assert scrape("ledger_writes_total", result="error") == 0
        assert scrape("team_cost_usd_total", team="shop") == 0

    def test_a_large_installation_stays_below_ten_thousand_lines(self, log: Log) -> None:
        targets = [Target(f"p{p}/m{m}", f"p{p}", f"m{m}", BOTH) for p in range(8) for m in range(10)]
        telemetry = Telemetry(targets=targets, teams=[f"team{n}" for n in range(20)], version="1", log=log)
        dice = random.Random(7)
        bodies = [
            item("output", "megapixel", 8_000_000),
            item("input", "megapixel", 8_000_000),
            item("output", "token", 8_000_000),
        ]
        for target in targets:
            for outcome in ATTEMPT_OUTCOMES[:6]:
                for operation in ("generate", "edit"):
                    facts = replace(
                        ATTEMPT, provider=target.provider, model=target.model, operation=operation, outcome=outcome,
                        delivered=outcome == "success", items=(dice.choice(bodies),), team=f"team{dice.randrange(20)}",
                    )  # fmt: skip
                    telemetry.attempt_started(target.provider)
                    telemetry.attempt_finished(facts)
                    telemetry.request_finished(replace(REQUEST, model=target.model, operation=operation))
            telemetry.decision(target.model, target.provider, "balanced", "best", [(target.key, "size")])
        telemetry.read_from(sources({target.key: {"generate": BELIEF, "edit": BELIEF} for target in targets}))
        telemetry._read_gauges()
        assert Scrape(telemetry).text.count("\n") < 10_000


def test_an_observer_that_fails_fails_nothing() -> None:
    class Broken(io.BytesIO):
        def flush(self) -> None:
            raise OSError("the pipe is closed")

    telemetry = Telemetry(targets=TARGETS, version="1", log=RequestLog(Redactor(), Broken()))
    telemetry.request_started("generate")
    telemetry.request_finished(REQUEST)
    telemetry.attempt_finished(replace(ATTEMPT, items=({"metric": "megapixel"},)))
    scrape = Scrape(telemetry)
    assert scrape("telemetry_errors_total") == 2
    assert scrape("requests_in_flight") == 0
    assert scrape("requests_total") == 1


class TestMoney:
    def attempts(self) -> Iterator[AttemptFinished]:
        dice = random.Random(20261121)
        for _ in range(400):
            target = dice.choice(TARGETS)
            nanos = [dice.randrange(1, 200_000_000) for _ in range(dice.randrange(1, 4))]
            kinds = [("output", "megapixel"), ("input", "megapixel"), ("output", "token"), ("request", "unit")]
            items = tuple(LineItem(*dice.choice(kinds), Decimal(1), Decimal(1), money(n), n) for n in nanos)
            charge = Charge(items, "USD", "p", Basis.MEASURED)
            outcome = dice.choice(ATTEMPT_OUTCOMES)
            yield AttemptFinished(
                provider=target.provider, model=target.model, operation="generate", outcome=outcome, duration_s=1.0,
                delivered=outcome == "success", amount_nanos=charge.total_nanos, basis=dice.choice(list(Basis)).value,
                items=tuple(each.as_dict() for each in items) if dice.random() < 0.8 else (),
                team=dice.choice([None, "art", "shop", "elsewhere"]),
            )  # fmt: skip

    def test_both_cuts_agree_with_the_ledger(self, telemetry: Telemetry) -> None:
        total = undelivered = 0
        for attempt in self.attempts():
            telemetry.attempt_finished(attempt)
            total += attempt.amount_nanos
            undelivered += 0 if attempt.delivered else attempt.amount_nanos
        scrape = Scrape(telemetry)
        assert scrape("telemetry_errors_total") == 0
        assert scrape("cost_usd_total") == pytest.approx(float(money(total)), abs=1e-9)
        assert scrape("team_cost_usd_total") == pytest.approx(float(money(total)), abs=1e-9)
        assert scrape("undelivered_cost_usd_total") == pytest.approx(float(money(undelivered)), abs=1e-9)


BELIEF = {"p50_s": 3.2, "p95_s": 9.0, "success": 0.99, "samples": 12.5, "state": "closed"}


def sources(table: dict[str, dict[str, dict[str, Any]]], **more: Any) -> Sources:
    return Sources(
        routing=lambda: table,
        ledger_pending=lambda: 2,
        ledger_oldest_s=lambda: 0.25,
        ledger_open=lambda: 5,
        **more,
    )


class TestScrape:
    @pytest.mark.parametrize(
        ("state", "shown"),
        [
            ("closed", "closed"), ("open", "open"), ("half_open", "half_open"), ("blocked", "open"),
            ("drained", "open"), ("rate_limited", "open"), ("limit", "closed"), ("full", "closed"),
        ],
    )  # fmt: skip
    def test_what_the_router_believes(self, telemetry: Telemetry, state: str, shown: str) -> None:
        telemetry.read_from(sources({"fal/flux": {"generate": BELIEF | {"state": state}}}))
        telemetry._read_gauges()
        scrape = Scrape(telemetry)
        route = {"provider": "fal", "model": "flux"}
        assert scrape("route_latency_seconds", **route, operation="generate", stat="p50") == 3.2
        assert scrape("route_latency_seconds", **route, operation="generate", stat="p95") == 9.0
        assert scrape("route_success_ratio", **route) == 0.99
        assert scrape("route_samples", **route) == 12.5
        assert [s for s in ("closed", "open", "half_open") if scrape("circuit_state", **route, state=s)] == [shown]
        assert scrape("ledger_pending") == 2
        assert scrape("ledger_oldest_pending_age_seconds") == 0.25
        assert scrape("ledger_open_reservations") == 5

    def test_what_webhooks_have_come_to(self, telemetry: Telemetry) -> None:
        telemetry.read_from(sources({}, webhooks=lambda: (3, 95.0)))
        telemetry._read_gauges()
        telemetry.webhook("failed")
        telemetry.webhook("delivered")
        scrape = Scrape(telemetry)
        assert scrape("webhook_pending") == 3
        assert scrape("webhook_oldest_pending_age_seconds") == 95.0
        assert [scrape("webhook_calls_total", outcome=name) for name in ("delivered", "failed", "given_up")] == [
            1,
            1,
            0,
        ]

    def test_exact_spend_comes_from_the_ledger(self, telemetry: Telemetry) -> None:
        telemetry.read_from(sources({}, spend=lambda: [("day", "art", 16_000_000), ("month", None, 40_000_000)]))
        scrape = Scrape(telemetry)
        assert scrape("ledger_spend_usd", window="day", team="art") == 0.016
        assert scrape("ledger_spend_usd", window="month", team="_none") == 0.04

    @pytest.mark.anyio
    async def test_a_source_that_fails_leaves_the_rest(self, telemetry: Telemetry) -> None:
        def broken() -> Any:
            raise RuntimeError("gone")

        telemetry.read_from(sources({}, spend=broken))
        body, content_type = await telemetry.scrape()
        assert b"pixelroute_build_info" in body
        assert content_type.startswith("text/plain")
        assert Scrape(telemetry)("telemetry_errors_total") >= 1

    @pytest.mark.anyio
    async def test_openmetrics_when_asked_for(self, telemetry: Telemetry) -> None:
        body, content_type = await telemetry.scrape("application/openmetrics-text;version=1.0.0")
        assert content_type.startswith("application/openmetrics-text; version=1.0.0")
        assert body.endswith(b"# EOF\n")

    def test_build(self, telemetry: Telemetry) -> None:
        assert Scrape(telemetry)("build_info", version="1.2.3") == 1

    def test_price_books(self, telemetry: Telemetry) -> None:
        books = load_price_books()
        telemetry.price_books(books, datetime(2026, 11, 21, tzinfo=UTC))
        scrape = Scrape(telemetry)
        assert scrape("pricebook_info", version=books.version) == 1
        assert scrape("pricebook_entries", provider="fal") > 0
        oldest = scrape("pricebook_oldest_verified_timestamp_seconds", provider="fal")
        assert datetime(2026, 1, 1, tzinfo=UTC).timestamp() <= oldest <= datetime(2026, 11, 21, tzinfo=UTC).timestamp()

    def test_an_old_price_book_is_stale(self, log: Log) -> None:
        telemetry = Telemetry(targets=TARGETS, version="1", log=log)
        telemetry.price_books(load_price_books(), datetime(2028, 1, 1, tzinfo=UTC))
        scrape = Scrape(telemetry)
        assert scrape("pricebook_entries", status="active") == 0
        assert scrape("pricebook_entries", status="stale") > 0


@pytest.mark.anyio
async def test_the_event_loop_is_watched_until_cancelled(telemetry: Telemetry) -> None:
    watching = asyncio.create_task(telemetry.watch_event_loop(0.001))
    await asyncio.sleep(0.01)
    time.sleep(0.05)  # noqa: ASYNC251 - what is to be measured
    await asyncio.sleep(0.01)
    watching.cancel()
    await asyncio.wait([watching])
    scrape = Scrape(telemetry)
    assert scrape("event_loop_lag_seconds_count") >= 2
    assert scrape("event_loop_lag_seconds_sum") >= 0.045
