"""Rate limits of client keys, as a machine whose time is an argument."""

from __future__ import annotations

from collections import deque
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.errors import RequestError
from router.limits import BUSY_S, Bucket, Limiter, RateLimits, Slot, duration

LIMITS = st.integers(1, 10_000)
TIMES = st.lists(st.floats(0.0, 300.0), min_size=1, max_size=80).map(sorted)


@given(LIMITS, st.floats(0, 1e7), st.integers(1, 4))
def test_a_minutes_worth_may_come_at_once_and_no_more(limit: int, now: float, parts: int) -> None:
    bucket, passed = Bucket(limit), 0
    while not bucket.wait_s(1, now, parts):
        assert bucket.left(now, parts) >= 1 or parts > limit
        bucket.take(1, now, parts)
        passed += 1
    assert passed == max(limit // parts, 1)  # the even part; at least one, and its debt
    assert bucket.left(now, parts) == 0


@given(st.integers(1, 30), TIMES, st.lists(st.integers(1, 10), min_size=80, max_size=80))
def test_in_no_time_does_more_pass_than_the_limit_allows(limit: int, times: list[float], counts: list[int]) -> None:
    bucket, passed = Bucket(limit), []
    for now, count in zip(times, counts, strict=False):
        if not bucket.wait_s(count, now):
            bucket.take(count, now)
            passed.append((now, count))
    for first, (start, _) in enumerate(passed):
        total = 0
        for end, count in passed[first:]:
            # What was taken last may leave a debt, which holds back all that follow.
            assert total + min(count, limit) <= limit * (1 + (end - start) / 60) + 1e-6
            total += count


@given(st.integers(1, 30), TIMES, st.integers(1, 10))
def test_who_waits_as_long_as_told_is_let_through_and_not_sooner(limit: int, times: list[float], count: int) -> None:
    bucket = Bucket(limit)
    for now in times:
        wait_s = bucket.wait_s(count, now)
        if wait_s:
            assert wait_s <= 60 * (1 + count / limit)
            assert bucket.wait_s(count, now + wait_s + 1e-6) == 0
            assert bucket.wait_s(count, now + wait_s * 0.999) > 0
        else:
            bucket.take(count, now)
    assert bucket.wait_s(limit, times[-1] + bucket.full_s(times[-1]) + 1e-6) == 0


def test_nobody_is_starved_who_asks_for_more_than_a_minute_allows() -> None:
    bucket = Bucket(4)
    assert bucket.wait_s(10, 0.0) == 0
    bucket.take(10, 0.0)
    assert bucket.wait_s(1, 0.0) == 105.0  # six too many at 15 s each, and its own
    assert bucket.wait_s(10, 150.0) == 0


def limited(**limits: int) -> Limiter:
    return Limiter("shop", RateLimits(**limits))


def refusal(limiter: Limiter, now: float, parts: int = 1) -> RequestError:
    with pytest.raises(RequestError) as caught:
        limiter.enter(now, parts)
    return caught.value


def test_a_refusal_tells_the_limit_and_the_time() -> None:
    limiter = limited(requests_per_minute=2)
    for _ in range(2):
        limiter.enter(100.0).release()
    error = refusal(limiter, 110.0)
    assert (error.status, error.type, error.code, error.param) == (429, "requests", "rate_limit_exceeded", None)
    assert (error.retry, error.retry_after_s) == (True, 20.0)
    assert error.message == "Rate limit reached for the key 'shop': 2 requests per minute. Try again in 20s."
    assert limiter.enter(130.0)


@given(st.lists(st.booleans(), max_size=60), st.integers(1, 5), st.integers(1, 3))
def test_never_more_at_once(steps: list[bool], most: int, parts: int) -> None:
    limiter, running = limited(in_flight=most), deque[Slot]()
    allowed = max(most // parts, 1)
    for enters in steps:
        if enters and len(running) < allowed:
            running.append(limiter.enter(0.0, parts))
        elif enters:
            assert refusal(limiter, 0.0, parts).retry_after_s == BUSY_S
        elif running:
            slot = running.popleft()
            slot.release()
            slot.release()
        assert limiter.in_flight == len(running)


def test_what_is_refused_counts_for_nothing() -> None:
    limiter = limited(requests_per_minute=3, in_flight=1)
    slot = limiter.enter(0.0)
    for _ in range(10):
        assert "1 requests at once" in refusal(limiter, 0.0).message
    slot.release()
    limiter.enter(0.0).release()
    limiter.enter(0.0).release()
    assert "3 requests per minute" in refusal(limiter, 0.0).message
    assert limiter.in_flight == 0


def test_pictures_are_counted_apart() -> None:
    limiter = limited(images_per_minute=6)
    limiter.enter(0.0)
    limiter.images(4, 0.0)
    with pytest.raises(RequestError, match=r"6 images per minute\. Try again in 20s"):
        limiter.images(4, 0.0)
    limiter.images(2, 0.0)
    limiter.images(4, 40.0)
    limited().images(1000, 0.0)


def test_the_headers_are_openais() -> None:
    limiter = limited(requests_per_minute=10)
    limiter.enter(0.0)
    assert limiter.headers(1.0) == [
        (b"x-ratelimit-limit-requests", b"10"),
        (b"x-ratelimit-remaining-requests", b"9"),
        (b"x-ratelimit-reset-requests", b"5s"),
    ]
    assert limited(in_flight=1).headers(0.0) == []


def test_routers_that_share_hold_it_together() -> None:
    routers = [limited(requests_per_minute=12) for _ in range(3)]
    passed = 0
    for limiter in routers:
        while True:
            try:
                limiter.enter(0.0, parts=3)
            except RequestError:
                break
            passed += 1
    assert passed == 12
    assert refusal(routers[0], 0.0, parts=3).retry_after_s == 15.0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0ms"), (0.12, "120ms"), (0.0001, "1ms"), (1.0, "1s"), (8.64, "8.64s"), (59.9999, "1m0s"), (360.0, "6m0s")],
)
def test_durations_read_like_openais(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_durations_grow() -> None:
    texts = [duration(ms / 1000) for ms in range(0, 200_000, 77)]
    assert all(a != b for a, b in pairwise(texts))
