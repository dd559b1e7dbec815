import asyncio

import pytest

from router.deadline import Deadline

pytestmark = pytest.mark.anyio


async def test_what_takes_too_long_is_ended() -> None:
    with pytest.raises(TimeoutError), Deadline(0.01) as deadline:
        await asyncio.sleep(10)
    assert deadline.expired
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_what_ends_in_time_is_left_alone() -> None:
    with Deadline(0.02) as deadline:
        await asyncio.sleep(0)
    await asyncio.sleep(0.04)
    assert not deadline.expired


async def test_without_a_limit() -> None:
    with Deadline(None) as deadline:
        deadline.again()
        await asyncio.sleep(0)
    assert not deadline.expired


async def test_it_counts_again_from_whatever_comes() -> None:
    async with asyncio.timeout(5):
        with Deadline(0.05) as deadline:
            for _ in range(4):
                await asyncio.sleep(0.02)
                deadline.again()
    assert not deadline.expired


async def test_it_ends_when_nothing_comes_any_more() -> None:
    async def work() -> None:
        with Deadline(0.02) as deadline:
            deadline.again()
            await asyncio.sleep(10)

    async with asyncio.timeout(5):
        with pytest.raises(TimeoutError):
            await work()


async def test_an_error_of_the_block_is_the_error() -> None:
    with pytest.raises(ValueError, match="mine"), Deadline(1):
        raise ValueError("mine")


async def test_a_cancellation_from_elsewhere_stays_one() -> None:
    async def work() -> None:
        with Deadline(10):
            await asyncio.sleep(10)

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_cancellation_at_the_moment_it_ends_is_not_swallowed() -> None:
    async def work() -> None:
        with Deadline(0.01) as deadline:
            try:
                await asyncio.sleep(10)
            finally:
                assert deadline.expired
                task.cancel()  # from elsewhere, before this task has come to see that its time is over

    task = asyncio.create_task(work())
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_one_within_another() -> None:
    with pytest.raises(TimeoutError), Deadline(0.01) as outer, Deadline(10) as inner:
        await asyncio.sleep(10)
    assert (outer.expired, inner.expired) == (True, False)
