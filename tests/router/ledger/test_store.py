"""The ledger's contract: what is returned is on disk, what contradicts it is refused."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from router.ledger import Ledger, LedgerError, LedgerRefused, Reports, State, verify
from tests.router.ledger.builders import NOON, opening, settlement

pytestmark = pytest.mark.anyio


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    async with Ledger(tmp_path / "ledger.db", clock=lambda: NOON, reserve_bytes=0) as ledger:
        yield ledger


async def test_what_was_written_is_read_back_to_the_last_field(ledger: Ledger) -> None:
    one = opening(team="media", user="u-1", tags={"ключ": "välue\n\0"}, estimate_nanos=2**63 - 1, price_id=None)
    end = settlement(reported_nanos=7_999_999, error="späť", queue_ms=12, ttfb_ms=5, provider_request_id="p-1")
    await ledger.open(one)
    await ledger.job("a1", "job-1", {"status_url": "https://queue.fal.run/1"})
    await ledger.job("a1", "job-2", {})
    await ledger.settle(end)
    await ledger.adjust("a1", -500, "USD", "credit note 7", "finance", NOON)
    with Reports(ledger.path) as reports:
        record = reports.request("req_a1")
        assert record is not None
        (attempt,) = record.attempts
    assert attempt.opening == one
    assert attempt.settlement == end
    assert [(job.job_id, job.state) for job in attempt.jobs] == [
        ("job-1", {"status_url": "https://queue.fal.run/1"}),
        ("job-2", {}),
    ]
    assert [(entry.kind, entry.amount_nanos) for entry in attempt.entries] == [
        ("settled", 8_000_000),
        ("adjusted", -500),
    ]
    assert (attempt.entries[1].reason, attempt.entries[1].actor) == ("credit note 7", "finance")
    assert (attempt.state, attempt.cost_nanos, attempt.unsettled_nanos) == (State.SETTLED, 7_999_500, 0)


@pytest.mark.parametrize("count", [3, 64, 65, 200])
async def test_many_that_wait_together_are_all_written(ledger: Ledger, count: int) -> None:
    names = [f"a{number:03d}" for number in range(count)]
    await asyncio.gather(*(ledger.open(opening(name)) for name in names))
    await asyncio.gather(*(ledger.settle(settlement(name)) for name in names))
    assert not verify(ledger.path).problems
    with Reports(ledger.path) as reports:
        for name in names:
            record = reports.request(f"req_{name}")
            assert record is not None
            assert record.attempts[0].settlement == settlement(name)


async def test_an_attempt_is_opened_once(ledger: Ledger) -> None:
    await ledger.open(opening())
    with pytest.raises(LedgerRefused, match="a1 was opened before"):
        await ledger.open(opening())
    await ledger.settle(settlement())
    with pytest.raises(LedgerRefused, match="a1"):  # no longer in memory: the database says it
        await ledger.open(opening())
    assert ledger.open_attempts == 0


@pytest.mark.parametrize("first", [State.SETTLED, State.VOID])
@pytest.mark.parametrize("second", [State.SETTLED, State.VOID, State.UNKNOWN])
async def test_an_attempt_is_resolved_once(ledger: Ledger, first: State, second: State) -> None:
    await ledger.open(opening())
    await ledger.settle(settlement(state=first))
    with pytest.raises(LedgerRefused, match=f"already {first}"):
        await ledger.settle(settlement(state=second))


@pytest.mark.parametrize("end", [State.SETTLED, State.VOID])
async def test_an_unknown_attempt_is_held_at_its_estimate_until_evidence_resolves_it(
    ledger: Ledger, end: State
) -> None:
    await ledger.open(opening())
    await ledger.settle(settlement(state=State.UNKNOWN))
    with Reports(ledger.path) as reports:
        (total,) = reports.totals()
        assert (total.cost_nanos, total.unsettled, total.unsettled_nanos) == (0, 1, 8_000_000)
        with pytest.raises(LedgerRefused, match="cannot become unknown"):
            await ledger.settle(settlement(state=State.UNKNOWN))
        amount = 0 if end is State.VOID else 3_000_000
        await ledger.settle(settlement(state=end, amount_nanos=amount, evidence="invoice"))
        (total,) = reports.totals()
        assert (total.cost_nanos, total.unsettled, total.unsettled_nanos) == (amount, 0, 0)
        record = reports.request("req_a1")
        assert record is not None
        assert [(entry.kind, entry.amount_nanos) for entry in record.attempts[0].entries] == [
            ("unknown", 8_000_000),
            ("released", -8_000_000),
            (end.value, amount),
        ]


async def test_two_settlements_in_one_commit_are_still_one_too_many(ledger: Ledger) -> None:
    await ledger.open(opening())
    results = await asyncio.gather(
        ledger.settle(settlement()), ledger.settle(settlement(amount_nanos=1)), return_exceptions=True
    )
    assert results[0] is None
    assert isinstance(results[1], LedgerRefused)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (settlement("nobody"), "never opened"),
        (settlement(state=State.OPEN), "cannot become open"),
        (settlement(state=State.VOID, amount_nanos=1), "costs nothing"),
        (settlement(amount_nanos=-1), "not an amount"),
        (settlement(amount_nanos=0.008), "not an amount"),
        (settlement(amount_nanos=True), "not an amount"),
        (settlement(amount_nanos=2**63), "not an amount"),
        (settlement(list_nanos=1.0), "not an amount"),
        (settlement(recorded_at=NOON.replace(tzinfo=None)), "without a zone"),
        (settlement(latency_ms=1.5), "REAL"),
        (settlement(latency_ms=2**63), "a1"),
        (settlement(error="\ud800"), "surrogates"),
        (settlement(items=({"metric": "megapixel"},)), "quantity"),
        (settlement(usage={"outputs": ["big"]}), "a1"),
    ],
)
async def test_a_record_that_cannot_be_kept_is_refused_alone(ledger: Ledger, record, reason: str) -> None:
    await ledger.open(opening())
    await ledger.open(opening("a2"))
    results = await asyncio.gather(
        ledger.open(opening("a3")), ledger.settle(record), ledger.settle(settlement("a2")), return_exceptions=True
    )
    assert (results[0], results[2]) == (None, None)
    assert isinstance(results[1], LedgerRefused)
    assert reason in str(results[1])
    await ledger.settle(settlement())  # the attempt itself is as it was
    assert verify(ledger.path).problems == ()


async def test_adjustments_need_a_resolved_attempt_and_its_currency(ledger: Ledger) -> None:
    await ledger.open(opening())
    with pytest.raises(LedgerRefused, match="nothing to adjust"):
        await ledger.adjust("a1", 1, "USD", "why", "who", NOON)
    await ledger.settle(settlement())
    with pytest.raises(LedgerRefused, match="booked in USD"):
        await ledger.adjust("a1", 1, "EUR", "why", "who", NOON)
    with pytest.raises(LedgerRefused, match="not an amount"):
        await ledger.adjust("a1", 0.5, "USD", "why", "who", NOON)  # type: ignore[arg-type]
    for amount in (5, -7):
        await ledger.adjust("a1", amount, "USD", "why", "who", NOON)
    with Reports(ledger.path) as reports:
        assert reports.totals()[0].cost_nanos == 8_000_000 - 2


async def test_a_job_can_only_run_for_an_attempt_without_an_end(ledger: Ledger) -> None:
    with pytest.raises(LedgerRefused, match="never opened"):
        await ledger.job("a1", "job", {})
    await ledger.open(opening())
    await ledger.settle(settlement(state=State.UNKNOWN))
    await ledger.job("a1", "late", {"url": "u"})
    await ledger.settle(settlement())
    with pytest.raises(LedgerRefused, match="no job"):
        await ledger.job("a1", "later", {})


async def test_waiters_share_commits(tmp_path: Path) -> None:
    commits: list[tuple[int, float, bool]] = []
    path = tmp_path / "ledger.db"
    async with Ledger(path, on_commit=lambda *seen: commits.append(seen), reserve_bytes=0) as ledger:

        async def waiter(number: int) -> None:
            for round_ in range(10):
                one = opening(f"{number}-{round_}")
                await ledger.open(one)
                await ledger.settle(settlement(one.attempt_id))

        await asyncio.gather(*(waiter(number) for number in range(64)))
        assert ledger.pending == 0
    rows = sum(count for count, _, _ in commits)
    assert rows == 64 * 20
    assert len(commits) <= rows / 16
    assert all(ok and seconds > 0 for _, seconds, ok in commits)


async def test_what_waits_can_be_seen(ledger: Ledger) -> None:
    assert (ledger.pending, ledger.open_attempts, ledger.oldest_pending_age_s(time.monotonic())) == (0, 0, 0.0)
    opens = [asyncio.ensure_future(ledger.open(opening(f"a{number}"))) for number in range(3)]
    await asyncio.sleep(0)  # each task has put its record on the queue
    assert ledger.pending == 3
    assert ledger.oldest_pending_age_s(time.monotonic() + 5) >= 5
    await asyncio.gather(*opens)
    assert (ledger.pending, ledger.open_attempts) == (0, 3)
    await ledger.settle(settlement("a1"))
    assert ledger.open_attempts == 2


async def test_a_metric_that_fails_does_not_fail_a_request(tmp_path: Path) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no metrics today")

    async with Ledger(tmp_path / "ledger.db", on_commit=broken, reserve_bytes=0) as ledger:
        await ledger.open(opening())


async def test_giving_up_while_opening_leaves_a_void_attempt(ledger: Ledger) -> None:
    waiting = asyncio.ensure_future(ledger.open(opening()))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await ledger.open(opening("a2"))  # the queue is in order: everything before is on disk
    await ledger.settle(settlement("a2"))
    with Reports(ledger.path) as reports:
        record = reports.request("req_a1")
        assert record is not None
        assert record.attempts[0].state is State.VOID


async def test_giving_up_while_settling_loses_nothing(ledger: Ledger) -> None:
    await ledger.open(opening())
    waiting = asyncio.ensure_future(ledger.settle(settlement()))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await ledger.open(opening("a2"))
    with Reports(ledger.path) as reports:
        assert reports.totals()[0].cost_nanos == 8_000_000


async def test_closing_writes_what_is_queued(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db", reserve_bytes=0)
    await ledger.start()
    opens = [asyncio.ensure_future(ledger.open(opening(f"a{number}"))) for number in range(100)]
    await asyncio.sleep(0)
    await ledger.close()
    await ledger.close()  # twice does no harm
    await asyncio.gather(*opens)
    with pytest.raises(LedgerError, match="closed"):
        await ledger.open(opening("late"))
    with Reports(ledger.path) as reports:
        assert len(reports.unsettled()) == 100


async def test_a_ledger_that_was_not_started_writes_nothing(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    assert ledger.problem is not None
    with pytest.raises(LedgerError, match="not started"):
        await ledger.open(opening())
    with pytest.raises(LedgerError, match="not started"):
        await ledger.settle(settlement())
    await ledger.close()
    assert not (tmp_path / "ledger.db").exists()


async def test_attempts_left_open_become_unknown_at_the_next_start(tmp_path: Path) -> None:
    path = tmp_path / "new" / "ledger.db"
    async with Ledger(path, reserve_bytes=0) as ledger:
        for name in ("done", "lost", "unknown"):
            await ledger.open(opening(name, estimate_nanos=5))
        await ledger.job("lost", "job-1", {"url": "u"})
        await ledger.settle(settlement("done"))
        await ledger.settle(settlement("unknown", State.UNKNOWN, amount_nanos=5))
        assert {one.opening.attempt_id: one.state for one in await ledger.unresolved()} == {
            "lost": State.OPEN,
            "unknown": State.UNKNOWN,
        }
    ledger = Ledger(path, clock=lambda: NOON, reserve_bytes=0)
    (lost,) = await ledger.start()
    assert (lost.opening, lost.state) == (opening("lost", estimate_nanos=5), State.UNKNOWN)
    assert [(job.job_id, job.state) for job in lost.jobs] == [("job-1", {"url": "u"})]
    assert {one.opening.attempt_id for one in await ledger.unresolved()} == {"lost", "unknown"}
    await ledger.settle(settlement("lost", amount_nanos=4, evidence="resume"))
    await ledger.settle(settlement("unknown", State.VOID, evidence="invoice"))
    await ledger.close()
    with Reports(path) as reports:
        record = reports.request("req_lost")
        assert record is not None
        entry = record.attempts[0].entries[0]
        assert (entry.kind, entry.amount_nanos, entry.evidence, entry.recorded_at) == ("unknown", 5, "restart", NOON)
        assert reports.unsettled() == []
    ledger = Ledger(path, reserve_bytes=0)
    assert await ledger.start() == []
    await ledger.close()


async def test_the_order_of_the_rows_does_not_depend_on_the_clock(ledger: Ledger) -> None:
    await ledger.open(opening("late"))
    await ledger.open(replace(opening("early"), opened_at=NOON.replace(year=2020)))
    await ledger.settle(settlement("late", recorded_at=NOON.replace(year=2019)))
    with Reports(ledger.path) as reports:
        assert [one.opening.attempt_id for one in reports.unsettled()] == ["early"]
        assert [record.request_id for record in reports.recent(5)] == ["req_early", "req_late"]
    assert verify(ledger.path).problems == ()
