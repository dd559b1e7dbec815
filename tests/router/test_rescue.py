"""A second target beside one that is probably stuck: when it starts, who wins, and that both are booked.

Time is the test's: the gateway's clock and its sleep stand still until they are moved.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest

from pricing import Reported
from router.clock import Clock
from router.errors import Billed, ErrorKind, ProviderError, RequestError
from router.ledger import Reports
from router.providers.base import Call, Job, Partial
from router.types import Caller, GeneratedImage, ImageResult, PartialImage, Preferences
from tests.router.test_gateway import CONFIG, House, ask, made, png

pytestmark = pytest.mark.anyio

QUEUE = "https://queue.fal.run"
JOB = Job("job-1", {"status_url": f"{QUEUE}/s", "response_url": f"{QUEUE}/r", "cancel_url": f"{QUEUE}/c"})


class Time:
    """A clock that moves only when it is told to, and wakes who waits on it."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.waits: list[tuple[float, asyncio.Event]] = []
        self.happened = asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        event = asyncio.Event()
        self.waits.append((self.now + seconds, event))
        self.happened.set()
        await event.wait()

    def move(self, seconds: float) -> None:
        self.now += seconds
        for until, event in self.waits:
            if until <= self.now:
                event.set()


class Stage(House):
    """The house with time in hand."""

    def __init__(self, directory: Path, text: str = CONFIG, **more: Any) -> None:
        self.time = Time()
        numbers = itertools.count(1)
        start = datetime(2026, 11, 20, tzinfo=UTC) - timedelta(seconds=self.time.now)
        clock = Clock(
            lambda: start + timedelta(seconds=self.time.now),
            lambda: self.time.now,
            lambda: f"att_{next(numbers)}",
            self.time.sleep,
        )
        super().__init__(directory, text, clock=clock, **more)
        self.wire.before = lambda provider: self.time.happened.set()
        self.hung: dict[str, int] = {}  # calls that were stopped while they hung, by provider
        self.told: list[str] = []  # cancellations that a provider was sent

        async def call(call: Call, provider: Any, auth: Any, *, timeout_s: float) -> httpx.Response:
            self.told.append(f"{call.request.method} {call.request.url}")
            return httpx.Response(202, request=call.request)

        self.wire.call = call  # type: ignore[attr-defined]

    def hangs(self, provider: str, *, job: bool = False) -> Callable[..., Any]:
        """An answer that never comes."""

        async def hang(on_job: Any, on_partial: Any) -> ImageResult:
            if job:
                await on_job(JOB)
            try:
                await asyncio.Event().wait()
            finally:
                self.hung[provider] = self.hung.get(provider, 0) + 1
            raise AssertionError

        return hang

    async def until(self, sent: int) -> None:
        """Until so many calls have left."""
        async with asyncio.timeout(5):
            while len(self.wire.sent) < sent:
                self.time.happened.clear()
                await self.time.happened.wait()

    async def asides(self) -> None:
        """Until the work is done that nobody waits for."""
        await asyncio.gather(*self.gateway._tasks.beside)

    async def armed(self) -> float:
        """Seconds from now to the moment when the rescue is due."""
        async with asyncio.timeout(5):
            while not self.time.waits:
                self.time.happened.clear()
                await self.time.happened.wait()
        return self.time.waits[-1][0] - self.time.now


@pytest.fixture
async def stage(tmp_path: Path):
    async with Stage(tmp_path) as built:
        yield built


async def test_a_silent_target_is_rescued_and_both_are_booked(stage: Stage) -> None:
    stage.wire.answers["fal"] = [stage.hangs("fal")]
    waiting = asyncio.create_task(stage.run(ask(deadline_s=40.0), routing=True))
    due_s = await stage.armed()
    assert 6.0 < due_s < 30.0  # far beyond the p95 of 6 s, well before the deadline
    await stage.until(1)
    stage.time.move(due_s - 0.1)
    await asyncio.sleep(0)
    assert stage.wire.sent == ["fal"]
    stage.time.move(0.2)
    completed = await waiting
    assert completed.executed_model == "gpu-fast/flux"
    assert stage.hung == {"fal": 1}
    first, second = stage.rows()
    assert (first.opening.role, first.opening.attempt_no, first.state) == ("first", 1, "unknown")
    assert (first.settlement.outcome, first.unsettled_nanos, first.settlement.delivered) == (
        "cancelled",
        8_000_000,
        False,
    )
    assert (second.opening.role, second.opening.attempt_no, second.state) == ("rescue", 2, "settled")
    assert second.settlement.delivered
    told = [(attempt.role, attempt.outcome, attempt.billed) for attempt in completed.attempts]
    assert told == [("first", "cancelled", "maybe"), ("rescue", "success", "yes")]
    assert completed.cost_nanos == 12_000_000
    assert stage.watch.named("rescue") == [("flux", "fal", "gpu-fast", True)]
    assert stage.selector.snapshot(stage.time.now)["fal/flux"]["generate"]["in_flight"] == 0
    assert completed.routing is not None
    assert completed.routing["chosen"] == "gpu-fast/flux"
    assert completed.provider_s == pytest.approx(due_s + 0.1)


async def test_waste_is_told_apart_in_the_report(stage: Stage) -> None:
    stage.wire.answers["fal"] = [stage.hangs("fal")]
    waiting = asyncio.create_task(stage.run(ask(deadline_s=40.0)))
    stage.time.move(await stage.armed())
    await waiting
    with Reports(stage.url) as reports:
        rows = {row.group: row for row in reports.costs("role")}
    assert rows["first"].unsettled_nanos == 8_000_000
    assert (rows["rescue"].cost_nanos, rows["rescue"].undelivered_nanos) == (12_000_000, 0)


async def test_the_first_may_still_win_and_the_second_is_stopped(stage: Stage) -> None:
    going = asyncio.Event()

    async def slow(on_job: Any, on_partial: Any) -> ImageResult:
        await going.wait()
        return made((1024, 1024))

    stage.wire.answers["fal"] = [slow]
    stage.wire.answers["gpu-fast"] = [stage.hangs("gpu-fast")]
    waiting = asyncio.create_task(stage.run(ask(deadline_s=40.0)))
    stage.time.move(await stage.armed())
    await stage.until(2)
    going.set()
    completed = await waiting
    assert completed.executed_model == "fal/flux"
    assert stage.hung == {"gpu-fast": 1}
    assert [(row.opening.role, row.state) for row in stage.rows()] == [("first", "settled"), ("rescue", "unknown")]
    assert stage.watch.named("rescue") == [("flux", "fal", "gpu-fast", False)]


async def test_a_picture_that_comes_too_late_is_booked_as_paid_for_nobody(stage: Stage) -> None:
    loading = asyncio.Event()

    async def download(url: str, provider: Any, *, timeout_s: float, max_bytes: int) -> Any:
        loading.set()
        await asyncio.Event().wait()

    stage.wire.download = download  # type: ignore[method-assign]
    stage.wire.answers["fal"] = [ImageResult((GeneratedImage(url="https://v3.fal.media/a.png"),))]
    waiting = asyncio.create_task(stage.run(ask(deadline_s=40.0)))
    await loading.wait()
    stage.time.move(await stage.armed())
    completed = await waiting
    assert completed.executed_model == "gpu-fast/flux"
    first, second = stage.rows()
    assert (first.state, first.cost_nanos, first.settlement.delivered) == ("settled", 8_000_000, False)
    assert (second.state, second.cost_nanos, second.settlement.delivered) == ("settled", 12_000_000, True)
    assert completed.cost_nanos == 20_000_000  # what the request cost, the waste included
    with Reports(stage.url) as reports:
        rows = {row.group: row for row in reports.costs("role")}
    assert rows["first"].undelivered_nanos == 8_000_000


async def test_the_loser_is_cancelled_at_its_provider_and_settled_by_what_became_of_it(stage: Stage) -> None:
    stage.wire.answers["fal"] = [
        stage.hangs("fal", job=True),
        ProviderError(ErrorKind.CANCELLED, "removed from the queue", billed=Billed.NO),  # asked about it afterwards
    ]
    waiting = asyncio.create_task(stage.run(ask(deadline_s=40.0)))
    stage.time.move(await stage.armed())
    completed = await waiting
    assert completed.provider == "gpu-fast"
    await stage.asides()
    assert stage.told == ["PUT https://queue.fal.run/c"]
    assert [(row.state, row.cost_nanos) for row in stage.rows()] == [("void", 0), ("settled", 12_000_000)]


@pytest.mark.parametrize(
    ("became", "state", "cost", "outcome"),
    [
        (lambda: made((1024, 1024)), "settled", 8_000_000, "success"),
        (lambda: ProviderError(ErrorKind.CANCELLED, "removed", billed=Billed.NO), "void", 0, "cancelled"),
        (
            lambda: ProviderError(
                ErrorKind.CANCELLED,
                "stopped halfway",
                billed=Billed.YES,
                evidence=ImageResult((), reported=Reported(Decimal("0.5"), "unit")),
            ),
            "settled",
            4_000_000,
            "cancelled",
        ),
        (lambda: ProviderError(ErrorKind.CANCELLED, "nobody knows"), "unknown", 0, "timeout"),
    ],
)
async def test_a_job_that_took_too_long_is_stopped_and_settled_while_the_client_is_served_elsewhere(
    stage: Stage, became: Callable[[], Any], state: str, cost: int, outcome: str
) -> None:
    async def late(on_job: Any, on_partial: Any) -> ImageResult:
        await on_job(JOB)
        raise ProviderError(ErrorKind.NO_ANSWER, "no complete answer within 120 seconds")

    stage.wire.answers["fal"] = [late, became()]
    completed = await stage.run(ask())
    assert completed.executed_model == "gpu-fast/flux"
    await stage.asides()
    assert stage.told == ["PUT https://queue.fal.run/c"]
    first, second = stage.rows()
    assert (first.state, first.cost_nanos) == (state, cost)
    assert first.settlement.outcome == outcome
    assert second.state == "settled"


async def test_when_both_fail_the_request_goes_on_elsewhere_as_after_any_failure(stage: Stage) -> None:
    failing = asyncio.Event()

    async def fails(on_job: Any, on_partial: Any) -> ImageResult:
        await failing.wait()
        raise ProviderError(ErrorKind.SERVER_ERROR, "boom", billed=Billed.NO)

    stage.wire.answers |= {"fal": [fails], "gpu-fast": [fails]}
    waiting = asyncio.create_task(stage.run(ask(deadline_s=40.0)))
    stage.time.move(await stage.armed())
    await stage.until(2)
    failing.set()
    assert (await waiting).executed_model == "gpu-spot/flux"
    roles = [(row.opening.attempt_no, row.opening.role, row.state) for row in stage.rows()]
    assert roles == [(1, "first", "void"), (2, "rescue", "void"), (3, "failover", "settled")]


async def test_a_failure_of_the_first_leaves_the_rescue_running(stage: Stage) -> None:
    failing, going = asyncio.Event(), asyncio.Event()

    async def fails(on_job: Any, on_partial: Any) -> ImageResult:
        await failing.wait()
        raise ProviderError(ErrorKind.NO_ANSWER, "reset")

    async def comes(on_job: Any, on_partial: Any) -> ImageResult:
        await going.wait()
        return made((1024, 1024))

    stage.wire.answers |= {"fal": [fails], "gpu-fast": [comes]}
    waiting = asyncio.create_task(stage.run(ask(deadline_s=40.0)))
    stage.time.move(await stage.armed())
    await stage.until(2)
    failing.set()
    await asyncio.sleep(0.01)
    going.set()
    assert (await waiting).executed_model == "gpu-fast/flux"
    assert len(stage.wire.sent) == 2


async def test_a_refusal_ends_both(stage: Stage) -> None:
    refusing = asyncio.Event()

    async def refuses(on_job: Any, on_partial: Any) -> ImageResult:
        await refusing.wait()
        raise ProviderError(ErrorKind.REFUSED, "because", billed=Billed.NO)

    stage.wire.answers |= {"fal": [refuses], "gpu-fast": [stage.hangs("gpu-fast")]}
    waiting = asyncio.create_task(stage.run(ask(deadline_s=40.0)))
    stage.time.move(await stage.armed())
    await stage.until(2)
    refusing.set()
    with pytest.raises(RequestError) as caught:
        await waiting
    assert caught.value.code == "moderation_blocked"
    assert stage.hung == {"gpu-fast": 1}
    assert [row.state for row in stage.rows()] == ["void", "unknown"]


async def test_the_booking_of_a_loser_that_has_failed_outlives_its_being_called_off(stage: Stage) -> None:
    failing, settling, wins, go_on = (asyncio.Event() for _ in range(4))

    async def fails(on_job: Any, on_partial: Any) -> Any:
        await failing.wait()
        raise ProviderError(ErrorKind.SERVER_ERROR, "broken", billed=Billed.NO)

    async def succeeds(on_job: Any, on_partial: Any) -> Any:
        await wins.wait()
        return made((1024, 1024))

    settle = stage.ledger.settle

    async def slowly(row: Any) -> None:
        if row.state == "void":
            settling.set()
            await go_on.wait()
        await settle(row)

    stage.ledger.settle = slowly  # type: ignore[method-assign]
    stage.wire.answers |= {"fal": [fails], "gpu-fast": [succeeds]}
    waiting = asyncio.create_task(stage.run(ask(deadline_s=40.0)))
    stage.time.move(await stage.armed())
    await stage.until(2)
    failing.set()
    await settling.wait()
    wins.set()
    completed = await waiting
    assert completed.executed_model == "gpu-fast/flux"
    assert [attempt.outcome for attempt in completed.attempts] == ["server_error", "success"]
    assert [row.state for row in stage.rows()] == ["open", "settled"]
    closing = asyncio.create_task(stage.gateway.close(5.0))
    await asyncio.sleep(0)
    go_on.set()
    await closing
    assert [row.state for row in stage.rows()] == ["void", "settled"]
    assert [told.outcome for (told,) in stage.watch.named("attempt_finished")] == ["success", "server_error"]


@pytest.mark.parametrize(
    ("ending", "code"),
    [(made((1024, 1024)), None), (ProviderError(ErrorKind.REFUSED, "because", billed=Billed.NO), "moderation_blocked")],
)
async def test_what_is_final_while_the_second_is_being_booked_keeps_it_from_leaving(
    stage: Stage, ending: Any, code: str | None
) -> None:
    ends, opening, go_on, settled = (asyncio.Event() for _ in range(4))

    async def first(on_job: Any, on_partial: Any) -> Any:
        await ends.wait()
        return ending

    plain = stage.ledger.open

    async def slowly(row: Any) -> None:
        if row.role == "rescue":
            opening.set()
            await go_on.wait()
        await plain(row)

    settle = stage.ledger.settle

    async def at_last(row: Any) -> None:
        await settle(row)
        settled.set()

    stage.ledger.open = slowly  # type: ignore[method-assign]
    stage.ledger.settle = at_last  # type: ignore[method-assign]
    stage.wire.answers["fal"] = [first]
    waiting = asyncio.create_task(stage.run(ask(deadline_s=40.0)))
    stage.time.move(await stage.armed())
    await opening.wait()
    ends.set()
    await settled.wait()
    go_on.set()
    if code is None:
        assert (await waiting).executed_model == "fal/flux"
    else:
        with pytest.raises(RequestError) as caught:
            await waiting
        assert caught.value.code == code
    await stage.gateway.close(5.0)
    assert stage.wire.sent == ["fal"]
    assert [row.state for row in stage.rows()][1] == "void"
    assert stage.selector._budget("flux").reserved == 0


# --- a target that turns out to hang ----------------------------------------------------------------------------


async def hung(stage: Stage, calls: int, answer: Any = None) -> list[asyncio.Task[Any]]:
    """So many requests of which fal answers none, and the moment when that is noticed."""
    stage.wire.answers["fal"] = [answer or stage.hangs("fal")]
    waiting = [asyncio.create_task(stage.run(ask())) for _ in range(calls)]
    await stage.until(calls)
    assert set(stage.wire.sent) == {"fal"}
    stage.time.move(60.0)
    assert stage.time.waits == []  # nobody wanted a second target
    assert await stage.armed() == 0.0
    return waiting


@pytest.fixture(autouse=True)
def watchful(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.race.WATCH_S", 0.01)


async def test_calls_at_a_target_that_is_found_stuck_are_made_elsewhere_at_once(tmp_path: Path) -> None:
    async with Stage(tmp_path, UNKNOWN) as stage:
        waiting = await hung(stage, 3)
        stage.time.move(0.0)
        for completed in await asyncio.gather(*waiting):
            assert completed.executed_model == "gpu-fast/flux"
            told = [(attempt.role, attempt.outcome, attempt.billed) for attempt in completed.attempts]
            assert told == [("first", "cancelled", "maybe"), ("rescue", "success", "yes")]
            assert completed.provider_s == pytest.approx(60.0)
        assert stage.hung == {"fal": 3}
        rows = [(row.opening.role, row.state) for row in stage.rows()]
        assert sorted(rows) == sorted([("first", "unknown")] * 3 + [("rescue", "settled")] * 3)
        assert stage.watch.named("rescue") == [("flux", "fal", "gpu-fast", True)] * 3
        assert stage.selector._budget("flux").reserved == 0


async def test_one_that_answers_after_all_wins_if_it_is_first(stage: Stage) -> None:
    going = asyncio.Event()

    async def slow(on_job: Any, on_partial: Any) -> ImageResult:
        await going.wait()
        return made((1024, 1024))

    stage.wire.answers["gpu-fast"] = [stage.hangs("gpu-fast")]
    (waiting,) = await hung(stage, 1, slow)
    stage.time.move(0.0)
    await stage.until(2)
    going.set()
    assert (await waiting).executed_model == "fal/flux"
    assert stage.hung == {"gpu-fast": 1}


async def test_what_hangs_beyond_the_budget_waits_for_its_own_limit(stage: Stage) -> None:
    waiting = await hung(stage, 7)
    stage.time.move(0.0)
    for rescued in itertools.islice(asyncio.as_completed(waiting, timeout=5), 4):  # waste_floor_calls
        await rescued
    await asyncio.sleep(0.01)
    assert sum(task.done() for task in waiting) == 4
    await stage.gateway.close(0.0)
    await asyncio.gather(*waiting, return_exceptions=True)
    assert [row.state for row in stage.rows()].count("unknown") == 7


SLOW_S = 8.0  # beyond the p95 of 6 s, but not stuck


# --- when there is none -----------------------------------------------------------------------------------------


async def served_without(stage: Stage, request: Any, silent_s: float = 39.0) -> None:
    """The request waits for its one target."""
    going = asyncio.Event()

    async def slow(on_job: Any, on_partial: Any) -> ImageResult:
        await going.wait()
        return made((1024, 1024))

    stage.wire.answers["fal"] = [slow]
    waiting = asyncio.create_task(stage.run(request))
    await stage.until(1)
    stage.time.move(silent_s)
    await asyncio.sleep(0.01)
    going.set()
    assert (await waiting).executed_model == "fal/flux"
    assert [row.opening.role for row in stage.rows()] == ["first"]


async def test_without_a_deadline_a_slow_call_is_not_rescued_unless_the_operator_wants_it(
    stage: Stage, tmp_path: Path
) -> None:
    await served_without(stage, ask(), SLOW_S)
    assert stage.time.waits == []
    (tmp_path / "wanted").mkdir()
    async with Stage(tmp_path / "wanted", CONFIG + "routing: {rescue: true}\n") as wanted:
        wanted.wire.answers["fal"] = [wanted.hangs("fal")]
        waiting = asyncio.create_task(wanted.run(ask()))
        wanted.time.move(await wanted.armed())
        assert (await waiting).executed_model == "gpu-fast/flux"


@pytest.mark.parametrize(
    "more",
    [
        {"model": "fal/flux"},
        {"preferences": Preferences(only=("fal",))},
        {"preferences": Preferences(allow_fallbacks=False)},
    ],
)
async def test_a_client_that_wants_no_other_target_gets_none(stage: Stage, more: dict[str, Any]) -> None:
    await served_without(stage, ask(deadline_s=40.0, **more))


async def test_what_a_rescue_may_waste_is_bounded(stage: Stage) -> None:
    """A hang of many calls at once starts no more copies than the budget has money for, in flight or done."""
    calls = 12
    stage.wire.answers["fal"] = [stage.hangs("fal")]
    stage.wire.answers["gpu-fast"] = [stage.hangs("gpu-fast")]
    stage.wire.answers["gpu-spot"] = [stage.hangs("gpu-spot")]
    picked = ask(deadline_s=40.0, preferences=Preferences(order=("fal", "gpu-fast")))
    waiting = [
        asyncio.create_task(stage.gateway.run(picked, Caller(f"k{number}"), request_id=f"req_{number}"))
        for number in range(calls)
    ]
    await stage.until(calls)
    await stage.armed()
    due = [until for until, _ in stage.time.waits]
    stage.time.move(max(due) - stage.time.now)
    await asyncio.sleep(0.1)
    rescues = len(stage.wire.sent) - calls
    assert 1 <= rescues <= stage.settings.routing.waste_floor_calls
    await stage.gateway.close(0.0)
    await asyncio.gather(*waiting, return_exceptions=True)


UNKNOWN = CONFIG.replace(
    'fal: {prices: fal, billing: {server_error: "no"}}', "fal: {prices: fal, billing: {server_error: maybe}}"
)


async def test_a_target_whose_failures_cost_nobody_knows_what_is_not_rescued(tmp_path: Path) -> None:
    assert UNKNOWN != CONFIG
    async with Stage(tmp_path, UNKNOWN) as stage:
        await served_without(stage, ask(deadline_s=40.0), SLOW_S)
        assert stage.time.waits == []
    (tmp_path / "lifted").mkdir()
    async with Stage(tmp_path / "lifted", UNKNOWN + "routing: {rescue_unknown_bills: true}\n") as lifted:
        lifted.wire.answers["fal"] = [lifted.hangs("fal")]
        waiting = asyncio.create_task(lifted.run(ask(deadline_s=40.0)))
        lifted.time.move(await lifted.armed())
        assert (await waiting).executed_model == "gpu-fast/flux"


STREAMS = CONFIG.replace("        sizes: {max_side:", "        streams: true\n        sizes: {max_side:")


class Shown(list[Any]):
    """What a streaming client has seen."""

    async def emit(self, event: Any) -> None:
        self.append(event)

    @property
    def partials(self) -> int:
        return sum(isinstance(event, PartialImage) for event in self)


async def partial(on_job: Any, on_partial: Any) -> ImageResult:
    """A picture, shown in part before it is there."""
    await on_partial(Partial(GeneratedImage(data=png(64, 64)), 0))
    return made((1024, 1024))


async def test_a_stream_that_has_shown_a_partial_picture_is_not_rescued(tmp_path: Path) -> None:
    async with Stage(tmp_path, STREAMS) as stage:
        shown, going = Shown(), asyncio.Event()

        async def slow(on_job: Any, on_partial: Any) -> ImageResult:
            result = await partial(on_job, on_partial)
            await going.wait()
            return result

        stage.wire.answers["fal"] = [slow]
        waiting = asyncio.create_task(stage.run(ask(deadline_s=40.0, stream=True, partial_images=1), emit=shown.emit))
        stage.time.move(await stage.armed())
        await asyncio.sleep(0.01)
        going.set()
        await waiting
        assert [row.opening.role for row in stage.rows()] == ["first"]
        assert shown.partials == 1


async def test_of_two_attempts_neither_shows_a_partial_picture(tmp_path: Path) -> None:
    async with Stage(tmp_path, STREAMS) as stage:
        shown = Shown()
        stage.wire.answers |= {"fal": [stage.hangs("fal")], "gpu-fast": [partial]}
        waiting = asyncio.create_task(stage.run(ask(deadline_s=40.0, stream=True, partial_images=1), emit=shown.emit))
        stage.time.move(await stage.armed())
        assert (await waiting).executed_model == "gpu-fast/flux"
        assert shown.partials == 0


async def test_a_stream_shows_the_partial_pictures_of_the_target_that_comes_next(tmp_path: Path) -> None:
    async with Stage(tmp_path, STREAMS) as stage:
        shown = Shown()
        stage.wire.answers |= {"fal": [ProviderError(ErrorKind.SERVER_ERROR, "broken")], "gpu-fast": [partial]}
        completed = await stage.run(ask(stream=True, partial_images=1), emit=shown.emit)
        assert completed.executed_model == "gpu-fast/flux"
        assert shown.partials == 1


async def test_nothing_waits_any_more_when_an_answer_came_in_time(stage: Stage) -> None:
    before = asyncio.all_tasks()
    await stage.run(ask(deadline_s=40.0))
    assert len(stage.time.waits) == 1
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before


async def test_a_router_that_stops_leaves_a_job_running_for_the_next_start(stage: Stage) -> None:
    noted = asyncio.Event()

    async def hang(on_job: Any, on_partial: Any) -> Any:
        await on_job(JOB)
        noted.set()
        await asyncio.Event().wait()

    stage.wire.answers["fal"] = [hang]
    waiting = asyncio.create_task(stage.run(ask()))
    await noted.wait()
    await stage.gateway.close(0.0)
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await stage.asides()
    assert stage.told == []
    assert [(row.state, len(row.jobs)) for row in stage.rows()] == [("unknown", 1)]


async def test_a_router_that_stops_books_both_as_unknown(stage: Stage) -> None:
    stage.wire.answers |= {"fal": [stage.hangs("fal")], "gpu-fast": [stage.hangs("gpu-fast")]}
    waiting = asyncio.create_task(stage.run(ask(deadline_s=40.0)))
    stage.time.move(await stage.armed())
    await stage.until(2)
    await stage.gateway.close(0.0)
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert [row.state for row in stage.rows()] == ["unknown", "unknown"]
    assert stage.told == []


# --- the deadline -----------------------------------------------------------------------------------------------


async def test_no_attempt_outlives_the_clients_deadline(stage: Stage) -> None:
    limits: list[float] = []
    run = stage.wire.run

    async def timed(*args: Any, timeout_s: float, **more: Any) -> Any:
        limits.append(timeout_s)
        stage.time.move(15.0)
        return await run(*args, timeout_s=timeout_s, **more)

    stage.wire.run = timed  # type: ignore[method-assign]
    for provider in ("fal", "gpu-fast", "gpu-spot"):
        stage.wire.answers[provider] = [ProviderError(ErrorKind.NO_ANSWER, "timeout", billed=Billed.NO)]
    with pytest.raises(RequestError) as caught:
        await stage.run(ask(deadline_s=20.0))
    assert (caught.value.status, caught.value.code) == (504, "timeout")
    assert limits == [20.0, 5.0]


async def test_a_longer_wait_of_the_client_does_not_stretch_the_routers_limit(stage: Stage) -> None:
    waiting = asyncio.create_task(stage.run(ask(deadline_s=600.0)))
    await waiting
    assert stage.time.waits == []


async def test_the_only_target_is_asked_again_after_the_time_it_names(stage: Stage) -> None:
    stage.wire.answers["fal"] = [
        ProviderError(ErrorKind.RATE_LIMITED, "slow down", retry_after_s=7.0),
        made((1024, 1024)),
    ]
    waiting = asyncio.create_task(stage.run(ask("fal/flux")))
    pause = await stage.armed()
    assert 7.0 <= pause <= 7.2
    stage.time.move(pause)
    completed = await waiting
    assert [(attempt.role, attempt.outcome) for attempt in completed.attempts] == [
        ("first", "rate_limited"),
        ("retry", "success"),
    ]
