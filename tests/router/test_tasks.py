"""How the tasks of requests end: what is waited for, what is stopped, and what nobody may stop from outside."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from router.tasks import Tasks, cancel

pytestmark = pytest.mark.anyio


def enter(tasks: Tasks, work: Any) -> asyncio.Task[Any]:
    """As a request does, which is a task already."""

    async def request() -> Any:
        task = asyncio.current_task()
        assert task is not None
        tasks.running.add(task)
        try:
            return await work
        finally:
            tasks.running.discard(task)

    return asyncio.create_task(request())


def leg(tasks: Tasks, work: Any) -> asyncio.Task[Any]:
    task = asyncio.create_task(work)
    tasks.legs.add(task)
    task.add_done_callback(tasks.legs.discard)
    return task


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_what_is_kept_outlives_who_waits_for_it_and_the_end_waits_for_it() -> None:
    tasks, going, written = Tasks(), asyncio.Event(), []

    async def write() -> None:
        await going.wait()
        written.append("row")

    async def caller() -> None:
        await asyncio.shield(tasks.keep(write()))

    asked = asyncio.create_task(caller())
    await turns()
    asked.cancel()
    closing = asyncio.create_task(tasks.close(5.0))
    await turns()
    assert asked.cancelled()
    assert not closing.done()
    going.set()
    await closing
    assert written == ["row"]
    assert not tasks.running


async def test_a_request_is_stopped_when_its_time_is_over_and_what_it_does_then_is_waited_for() -> None:
    tasks, ended = Tasks(), []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await turns()
            ended.append("booked")

    task = enter(tasks, work())
    await turns()
    await tasks.close(0.0)
    assert task.cancelled()
    assert ended == ["booked"]


async def test_a_leg_is_waited_for_and_never_stopped_by_the_end() -> None:
    tasks, going = Tasks(), asyncio.Event()
    task = leg(tasks, going.wait())
    closing = asyncio.create_task(tasks.close(0.0))
    await turns()
    assert not closing.done()
    going.set()
    await closing
    assert task.result() is True


async def test_the_leg_of_a_request_that_is_stopped_is_waited_for() -> None:
    tasks, going, begun = Tasks(), asyncio.Event(), []

    async def request() -> None:
        begun.append(leg(tasks, going.wait()))
        await asyncio.Event().wait()

    enter(tasks, request())
    await turns()
    closing = asyncio.create_task(tasks.close(0.0))
    await turns()
    assert not tasks.running
    assert not closing.done()
    going.set()
    await closing
    assert begun[0].done()


async def test_what_is_done_aside_is_stopped_at_once() -> None:
    tasks, stopped = Tasks(), []

    async def tell() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await turns()
            stopped.append("told")
            raise

    tasks.aside(tell())
    await turns()
    async with asyncio.timeout(1.0):
        await tasks.close(60.0)
    assert stopped == ["told"]
    assert not tasks.beside


async def test_a_second_cancellation_does_not_end_what_the_first_began() -> None:
    going, booked = asyncio.Event(), []

    async def attempt() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await going.wait()
            booked.append("unknown")
            raise

    task = asyncio.create_task(attempt())
    await turns()
    cancel([task])
    await turns()
    cancel([task])
    going.set()
    await asyncio.wait([task])
    assert booked == ["unknown"]
