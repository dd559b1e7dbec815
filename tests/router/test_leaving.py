"""Clients that leave: what is at no provider is given up, and what is goes on or is stopped, as it was wanted."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from router.errors import Billed, ErrorKind, ProviderError, RequestError
from router.types import Caller, Completed, ImageRequest, ImageResult, Preferences
from tests.router.test_gateway import CONFIG, ask, made
from tests.router.test_rescue import Stage

pytestmark = pytest.mark.anyio

FINISH, CANCEL = Preferences(on_disconnect="finish"), Preferences(on_disconnect="cancel")


@pytest.fixture
async def stage(tmp_path: Path):
    async with Stage(tmp_path) as built:
        yield built


def begun(stage: Stage, request: ImageRequest, caller: Caller | None = None) -> asyncio.Task[Completed]:
    return asyncio.create_task(stage.run(request, caller))


async def given_up(waiting: asyncio.Task[Completed]) -> RequestError:
    with pytest.raises(RequestError) as caught:
        async with asyncio.timeout(5):
            await waiting
    error = caught.value
    assert (error.status, error.code) == (503, "cancelled")
    return error


def in_use(stage: Stage) -> dict[str, Any]:
    return stage.selector.snapshot(stage.time.now)["fal/flux"]["generate"]


@pytest.mark.parametrize(
    ("installation", "request_", "key", "stops"),
    [
        ("finish", Preferences(), Preferences(), False),
        ("cancel", Preferences(), Preferences(), True),
        ("finish", CANCEL, Preferences(), True),
        ("finish", Preferences(), CANCEL, True),
        ("cancel", Preferences(), FINISH, False),
        ("finish", FINISH, CANCEL, False),
    ],
)
async def test_t3_what_a_provider_works_on_goes_on_unless_it_is_not_wanted(
    tmp_path: Path, installation: str, request_: Preferences, key: Preferences, stops: bool
) -> None:
    async with Stage(tmp_path, on_disconnect=installation) as stage:
        going = asyncio.Event()

        async def slow(on_job: Any, on_partial: Any) -> ImageResult:
            await going.wait()
            return made((1024, 1024))

        stage.wire.answers["fal"] = [slow]
        waiting = begun(stage, ask("fal/flux", preferences=request_), Caller("k", preferences=key))
        await stage.until(1)
        assert stage.gateway.abandon("req_1") is stops
        if stops:
            error = await given_up(waiting)
            assert not error.retry  # it may have been billed
            [row] = stage.rows()
            assert (row.state, row.settlement.outcome, row.unsettled_nanos) == ("unknown", "cancelled", 8_000_000)
            [(told,)] = stage.watch.named("attempt_finished")
            assert told.outcome == "cancelled"
        else:
            going.set()
            assert (await waiting).executed_model == "fal/flux"
            [row] = stage.rows()
            assert (row.state, row.settlement.outcome) == ("settled", "success")
        assert in_use(stage)["in_flight"] == 0


async def test_a_model_may_say_so_too(tmp_path: Path) -> None:
    text = CONFIG.replace("  flux:\n", "  flux:\n    preferences: {on_disconnect: cancel}\n")
    async with Stage(tmp_path, text) as stage:
        stage.wire.answers["fal"] = [stage.hangs("fal")]
        waiting = begun(stage, ask("fal/flux"))
        await stage.until(1)
        assert stage.gateway.abandon("req_1")
        await given_up(waiting)
        assert stage.hung == {"fal": 1}


async def test_t3_the_provider_is_told_and_says_what_it_costs(stage: Stage) -> None:
    stage.wire.answers["fal"] = [
        stage.hangs("fal", job=True),
        ProviderError(ErrorKind.CANCELLED, "removed from the queue", billed=Billed.NO),  # asked about it afterwards
    ]
    waiting = begun(stage, ask("fal/flux", preferences=CANCEL))
    await stage.until(1)
    await asyncio.sleep(0.01)  # until the job is noted
    assert stage.gateway.abandon("req_1")
    await given_up(waiting)
    await stage.asides()
    assert stage.told == ["PUT https://queue.fal.run/c"]
    [row] = stage.rows()
    assert (row.state, row.cost_nanos, row.settlement.outcome) == ("void", 0, "cancelled")


async def test_t3_no_provider_is_blamed(stage: Stage) -> None:
    await stage.run(ask("fal/flux"))
    before = in_use(stage)
    stage.wire.answers["fal"] = [stage.hangs("fal")]
    for _ in range(20):
        sent = len(stage.wire.sent)
        waiting = begun(stage, ask("fal/flux", preferences=CANCEL))
        await stage.until(sent + 1)
        stage.time.move(1.0)
        stage.gateway.abandon("req_1")
        await given_up(waiting)
    after = in_use(stage)
    assert (after["state"], after["success"]) == ("closed", pytest.approx(before["success"], abs=0.001))
    stage.wire.answers["fal"] = [ProviderError(ErrorKind.NO_ANSWER, "reset")]
    # What clients did not want is no waste of the router's: the next may still be tried elsewhere.
    assert (await stage.run(ask())).executed_model == "gpu-fast/flux"


async def test_who_leaves_while_nobody_works_on_it_pays_nothing(stage: Stage) -> None:
    stage.wire.answers["fal"] = [
        ProviderError(ErrorKind.RATE_LIMITED, "slow down", billed=Billed.NO, retry_after_s=9.0)
    ]
    waiting = begun(stage, ask("fal/flux"))
    assert await stage.armed() >= 9.0  # before it asks again
    assert stage.gateway.abandon("req_1")
    error = await given_up(waiting)
    assert error.retry
    assert error.details["attempts"] == [{"provider": "fal", "outcome": "rate_limited", "billed": "no"}]
    assert stage.wire.sent == ["fal"]
    assert [row.state for row in stage.rows()] == ["void"]
    assert not stage.gateway.abandon("req_1")  # it is over


async def test_who_leaves_before_anything_is_sent_pays_nothing(stage: Stage) -> None:
    writing, plain = asyncio.Event(), stage.ledger.open

    async def slowly(row: Any) -> None:
        writing.set()
        await plain(row)
        await asyncio.Event().wait()

    stage.ledger.open = slowly  # type: ignore[method-assign]
    waiting = begun(stage, ask())
    await writing.wait()
    assert stage.gateway.abandon("req_1")
    assert (await given_up(waiting)).retry
    assert stage.wire.sent == []


@pytest.mark.parametrize("stops", [True, False])
async def test_what_is_paid_is_kept(stage: Stage, stops: bool) -> None:
    booking, go_on, plain = asyncio.Event(), asyncio.Event(), stage.ledger.settle

    async def slowly(row: Any) -> None:
        booking.set()
        await go_on.wait()
        await plain(row)

    stage.ledger.settle = slowly  # type: ignore[method-assign]
    waiting = begun(stage, ask(preferences=CANCEL if stops else FINISH))
    await booking.wait()
    assert stage.gateway.abandon("req_1") is stops
    go_on.set()
    assert (await waiting).cost_nanos == 8_000_000


async def test_after_a_failure_nobody_else_is_asked(stage: Stage) -> None:
    booking, go_on, plain = asyncio.Event(), asyncio.Event(), stage.ledger.settle

    async def slowly(row: Any) -> None:
        booking.set()
        await go_on.wait()
        await plain(row)

    stage.ledger.settle = slowly  # type: ignore[method-assign]
    stage.wire.answers["fal"] = [ProviderError(ErrorKind.SERVER_ERROR, "boom", billed=Billed.NO)]
    waiting = begun(stage, ask(preferences=CANCEL))
    await booking.wait()
    assert stage.gateway.abandon("req_1")
    go_on.set()
    assert (await given_up(waiting)).retry
    assert stage.wire.sent == ["fal"]
    assert [row.state for row in stage.rows()] == ["void"]


async def test_both_of_a_race_are_stopped(stage: Stage) -> None:
    stage.wire.answers |= {"fal": [stage.hangs("fal")], "gpu-fast": [stage.hangs("gpu-fast")]}
    waiting = begun(stage, ask(deadline_s=40.0, preferences=CANCEL))
    stage.time.move(await stage.armed())
    await stage.until(2)
    assert stage.gateway.abandon("req_1")
    await given_up(waiting)
    await stage.gateway.close(5.0)  # until both are booked
    assert stage.hung == {"fal": 1, "gpu-fast": 1}
    assert {row.settlement.outcome for row in stage.rows()} == {"cancelled"}
    assert len(stage.rows()) == 2


async def test_a_router_that_stops_says_so(stage: Stage) -> None:
    stage.wire.answers["fal"] = [stage.hangs("fal")]
    waiting = begun(stage, ask(preferences=CANCEL))
    await stage.until(1)
    await stage.gateway.close(0.0)
    with pytest.raises(asyncio.CancelledError):
        await waiting
    [row] = stage.rows()
    assert "router stopped" in row.settlement.error
